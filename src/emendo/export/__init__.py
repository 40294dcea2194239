"""Edits in the forms that other programs read: a LoRA adapter, a Hugging Face checkpoint, a repository on the hub."""

from emendo.export.checkpoint import write_checkpoint
from emendo.export.hub import Upload, push_folder
from emendo.export.peft_adapter import RANKS, AdapterFolder, write_adapter

__all__ = ["RANKS", "AdapterFolder", "Upload", "push_folder", "write_adapter", "write_checkpoint"]
