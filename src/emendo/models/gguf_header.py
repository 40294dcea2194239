"""The head of a GGUF file, compared with the file: its reader follows declared lengths past the end, without end."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"

_STRING, _ARRAY = 8, 9
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by its type."""

_WHOLE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}
"""Whole numbers among them, as `struct` reads them."""

_MOST_DIMENSIONS = 8
_MOST_DEPTH = 4


def has_magic(path: Path) -> bool:
    """Whether a plain file begins as GGUF files do."""
    with path.open("rb") as stream:
        return stream.read(4) == MAGIC


def check_gguf(path: Path) -> None:
    """Walk through the head, from length to length.

    Args:
        path: A plain file.

    Raises:
        ValueError: It is no GGUF file, or declares more than it holds.
        OSError: It cannot be read.

    Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3.
    """
    with path.open("rb") as stream:
        head = _Head(stream, os.fstat(stream.fileno()).st_size)
        if stream.read(4) != MAGIC:
            raise ValueError("it is no GGUF file: it does not begin with GGUF")
        (version,) = struct.unpack("<I", head.take(4))
        if version & 0xFFFF == 0:  # the lowest bytes of a small number, the other way round
            head.order = ">"
            version = int.from_bytes(struct.pack("<I", version), "big")
        if version not in (2, 3):
            raise ValueError(f"its GGUF version is {version}, expected 2 or 3")
        tensors, fields = head.number("Q"), head.number("Q")
        head.check_count(tensors, 24, "tensors")
        head.check_count(fields, 13, "fields")
        blocks: dict[bytes, int] = {}
        architecture = b""
        for _ in range(fields):
            key = head.string()
            kind = head.number("I")
            at = stream.tell()
            head.skip_value(kind)
            if key.endswith(b".block_count") and kind in _WHOLE:
                stream.seek(at)
                # Of a repeated key, whichever the reader takes.
                blocks[key] = max(blocks.get(key, 0), head.number(_WHOLE[kind]))
            elif key == b"general.architecture" and kind == _STRING:
                stream.seek(at)
                architecture = head.string()
        if (most := max(blocks.values(), default=0)) > tensors:
            raise ValueError(f"it declares {most:,} blocks and {tensors:,} tensors, expected at least one a block")
        for _ in range(tensors):
            head.string()
            dimensions = head.number("I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions:,} dimensions, expected at most {_MOST_DIMENSIONS}")
            head.skip(8 * dimensions + 12)
        if architecture + b".block_count" not in blocks:
            # The reader would take the number of some other model, and look for the tensors of its blocks for minutes.
            raise ValueError("it declares no number of blocks, expected ARCHITECTURE.block_count")


class _Head:
    """A stream that is never asked for more than the file has."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size, self.order = stream, size, "<"

    def take(self, count: int) -> bytes:
        self._check(count)
        return self.stream.read(count)

    def skip(self, count: int) -> None:
        self._check(count)
        self.stream.seek(count, os.SEEK_CUR)

    def number(self, kind: str) -> int:
        (value,) = struct.unpack(self.order + kind, self.take(struct.calcsize(self.order + kind)))
        return int(value)

    def string(self) -> bytes:
        return self.take(self.number("Q"))

    def check_count(self, count: int, least: int, what: str) -> None:
        """A count of things that take at least so many bytes each."""
        if count * least > self.size - self.stream.tell():
            raise ValueError(f"it declares {count:,} {what}, which its {self.size:,} bytes do not hold")

    def skip_value(self, kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            self.skip(self.number("Q"))
        elif kind in _SCALARS:
            self.skip(_SCALARS[kind])
        elif kind == _ARRAY and depth < _MOST_DEPTH:
            inner, count = self.number("I"), self.number("Q")
            if inner in _SCALARS:
                self.check_count(count, _SCALARS[inner], "values in an array")
                self.skip(count * _SCALARS[inner])
                return
            self.check_count(count, 8 if inner == _STRING else 12, "values in an array")
            for _ in range(count):
                self.skip_value(inner, depth + 1)
        else:
            raise ValueError(f"it has a value of the type {kind}, which GGUF does not have")

    def _check(self, count: int) -> None:
        if count > self.size - self.stream.tell():
            raise ValueError(f"it declares {count:,} more bytes at {self.stream.tell():,}, and ends at {self.size:,}")
