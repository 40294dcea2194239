"""Storage: files that are whole or absent, and refuse to be read when altered."""

from emendo.storage.tensor_file import (
    TensorFileFormat,
    read_tensor_file,
    read_tensor_file_header,
    write_tensor_file,
)

__all__ = ["TensorFileFormat", "read_tensor_file", "read_tensor_file_header", "write_tensor_file"]
