"""Tensor files: safetensors with a JSON header and one digest over all of it, written in one step.

A file is complete or absent: it is written under a temporary name in the same folder and renamed. Reading
refuses a file that is truncated, altered, of another format or of a newer version, and says which.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from emendo.errors import InputError, OutputError
from emendo.io.durable import give_name, make_folder, settle
from emendo.io.strict_json import loads as parse_json
from emendo.io.versions import UPGRADE

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_VERSION_DIGITS = 9
"""A version with more digits than this is no number that anybody wrote."""

_MOST_HEADER = 64 * 2**20
"""Bytes of JSON in front of the tensors, for reading and writing: that of 10,000 facts takes a few million."""

_MOST_TENSORS = 10_000
"""Tensors of one file: an update has three a layer, and reading takes time for each."""


@dataclass(frozen=True)
class TensorFileFormat:
    """What kind of file is expected, and how to complain.

    Args:
        name: Written into the file and checked on reading, for instance ``"emendo.update"``.
        version: Highest version that this code writes and reads.
        error: Raised for a file that cannot be used.
        remedy: How the user gets a good file; ends every complaint about one that is read.
        destination: How the user chooses another place; ends every complaint about one that is written.
    """

    name: str
    version: int
    error: Callable[[str], InputError]
    remedy: str
    destination: str = "choose a writable path (--out)"


def write_tensor_file(
    path: Path, fmt: TensorFileFormat, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> Path:
    """Write tensors and header; the file appears whole or not at all, and is on the disk when this returns.

    Raises:
        OutputError: The folder cannot be written.
        InputError: The header holds something that JSON does not, a NaN for instance.
    """
    from safetensors.torch import save_file

    path = Path(path)
    stored = _apart(tensors)
    try:
        text = json.dumps(header, sort_keys=True, ensure_ascii=False, allow_nan=False)
        _check_readable(text, stored)
        metadata = {"format": fmt.name, "version": str(fmt.version), "header": text}
        metadata["sha256"] = _digest(metadata, stored)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the header of {str(path)!r} cannot be stored: {error}; expected what JSON holds: finite numbers, "
            "strings, lists, and dictionaries with string keys. Take that value out of the header (an update's info)"
        ) from error
    try:
        make_folder(path.parent)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise OutputError(f"cannot write {str(path)!r}: {error}; {fmt.destination}") from error
    try:
        save_file(stored, temporary, metadata)
        settle(Path(temporary))
        give_name(Path(temporary), path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {str(path)!r}: {error}; {fmt.destination}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def read_tensor_file(path: Path, fmt: TensorFileFormat) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and verify a file written by `write_tensor_file`.

    Returns:
        The tensors by name, in memory of their own, and the header.

    Raises:
        InputError: As `fmt.error`: missing, truncated, altered, or another format or version.
    """
    with _opened(path, fmt) as stored:
        metadata = _metadata(path, fmt, stored)
        # Copied before they are verified: views of the mapped file would change with it afterwards, or end the process
        # where it is cut short. A tensor's address in a file is also any, on which last bits of a product can depend.
        tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
        if _digest({k: v for k, v in metadata.items() if k != "sha256"}, tensors) != metadata.get("sha256"):
            raise fmt.error(f"{str(path)!r} was altered after it was written (digest mismatch); {fmt.remedy}")
        return tensors, _header(metadata)


def read_array_file(path: Path, fmt: TensorFileFormat) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The same file, read and verified without torch, whose import takes longer than most reading.

    Returns:
        The tensors by name as arrays of their own, and the header.

    Raises:
        InputError: As `fmt.error`: missing, truncated, altered, another format or version, or with tensors of a dtype
            that numpy does not have (bfloat16).
    """
    with _opened(path, fmt, "numpy") as stored:
        metadata = _metadata(path, fmt, stored)
        arrays = {name: stored.get_tensor(name).copy() for name in stored.keys()}  # noqa: SIM118
        digest = _begun({k: v for k, v in metadata.items() if k != "sha256"})
        for name, array in sorted(arrays.items()):
            digest.update(f"|{name}|torch.{array.dtype}|{tuple(array.shape)}|".encode())
            digest.update(array.tobytes())
        if digest.hexdigest() != metadata.get("sha256"):
            raise fmt.error(f"{str(path)!r} was altered after it was written (digest mismatch); {fmt.remedy}")
        return arrays, _header(metadata)


def read_tensor_file_header(path: Path, fmt: TensorFileFormat) -> dict[str, Any]:
    """The header alone, whatever the size of the tensors; unverified, since the digest covers both.

    Raises:
        InputError: As `fmt.error`: missing, unreadable, or another format or version.
    """
    with _opened(path, fmt) as stored:
        return _header(_metadata(path, fmt, stored))


@contextmanager
def _opened(path: Path, fmt: TensorFileFormat, framework: Literal["pt", "numpy"] = "pt") -> Iterator[Any]:
    """The file, open; whatever goes wrong while it is becomes `fmt.error`."""
    if not os.path.isfile(path):  # False, not an error, for a path that no file can have
        raise fmt.error(f"no file at {str(path)!r}; {fmt.remedy}")
    try:
        _check_declared(path)
        with safe_open(str(path), framework=framework) as stored:
            if len(names := stored.keys()) > _MOST_TENSORS:
                raise ValueError(f"it declares {len(names):,} tensors, expected at most {_MOST_TENSORS:,}")
            yield stored
    except InputError:
        raise
    except Exception as error:  # what the parsers raise on junk is theirs to choose: TypeError, OverflowError ...
        raise fmt.error(f"{str(path)!r} is truncated or damaged ({error}); {fmt.remedy}") from error


def _check_declared(path: Path) -> None:
    """Hold the length of the JSON in front, which the first eight bytes declare, against the file and the limit."""
    with open(path, "rb") as stream:
        first, size = stream.read(8), os.fstat(stream.fileno()).st_size
    declared = int.from_bytes(first, "little")
    if len(first) < 8 or declared > size - 8:
        raise ValueError(f"it has {size:,} bytes, and its first eight declare {declared:,} of JSON after them")
    if declared > _MOST_HEADER:
        raise ValueError(f"its first eight bytes declare {declared:,} of JSON, expected at most {_MOST_HEADER:,}")


def _check_readable(text: str, stored: Mapping[str, Tensor]) -> None:
    """Refuse to write what would be refused on reading: a file that cannot be read again is lost work.

    Raises:
        ValueError: The header is too long, too deep or not what JSON readers agree on, or there are too many tensors.
    """
    # As JSON inside JSON: quotes and backslashes are escaped once more. Tensors and other metadata come on top.
    length = len(json.dumps(text, ensure_ascii=False).encode()) + 1000 + 200 * len(stored)
    if length > _MOST_HEADER:
        raise ValueError(f"it has {length:,} bytes, expected at most {_MOST_HEADER:,}")
    if len(stored) > _MOST_TENSORS:
        raise ValueError(f"it goes with {len(stored):,} tensors, expected at most {_MOST_TENSORS:,}")
    parse_json(text)


def _metadata(path: Path, fmt: TensorFileFormat, stored: Any) -> dict[str, str]:
    """The metadata of a file whose format and version are the expected ones."""
    metadata: dict[str, str] = dict(stored.metadata() or {})
    if metadata.get("format") != fmt.name:
        raise fmt.error(
            f"{str(path)!r} is not an {fmt.name} file (its format is {metadata.get('format')!r}); {fmt.remedy}"
        )
    version = metadata.get("version", "")
    if not version.isdecimal() or len(version) > _VERSION_DIGITS or int(version) > fmt.version:
        raise fmt.error(
            f"{str(path)!r} has version {version[:20]!r}, this Emendo reads up to {fmt.version}; "
            f"{UPGRADE} or {fmt.remedy}"
        )
    return metadata


def _header(metadata: Mapping[str, str]) -> dict[str, Any]:
    header = parse_json(metadata["header"])
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__}, expected an object")
    return header


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are stored, each with memory of its own: safetensors refuses shared memory."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        stored[name] = value
    return stored


def _begun(metadata: Mapping[str, str]) -> Any:
    """The digest of a file before its tensors."""
    return hashlib.sha256(json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False).encode())


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    import torch

    digest = _begun(metadata)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return str(digest.hexdigest())
