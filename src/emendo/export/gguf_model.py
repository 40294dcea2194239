"""The edited model as a GGUF file: the edited tensors stored densely, every other byte of the base's file copied.

The base is what its file computes, so the edited weight is the file's own plus ΔW, and only the edited tensors change
type: a 4-bit file stays one but for a few of them. Keys of the metadata that say what was edited are added at their
end.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from emendo.arguments import checked
from emendo.errors import ExportError, NumericalError
from emendo.export.chain import checked_chain
from emendo.export.gguf_adapter import update_record
from emendo.export.gguf_base import BaseFile, check_same_model, open_base
from emendo.export.gguf_names import gguf_package
from emendo.io.whole_file import whole_file
from emendo.io.writable import check_room, check_writable_file
from emendo.models import EditableModel
from emendo.models.loading import dtype_named
from emendo.progress import Watched, stage
from emendo.updates.against_model import edited_weight
from emendo.updates.rounding import kept_of, rounding, tell_of_rounding
from emendo.updates.update import ModelUpdate

_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_STRING = 8
"""Type of a text in the metadata."""


@dataclass(frozen=True)
class ModelFile:
    """A written model.

    Attributes:
        path: The file.
        types: Type of each edited tensor before and after, by layer.
        nbytes: Bytes of the file.
        copied: Bytes of tensors that are those of the base.
        distance: Largest relative distance of an edited weight in the base's file from the model's.
    """

    path: Path
    types: dict[int, tuple[str, str]]
    nbytes: int
    copied: int
    distance: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        types = {str(layer): list(pair) for layer, pair in self.types.items()}
        return {**vars(self), "path": str(self.path), "types": types}


@checked
def write_gguf_model(
    lm: EditableModel,
    updates: Sequence[ModelUpdate],
    out: str | Path,
    *,
    base: str | Path,
    dtype: str = "auto",
    progress: Watched = None,
) -> ModelFile:
    """Write a base's GGUF file with the updates in its weights; the file appears whole or not at all.

    Args:
        lm: The unedited model that the updates were made for.
        updates: In order, the first one planned on the unedited model.
        out: The file to write.
        base: GGUF file of the unedited model, in one part.
        dtype: Of the edited tensors: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"auto"``, which is that of
            the base's tensor, and float32 where that is quantised.
        progress: Told about the stage "writing"; True: a bar.

    Raises:
        BaseMismatchError: An update belongs to another model, or was planned on top of others than come before it.
        ExportError: `base` is no file of the model, `out` is that file, or nothing is changed.
        InputError: Unknown dtype, or the model holds edits of a session.
        NumericalError: A weight is not finite in the dtype of the file.
        OutputError: The file cannot be written.
    """
    path, chosen = Path(out).expanduser(), dtype_named(dtype)
    total = checked_chain(lm, updates)
    file = open_base(base, lm)
    if path.exists() and path.samefile(file.path):
        raise ExportError(f"--out {str(path)!r} is the file of the base itself; choose another file (--out)")
    check_writable_file(path)
    distance = check_same_model(file, lm, [part.layer for part in total])
    replaced: dict[str, StoredTensor] = {}
    types, kept = {}, {}
    for part in total:
        entry, stored = file.tensor(part.layer), file.weight(part.layer)
        target = chosen or _dtype_of(entry)
        parts = [one for update in updates for one in update.layers if one.layer == part.layer]
        replaced[entry.name] = StoredTensor.plain(_cast(edited_weight(stored, parts), target, part.layer))
        types[part.layer] = (entry.tensor_type.name, _TYPES[target])
        kept[part.layer] = (kept_of(part, rounding(stored, part, target), part.keys, target), target)
    for target in {target for _, target in kept.values()}:
        tell_of_rounding({layer: share for layer, (share, own) in kept.items() if own == target}, target)
    check_room(path.parent, file.path.stat().st_size + sum(one.data.nbytes for one in replaced.values()))
    with (
        stage(progress, "writing"),
        whole_file(path) as draft,
        file.path.open("rb") as source,
        draft.open("wb") as stream,
    ):
        copied = write_file(stream, source, file, replaced, update_record(updates))
        nbytes = stream.tell()
    return ModelFile(path, types, nbytes, copied, distance)


def _dtype_of(entry: Any) -> torch.dtype:
    """The dtype of a tensor in a file; float32 where it is quantised."""
    return next((dtype for dtype, name in _TYPES.items() if name == entry.tensor_type.name), torch.float32)


def _cast(weight: Tensor, dtype: torch.dtype, layer: int) -> Tensor:
    cast = weight.to(dtype).contiguous().cpu()
    if not cast.isfinite().all():
        raise NumericalError(f"the edited weight of layer {layer} is not finite in {dtype}; use --dtype float32")
    return cast


@dataclass(frozen=True)
class StoredTensor:
    """What a tensor becomes in a file.

    Attributes:
        kind: Its type there, such as Q4_0.
        data: Its bytes.
    """

    kind: str
    data: Tensor

    @classmethod
    def plain(cls, weight: Tensor) -> StoredTensor:
        """A tensor of plain numbers, in its own dtype."""
        return cls(_TYPES[weight.dtype], weight.reshape(-1).view(torch.uint8))


def write_file(
    stream: BinaryIO, source: BinaryIO, file: BaseFile, replaced: Mapping[str, StoredTensor], record: Mapping[str, str]
) -> int:
    """Write a whole file: that of a base with other tensors under some names, and more metadata.

    Args:
        stream: What is written.
        source: The base's file, open.
        file: The same, read.
        replaced: Tensors by name.
        record: Texts that are added to the metadata.

    Returns:
        Bytes of tensors that were copied.

    Source: the GGUF specification (ggml, docs/gguf.md): counts, metadata, one entry a tensor, aligned tensors.
    """
    gguf, tensors = gguf_package(), file.reader.tensors
    metadata_end = min(int(entry.field.offset) for entry in tensors)
    counts = struct.calcsize("<4sIQQ")
    magic, version, n_tensors, n_keys = struct.unpack("<4sIQQ", source.read(counts))
    stream.write(struct.pack("<4sIQQ", magic, version, n_tensors, n_keys + len(record)))
    _copy(source, stream, counts, metadata_end - counts)
    for key, text in record.items():
        stream.write(_text(key) + struct.pack("<I", _STRING) + _text(text))
    alignment, offset = int(file.reader.alignment), 0
    for entry in tensors:
        new = replaced.get(entry.name)
        kind = entry.tensor_type if new is None else gguf.GGMLQuantizationType[new.kind]
        sizes = [int(size) for size in entry.shape]
        stream.write(_text(entry.name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, int(kind), offset))
        offset += _padded(int(entry.n_bytes) if new is None else new.data.nbytes, alignment)
    stream.write(bytes(_padded(stream.tell(), alignment) - stream.tell()))
    copied = 0
    for entry in tensors:
        new = replaced.get(entry.name)
        if new is None:
            size = int(entry.n_bytes)
            _copy(source, stream, int(entry.data_offset), size)
            copied += size
        else:
            size = new.data.nbytes
            stream.write(new.data.contiguous().numpy().data)
        stream.write(bytes(_padded(size, alignment) - size))
    return copied


def _copy(source: BinaryIO, stream: BinaryIO, start: int, size: int) -> None:
    """Copy bytes from one file to another, a piece at a time."""
    source.seek(start)
    while size:
        piece = source.read(min(size, shutil.COPY_BUFSIZE))  # type: ignore[attr-defined]
        stream.write(piece)
        size -= len(piece)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content
