"""Edits in the forms that other programs read: LoRA adapters, a checkpoint, GGUF files, a repository on the hub."""

from emendo.export.checkpoint import write_checkpoint
from emendo.export.few_bits_in_place import InPlaceFolder, write_in_place
from emendo.export.gguf_adapter import AdapterFile, write_gguf_adapter
from emendo.export.gguf_in_place import InPlaceFile, write_gguf_in_place
from emendo.export.gguf_model import ModelFile, write_gguf_model
from emendo.export.gguf_names import GGUF_ARCHITECTURES
from emendo.export.hub import Upload, push_folder
from emendo.export.peft_adapter import RANKS, AdapterFolder, write_adapter

__all__ = [
    "GGUF_ARCHITECTURES",
    "RANKS",
    "AdapterFile",
    "AdapterFolder",
    "InPlaceFile",
    "InPlaceFolder",
    "ModelFile",
    "Upload",
    "push_folder",
    "write_adapter",
    "write_checkpoint",
    "write_gguf_adapter",
    "write_gguf_in_place",
    "write_gguf_model",
    "write_in_place",
]
