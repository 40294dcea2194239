"""An edit as a LoRA adapter in PEFT's own format: (Rᵀ, Q) is (B, A) at scale 1, so nothing is approximated.

The files are written here, without peft: a configuration and a safetensors file whose names peft, transformers, vLLM
and others read. Every layer gets the same rank, padded with zeros to one that servers accept, and lora_alpha = r, which
makes the scale 1 whatever the rank.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from emendo.arguments import Measured, checked
from emendo.errors import ExportError, InputError
from emendo.export.card import adapter_card
from emendo.export.chain import checked_chain
from emendo.io.whole_folder import whole_folder
from emendo.models import EditableModel
from emendo.models.mixture import Mixture
from emendo.updates.fold import fold
from emendo.updates.update import LayerUpdate, ModelUpdate

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that servers accept: vLLM's `--max-lora-rank`, from 8 on."""

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterFolder:
    """A written adapter.

    Attributes:
        path: The folder.
        name: Its name, which is of its content: two adapters of one name are the same adapter.
        rank: r of the configuration, after padding.
        exact_rank: Largest number of rows of a layer's factors, before padding.
        layers: The edited layers.
        nbytes: Bytes of the tensors, padding included.
        lost: Largest relative distance ‖ΔW − ΔW'‖_F / ‖ΔW‖_F of a layer; 0 where nothing was folded.
    """

    path: Path
    name: str
    rank: int
    exact_rank: int
    layers: tuple[int, ...]
    nbytes: int
    lost: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "path": str(self.path), "layers": list(self.layers)}


@checked
def write_adapter(
    lm: EditableModel,
    updates: Sequence[ModelUpdate],
    out: str | Path,
    *,
    tolerance: Measured | None = None,
    base_name: str | None = None,
) -> AdapterFolder:
    """Write updates as one PEFT LoRA adapter into a folder of its own inside `out`; it appears whole or not at all.

    Args:
        lm: The unedited model that the updates were made for.
        updates: In order, the first one planned on the unedited model. Their factors are stacked.
        out: Folder in which the adapter's own is made, named by its content.
        tolerance: Fold each layer to the smallest rank within this relative distance (0: without what is zero beside
            rounding); None stacks exactly.
        base_name: `base_model_name_or_path` of the configuration; the model's name where None.

    Raises:
        BaseMismatchError: An update belongs to another model, or was planned on top of others than come before it.
        ExportError: The rank is more than servers accept, nothing is changed, or the tolerance cannot be kept.
        OutputError: The folder cannot be written.
    """
    check_tolerance(tolerance)
    parts, lost = folded_layers(checked_chain(lm, updates), updates[0], tolerance)
    rank = padded_rank(max(part.rank for part in parts))
    tensors = lora_tensors(parts, rank, {part.layer: lm.mixture(part.layer) for part in parts})
    config = _config(lm, parts, rank, base_name or lm.name)
    name = f"emendo-{content_digest(config, tensors)[:12]}"
    path = Path(out).expanduser() / name
    if not _is_there(path, config, tensors):
        with whole_folder(path) as draft:
            (draft / CONFIG_NAME).write_text(_json(config), encoding="utf-8")
            save_file(tensors, draft / WEIGHTS_NAME, {"format": "pt"})
            card = adapter_card(config["base_model_name_or_path"], updates, name=name, rank=rank, lost=lost)
            (draft / "README.md").write_text(card, encoding="utf-8")
    return AdapterFolder(
        path=path,
        name=name,
        rank=rank,
        exact_rank=max(part.rank for part in parts),
        layers=tuple(part.layer for part in parts),
        nbytes=sum(tensor.nbytes for tensor in tensors.values()),
        lost=lost,
    )


def padded_rank(rank: int) -> int:
    """The smallest rank that servers accept and that holds `rank` rows.

    Raises:
        ExportError: There is none.
    """
    for size in RANKS:
        if rank <= size:
            return size
    raise ExportError(
        f"these updates have rank {rank} in a layer, and servers accept adapters up to rank {RANKS[-1]}. Fold them to "
        "a smaller rank at a stated tolerance (--fold 1e-3), or write the whole model (emendo export checkpoint)"
    )


def lora_tensors(
    parts: Sequence[LayerUpdate], rank: int, mixtures: Mapping[int, Mixture | None] = MappingProxyType({})
) -> dict[str, Float[Tensor, "rows columns"]]:
    """A ``[rank, d_in]`` and B ``[d_out, rank]`` of every layer in float32, by the names that PEFT gives them.

    Experts have a pair each: A is ``[experts · rank, width]``, expert by expert, and B ``[d_out, rank · experts]``, row
    of the factors by row, as PEFT's adapters of a parameter read them.

    Args:
        parts: The layers.
        rank: Of every pair, padded with zeros.
        mixtures: Sizes of the layers that are mixtures of experts.

    Source: LoRA (arXiv 2106.09685), eq. 3: ΔW = B A · alpha / r.
    """
    tensors = {}
    for part in parts:
        down, up = lora_pair(part, rank)
        if (mixture := mixtures.get(part.layer)) is not None:
            down = down.view(rank, mixture.experts, mixture.width).transpose(0, 1).reshape(-1, mixture.width)
            up = up.repeat_interleave(mixture.experts, dim=1)
        tensors[f"base_model.model.{part.module}.lora_A.weight"] = down
        tensors[f"base_model.model.{part.module}.lora_B.weight"] = up
    return tensors


def lora_pair(part: LayerUpdate, rank: int) -> tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]:
    """A and B of one layer at scale 1, in float32 on the CPU, padded with zeros to a rank."""
    down = part.dual_keys.new_zeros(rank, part.dual_keys.shape[1], dtype=torch.float32, device="cpu")
    up = part.residuals.new_zeros(part.residuals.shape[1], rank, dtype=torch.float32, device="cpu")
    down[: part.rank] = part.dual_keys
    up[:, : part.rank] = part.residuals.T
    return down, up


def content_digest(config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the configuration and the tensors: what a server would compute with."""
    digest = hashlib.sha256(_json(config).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"|{name}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_tolerance(tolerance: float | None) -> None:
    """Refuse a tolerance that is none.

    Raises:
        ExportError: It is not in [0, 1).
    """
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ExportError(
            f"a folding tolerance of {tolerance:g} makes no sense; expected 0 up to 1, such as --fold 1e-6"
        )


def folded_layers(
    parts: tuple[LayerUpdate, ...], update: ModelUpdate, tolerance: float | None
) -> tuple[tuple[LayerUpdate, ...], float]:
    """The layers at their smallest rank, and the largest relative distance that this costs one.

    Args:
        parts: The stacked layers of all updates.
        update: One of them, for the base that they share.
        tolerance: None for no folding; 0 drops only what is zero beside rounding.

    Raises:
        ExportError: Float32 factors cannot keep the tolerance.
    """
    if tolerance is None:
        return parts, 0.0
    try:
        # Asked for a tolerance of 0, `fold` would refuse the rounding of new factors to float32.
        folded = fold(replace(update, layers=parts), tolerance=tolerance or None, keep_keys=False)
    except InputError as error:
        raise ExportError(
            f"--fold {tolerance:g} is finer than float32 factors are: {error}. Expected --fold 2e-7 or more, or --fold "
            "0 to drop only what is zero beside rounding"
        ) from error
    return folded.update.layers, folded.error


def _config(lm: EditableModel, parts: Sequence[LayerUpdate], rank: int, base_name: str) -> dict[str, Any]:
    """The fields of peft's LoraConfig that say something; it has defaults for the others."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": lm.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        **_targets(lm, parts),
        "layers_to_transform": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "fan_in_fan_out": lm.spec.experts is None and lm.stores_transposed(parts[0].layer),
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _targets(lm: EditableModel, parts: Sequence[LayerUpdate]) -> dict[str, list[str]]:
    """What the adapter is of, by parameters in families with mixtures of experts, in all others by modules.

    Whole dotted names: a bare "down_proj" would wrap that map of every layer, edited or not.
    In such a family peft takes a module that ends in `down_proj` for the experts of every layer, also a dense one.
    """
    if lm.spec.experts is None:
        return {"target_modules": [part.module for part in parts]}
    return {"target_modules": [], "target_parameters": [lm.parameter_name(part.layer) for part in parts]}


def _is_there(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    """Whether the folder holds this very adapter already.

    Raises:
        ExportError: It holds something else, under the name of this content.
    """
    if not os.path.isdir(path) or not any(path.iterdir()):
        return False
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path / WEIGHTS_NAME)
        text = (path / CONFIG_NAME).read_text(encoding="utf-8")
        same = text == _json(config) and content_digest(config, found) == content_digest(config, tensors)
    except (OSError, ValueError, SafetensorError):
        same = False
    if not same:
        raise ExportError(
            f"{str(path)!r} is named for this adapter and holds another or a damaged one; remove it, or choose "
            "another folder (--out)"
        )
    return True


def _json(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
