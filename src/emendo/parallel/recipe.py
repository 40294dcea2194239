"""What a worker needs to make the world of the serial run for itself, and to refuse any other one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from emendo.errors import InputError, WorkerError
from emendo.io.environment import kernel_switches, processor, set_kernel_switches
from emendo.io.versions import versions
from emendo.models import EditableModel, load
from emendo.models.base_model import differences, in_words
from emendo.parallel.units import World
from emendo.progress import Progress

_COUNTED = ("emendo", "torch", "transformers", "tokenizers")
"""Versions that the last bits of a result depend on."""

_WORDS = {
    "source_sha256": "Emendo's own files",
    "machine": "processor",
    "instruction_set": "instruction set",
    "math_libraries": "math libraries",
    "kernel_choice": "choice of kernels",
    "matmul_precision": "precision of products",
}


@dataclass(frozen=True)
class WorldRecipe:
    """A model by name, with everything that it must turn out to be; a few thousand characters.

    Attributes:
        model: As `emendo.load` takes it.
        device: ``"cpu"``, or ``"cuda"``: worker k of a machine takes its k-th device, and begins again after the last.
        dtype: Of the weights.
        identity: Digests of weights, tokenizer and configuration; see `EditableModel.identity`.
        code: Versions and digests of what computes, and the kind of processor; see `code_identity`.
        threads: Threads of a product: its last bits can depend on them.
        switches: Of torch, that choose kernels; likewise.
        folder: Working directory, in which relative paths are read.
    """

    model: str
    device: str
    dtype: str
    identity: Mapping[str, str]
    code: Mapping[str, str]
    threads: int
    switches: Mapping[str, bool]
    folder: str

    @classmethod
    def of(cls, lm: EditableModel) -> WorldRecipe:
        """The recipe of a model that this process has loaded by its name and not edited."""
        return cls(
            model=lm.name,
            device=lm.device.type,
            dtype=str(lm.dtype).removeprefix("torch."),
            identity=lm.identity(),
            code=code_identity(str(lm.device)),
            threads=torch.get_num_threads(),
            switches=kernel_switches(),
            folder=str(Path.cwd()),
        )

    def build(self, number: int = 0, progress: Progress | None = None) -> World:
        """Load the model, in a process of its own: the working directory and torch's threads are set.

        Args:
            number: Of the worker, which chooses its device.
            progress: Of the world.

        Raises:
            WorkerError: The model cannot be loaded, or it, Emendo, a library or the processor is another one; says
                what differs.
        """
        device = self.device
        set_kernel_switches(self.switches)
        if device == "cuda" and torch.cuda.device_count() > 1:
            device = f"cuda:{number % torch.cuda.device_count()}"
        if told := code_differences(self.code, code_identity(device)):
            raise WorkerError(
                f"a worker computes with something else than the command that started it: {'; '.join(told)}. Install "
                "the same versions everywhere, and use machines of one kind (or set ATEN_CPU_CAPABILITY for all)"
            )
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise WorkerError(
                f"a worker does not see the working directory {self.folder!r} ({error.strerror}); start the command in "
                "a folder that all machines share"
            ) from error
        torch.set_num_threads(self.threads)
        try:
            lm = load(self.model, device=device, dtype=self.dtype)
        except InputError as error:
            raise WorkerError(
                f"a worker loads the model for itself, by its name, and cannot load {self.model!r}: {error}"
            ) from error
        if told := differences(self.identity, lm.identity()):
            raise WorkerError(
                f"a worker loaded {self.model!r} and got another model than the command that started it: "
                f"{in_words(told)}. Give all machines the same files"
            )
        world = World(lm, progress)
        world.among_others = True
        return world


def code_identity(device: str) -> dict[str, str]:
    """Versions, a digest of Emendo's own files, and the kind of processor.

    Args:
        device: Where the model is, such as ``"cpu"`` or ``"cuda:0"``.
    """
    found = versions()
    return {
        **{name: found[name] for name in _COUNTED},
        "source_sha256": _source_sha256(),
        **processor(device),
    }


def code_differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """In words, where a worker does not compute with what it should."""
    return [
        f"{_WORDS.get(name, name)}: found {_short(found.get(name))}, expected {_short(expected.get(name))}"
        for name in dict.fromkeys([*expected, *found])
        if expected.get(name) != found.get(name)
    ]


def _short(value: str | None) -> str:
    return repr(value if value is None or len(value) <= 40 else f"{value[:12]}…")


@cache
def _source_sha256() -> str:
    """SHA-256 over the names and bytes of the package's files, for versions that are no releases."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix not in (".pyc", ".pyo") and not path.name.startswith("."):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}|{len(content)}|".encode() + content)
    return digest.hexdigest()
