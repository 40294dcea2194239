"""The GGUF file of a base model, compared with the model in memory that an update was made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emendo.errors import ExportError
from emendo.export.gguf_names import down_projection, gguf_architecture, gguf_package
from emendo.io.plain_file import check_plain
from emendo.models import EditableModel
from emendo.models.gguf_header import check_gguf
from emendo.shapes import Weight

MOST_DISTANCE = 0.5
"""Largest relative distance of a weight in a file from the model's own; that of two models is about 1.4.

The coarsest types in use, of about 2 bits, are at about 0.3.
"""

OWN_KEYS = "emendo."
"""Beginning of the keys that Emendo writes into GGUF files."""


@dataclass(frozen=True)
class BaseFile:
    """An opened GGUF file; nothing of its tensors is read before it is asked for.

    Attributes:
        path: The file.
        reader: The gguf package's reader of it.
    """

    path: Path
    reader: Any

    def tensor(self, layer: int) -> Any:
        """The entry of a layer's edited weight.

        Raises:
            ExportError: The file has none.
        """
        name = down_projection(layer)
        for entry in self.reader.tensors:
            if entry.name == name:
                return entry
        raise ExportError(f"{str(self.path)!r} has no tensor {name}; expected a GGUF file of the base model (--base)")

    def weight(self, layer: int) -> Weight:
        """A layer's edited weight ``[d_out, d_in]`` in float32, as the file's type gives it.

        Raises:
            ExportError: The file has none, or the package gguf cannot read its type.
        """
        entry = self.tensor(layer)
        try:
            values = gguf_package().quants.dequantize(entry.data, entry.tensor_type)
        except NotImplementedError as error:
            raise ExportError(
                f"{entry.name} in {str(self.path)!r} is stored as {entry.tensor_type.name}, which the package gguf "
                "cannot read; expected another type, such as Q8_0 or F16 (--base)"
            ) from error
        return torch.from_numpy(values.copy())

    def text(self, key: str) -> str | None:
        """A text of the file's metadata; None where there is none."""
        found = self.reader.get_field(key)
        value = None if found is None else found.contents()
        return value if isinstance(value, str) else None


def open_base(path: str | Path, lm: EditableModel) -> BaseFile:
    """Open the GGUF file of a base model.

    Args:
        path: The file.
        lm: The model that it should be.

    Raises:
        ExportError: It is damaged, in several parts, an adapter, an export of Emendo, or of another family.
    """
    path = Path(path).expanduser()
    gguf = gguf_package()
    try:
        check_plain(path)
        check_gguf(path)
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ExportError(f"cannot read {str(path)!r}: {error}; expected a GGUF file of the base (--base)") from error
    if reader.byte_order != "I" or reader.endianess != gguf.GGUFEndian.LITTLE:
        raise ExportError(f"{str(path)!r} is a big-endian GGUF file; expected a little-endian one (--base)")
    file = BaseFile(path, reader)
    parts = reader.get_field("split.count")
    if parts is not None and int(parts.contents()) > 1:
        raise ExportError(
            f"{str(path)!r} is one of {int(parts.contents())} parts; join them first with llama.cpp's llama-gguf-split "
            "--merge, and give the whole file (--base)"
        )
    if any(key.startswith(OWN_KEYS) for key in reader.fields):
        raise ExportError(
            f"{str(path)!r} holds edits of Emendo already; expected the file of the unedited base (--base)"
        )
    found, expected = file.text("general.architecture"), gguf_architecture(lm)
    if file.text("general.type") == "adapter" or found != expected:
        what = "an adapter" if file.text("general.type") == "adapter" else f"of the architecture {found!r}"
        raise ExportError(f"{str(path)!r} is {what}; expected a model of the architecture {expected!r} (--base)")
    return file


def check_same_model(file: BaseFile, lm: EditableModel, layers: Sequence[int]) -> float:
    """Hold the weights that are to be edited in a file against the model's.

    Args:
        file: The base.
        lm: The unedited model.
        layers: Edited ones.

    Returns:
        The largest relative distance ‖W' − W‖_F / ‖W‖_F: 0 for the very weights, up to about 0.3 for quantised ones.

    Raises:
        ExportError: A shape differs, or a weight is further away than any quantisation takes it.
    """
    distance = 0.0
    for layer in layers:
        own, stored = lm.base_weight(layer).float().cpu(), file.weight(layer)
        if own.shape != stored.shape:
            raise ExportError(
                f"{down_projection(layer)} has shape {list(stored.shape)} in {str(file.path)!r} and {list(own.shape)} "
                f"in {lm.name!r}; expected a GGUF file of that model (--base)"
            )
        found = _distance(stored, own)
        if not found <= MOST_DISTANCE:
            raise ExportError(
                f"{down_projection(layer)} in {str(file.path)!r} is at a relative distance of {found:.2f} from the "
                f"weight of {lm.name!r}; expected {MOST_DISTANCE} at most, as quantisation leaves it. It is another "
                "model's file (--base)"
            )
        distance = max(distance, found)
    return distance


def _distance(stored: Tensor, own: Tensor) -> float:
    return float((stored - own).norm() / own.norm())
