"""From the bytes of a file to its text: the encodings that a file declares, gzip, and what is no text at all."""

from __future__ import annotations

import gzip
import json
import zlib
from io import BytesIO

from emendo.errors import DatasetError

MOST_BYTES = 512 * 2**20
"""Of a file, which is read whole, packed and unpacked; all of CounterFact is 45 MB. A device without an end is
refused here too."""

_GZIP = b"\x1f\x8b"

_NO_TEXT = {
    b"PK\x03\x04": "a zip archive or a spreadsheet (.xlsx, .ods): export it as CSV in UTF-8, or unpack it",
    b"PAR1": "a Parquet file in a gzip file: unpack it with gunzip",  # by itself it is read before its text is
    b"ARROW1": "an Arrow file: write its table as .jsonl or .csv",
    b"BZh": "packed with bzip2: unpack it with bunzip2",
    b"\xfd7zXZ\x00": "packed with xz: unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it with unzstd",
    b"SQLite format 3\x00": "an SQLite database: export its table as CSV",
    b"%PDF": "a PDF document: expected facts as JSON, JSON lines or CSV",
    b"\x80\x04\x95": "a Python pickle, which is never read: write its rows with json.dump",
    b"GGUF": "a model, not facts (--model)",
}
"""What a file begins with, what it is then, and what to do."""

_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
"""Byte order marks, longer ones first."""


def decoded(data: bytes, name: str) -> str:
    """The text of a file.

    UTF-8 and, where a mark or the place of the zero bytes tells them, UTF-16 and UTF-32; gzip is unpacked. Nothing is
    guessed: every other encoding is many encodings.

    Args:
        data: At most `MOST_BYTES`.
        name: How errors name the file.

    Raises:
        DatasetError: It is no text, or in an encoding that it does not declare; says what to do.
    """
    if data.startswith(_GZIP):
        data = _unpacked(data, name)
    for begin, what in _NO_TEXT.items():
        if data.startswith(begin):
            raise DatasetError(f"the data set {name!r} is {what}")
    encoding = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), None)
    if encoding is None:
        encoding = json.detect_encoding(data[:4].ljust(4, b" ")) if b"\0" in data[:4] else "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DatasetError(_undecodable(data, encoding, error, name)) from error


def _undecodable(data: bytes, encoding: str, error: UnicodeDecodeError, name: str) -> str:
    """What is wrong with an encoding; shows the bytes as the commonest other one has them, for a person to judge."""
    wanted = encoding.removesuffix("-sig").upper()
    said = f"the data set {name!r} is not {wanted} ({error.reason} at byte {error.start})"
    if not encoding.startswith("utf-8"):
        return f"{said}: it is damaged; write it again in UTF-8"
    begin = max(data.rfind(b"\n", 0, error.start) + 1, error.start - 30)
    shown = data[begin : error.start + 20].split(b"\n")[0].decode("cp1252", "replace")
    line = data.count(b"\n", 0, error.start) + 1
    return (
        f"{said}; in Windows-1252, the encoding of many spreadsheets, line {line} reads {shown!r}. If that is right: "
        "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW; otherwise name its encoding with -f"
    )


def _unpacked(data: bytes, name: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=BytesIO(data)) as stream:
            content = stream.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"the data set {name!r} begins like a gzip file and cannot be unpacked: {error}") from error
    if len(content) > MOST_BYTES:
        raise DatasetError(f"the data set {name!r} unpacks to more than {MOST_BYTES:,} bytes; divide it")
    return content
