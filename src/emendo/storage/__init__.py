"""Storage: files and folders that are whole or absent, and files that refuse to be read when altered."""

from emendo.plain_file import check_plain, read_plain_text
from emendo.storage.cache_folder import entry_lock, file_sha256, is_sound, store_folder
from emendo.storage.durable import flush, make_folder
from emendo.storage.in_place import replaced_files
from emendo.storage.tensor_file import (
    TensorFileFormat,
    read_tensor_file,
    read_tensor_file_header,
    write_tensor_file,
)
from emendo.storage.whole_file import write_bytes, write_json, write_text
from emendo.storage.whole_folder import check_absent, whole_folder
from emendo.storage.writable import check_room, check_writable, check_writable_file

__all__ = [
    "TensorFileFormat",
    "check_absent",
    "check_plain",
    "check_room",
    "check_writable",
    "check_writable_file",
    "entry_lock",
    "file_sha256",
    "flush",
    "is_sound",
    "make_folder",
    "read_plain_text",
    "read_tensor_file",
    "read_tensor_file_header",
    "replaced_files",
    "store_folder",
    "whole_folder",
    "write_bytes",
    "write_json",
    "write_tensor_file",
    "write_text",
]
