"""An edit as a LoRA adapter in llama.cpp's format: one GGUF file that llama.cpp's server loads beside the base.

llama.cpp adds ``alpha / r · B A x`` to ``W x``; with alpha = r in every layer that is (Rᵀ, Q) at scale 1, whatever the
type of W in the file of the base. All layers have one rank, padded with zeros; any rank is accepted.

Source: LoRA (arXiv 2106.09685), eq. 3; names as llama.cpp's loader of adapters reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emendo.arguments import Measured, checked
from emendo.errors import ExportError
from emendo.export.card import recorded_facts
from emendo.export.chain import checked_chain
from emendo.export.gguf_base import check_same_model, open_base
from emendo.export.gguf_names import down_projection, gguf_architecture, gguf_package
from emendo.export.peft_adapter import check_tolerance, content_digest, folded_layers, lora_pair
from emendo.io import strict_json
from emendo.io.printable import well_formed
from emendo.io.versions import __version__
from emendo.io.whole_file import whole_file
from emendo.models import EditableModel
from emendo.updates.update import LayerUpdate, ModelUpdate


@dataclass(frozen=True)
class AdapterFile:
    """A written adapter.

    Attributes:
        path: The file.
        name: Its name without ``.gguf``, which is of its content: two adapters of one name are the same adapter.
        architecture: `general.architecture` of the base.
        rank: Of every layer; the smaller ones are padded with zeros.
        layers: The edited layers.
        nbytes: Bytes of the tensors, padding included.
        lost: Largest relative distance ‖ΔW − ΔW'‖_F / ‖ΔW‖_F of a layer; 0 where nothing was folded.
        distance: Largest relative distance of an edited weight in the base's file from the model's; None without one.
    """

    path: Path
    name: str
    architecture: str
    rank: int
    layers: tuple[int, ...]
    nbytes: int
    lost: float
    distance: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "path": str(self.path), "layers": list(self.layers)}


@checked
def write_gguf_adapter(
    lm: EditableModel,
    updates: Sequence[ModelUpdate],
    out: str | Path,
    *,
    tolerance: Measured | None = None,
    base: str | Path | None = None,
    base_name: str | None = None,
) -> AdapterFile:
    """Write updates as one llama.cpp adapter, a file in `out` that appears whole or not at all.

    Args:
        lm: The unedited model that the updates were made for.
        updates: In order, the first one planned on the unedited model. Their factors are stacked.
        out: Folder of the file, which is named by its content.
        tolerance: Fold each layer to the smallest rank within this relative distance; None stacks exactly.
        base: The GGUF file that will be served, to be compared with the model; None: nothing is checked.
        base_name: How the file names its base; the model's name where None.

    Raises:
        BaseMismatchError: An update belongs to another model, or was planned on top of others than come before it.
        ExportError: llama.cpp has no such family, `base` is no file of the model, nothing is changed, the tolerance
            cannot be kept, or the package gguf is missing.
        OutputError: The folder cannot be written.
    """
    check_tolerance(tolerance)
    architecture = gguf_architecture(lm)
    parts, lost = folded_layers(checked_chain(lm, updates), updates[0], tolerance)
    layers = tuple(part.layer for part in parts)
    distance = None if base is None else check_same_model(open_base(base, lm), lm, layers)
    rank = max(part.rank for part in parts)
    tensors = gguf_tensors(parts, rank)
    name = f"emendo-{content_digest({'architecture': architecture, 'alpha': rank}, tensors)[:12]}"
    path = Path(out).expanduser() / f"{name}.gguf"
    if not _is_there(path, architecture, rank, tensors):
        with whole_file(path) as draft:
            _write(draft, architecture, name, rank, tensors, _record(updates, base_name or lm.name))
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    return AdapterFile(path, name, architecture, rank, layers, nbytes, lost, distance)


def gguf_tensors(parts: Sequence[LayerUpdate], rank: int) -> dict[str, Tensor]:
    """A ``[rank, d_in]`` and B ``[d_out, rank]`` of every layer in float32, by the names that llama.cpp reads."""
    tensors = {}
    for part in parts:
        down, up = lora_pair(part, rank)
        tensors[f"{down_projection(part.layer)}.lora_a"] = down
        tensors[f"{down_projection(part.layer)}.lora_b"] = up
    return tensors


def update_record(updates: Sequence[ModelUpdate]) -> dict[str, str]:
    """What a GGUF file says about the updates in it, as texts by key."""
    return {
        "emendo.version": __version__,
        "emendo.updates": strict_json.dumps([update.id for update in updates]),
        "emendo.base.weights_sha256": updates[0].base.get("weights_sha256", "unknown"),
        "emendo.facts": strict_json.dumps(recorded_facts(updates)),
    }


def _record(updates: Sequence[ModelUpdate], base_name: str) -> dict[str, str]:
    return {
        "general.description": f"Facts edited in {well_formed(base_name)}, as a LoRA adapter at scale 1",
        "general.base_model.0.name": well_formed(base_name),
        **update_record(updates),
    }


def _write(
    path: Path, architecture: str, name: str, rank: int, tensors: Mapping[str, Tensor], record: Mapping[str, str]
) -> None:
    gguf = gguf_package()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    writer.add_name(name)
    writer.add_base_model_count(1)
    for key, text in record.items():
        writer.add_string(key, text)
    for key, tensor in tensors.items():
        writer.add_tensor(key, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _is_there(path: Path, architecture: str, rank: int, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the file holds this very adapter already.

    Raises:
        ExportError: It holds something else, under the name of this content.
    """
    if not path.exists():
        return False
    try:
        reader = gguf_package().GGUFReader(path)
        found = {entry.name: torch.from_numpy(np.array(entry.data)) for entry in reader.tensors}
        alpha = float(reader.get_field("adapter.lora.alpha").contents())
        same = (
            found.keys() == tensors.keys()
            and all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
            and (alpha, reader.get_field("general.architecture").contents()) == (rank, architecture)
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        same = False
    if not same:
        raise ExportError(
            f"{str(path)!r} is named for this adapter and holds another or a damaged one; remove it, or choose "
            "another folder (--out)"
        )
    return True
