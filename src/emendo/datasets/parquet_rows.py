"""Rows of a Parquet file, through pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from emendo.datasets.json_rows import Row
from emendo.errors import DatasetError
from emendo.io.extras import pip_install

MAGIC = b"PAR1"

_AT_ONCE = 1024
"""Rows that are unpacked together."""


def parquet_rows(data: bytes, name: str, most: int) -> Iterator[Row]:
    """Every row of a Parquet file.

    Args:
        data: The file.
        name: How errors name it.
        most: Bytes that it may unpack to.

    Raises:
        DatasetError: The library is missing, the file is damaged, or it unpacks to more; some of these while rows are
            read.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DatasetError(
            f"the data set {name!r} is a Parquet file; reading it needs the package pyarrow: {pip_install('data')}"
        ) from error
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        groups = range(file.metadata.num_row_groups)
        declared = sum(file.metadata.row_group(group).total_byte_size for group in groups)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
        raise _damaged(name, error) from error
    if declared > most:
        raise DatasetError(f"the data set {name!r} unpacks to {declared:,} bytes, expected at most {most:,}; divide it")
    return _rows(file, name, most, pyarrow.ArrowException)


def _rows(file: Any, name: str, most: int, damage: type[Exception]) -> Iterator[Row]:
    number = unpacked = 0
    try:
        for batch in file.iter_batches(batch_size=_AT_ONCE):
            unpacked += batch.nbytes
            if unpacked > most:
                raise DatasetError(f"the data set {name!r} unpacks to more than {most:,} bytes; divide it")
            for value in batch.to_pylist():
                number += 1
                yield Row(number, value)
    except DatasetError:
        raise
    except (damage, OSError, ValueError, TypeError, OverflowError) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> DatasetError:
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return DatasetError(f"the data set {name!r} begins like a Parquet file and cannot be read: {first}")
