"""Where the preserved keys come from: a file, a `datasets` id, or text that the model writes itself.

A corpus is a frozen description. It says what identifies its text (`describe`, which enters the fingerprint of
every second moment collected from it) and yields fixed-length token sequences in an order that never changes.
"""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from emendo.arguments import Seed, check_fields, checked
from emendo.errors import CorpusError
from emendo.io.extras import pip_install
from emendo.models import EditableModel
from emendo.progress import Progress
from emendo.statistics.openings import OPENINGS, OpeningsCorpus
from emendo.statistics.packing import pack
from emendo.statistics.sample import SELF, SelfSampledCorpus

OWN_TEXT = frozenset({SELF, OPENINGS})
"""Names of the sources that the model writes itself, so that nothing is read or downloaded for them."""

_SUFFIXES = (".txt", ".jsonl")
_SHUFFLE_BUFFER = 1_000
_BLOCK_CHARACTERS = 20_000
"""A plain text file is tokenised in whole lines of about this many characters."""


@runtime_checkable
class Corpus(Protocol):
    """A source of token sequences."""

    def describe(self) -> dict[str, Any]:
        """Everything that determines the text, JSON-ready: equal descriptions mean equal text."""

    def sampled_tokens(self, *, length: int, count: int, start: int = 0) -> int:
        """How many tokens `sequences` has the model write, and reports as progress, for these arguments."""

    def sequences(
        self,
        lm: EditableModel,
        *,
        length: int,
        count: int,
        start: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[list[int]]:
        """Token sequences number `start` to ``count - 1``, always the same ones.

        Args:
            lm: The model whose tokens they are.
            length: Tokens of a sequence, the model's BOS included; only the last of a text may be shorter.
            count: How many sequences are needed in all.
            start: First sequence to yield.
            progress: Advanced by the number of sampled tokens where text is sampled.
        """


class GivenText(ABC):
    """Text that exists already, as documents whose tokens are packed into sequences."""

    @abstractmethod
    def documents(self, lm: EditableModel) -> Iterable[Iterable[int]]:
        """Tokens of each document, read as they are needed.

        Raises:
            CorpusError: The text cannot be read, or part of it is not what it should be.
        """

    def sampled_tokens(self, *, length: int, count: int, start: int = 0) -> int:
        """None: the text is given."""
        return 0

    def sequences(
        self,
        lm: EditableModel,
        *,
        length: int,
        count: int,
        start: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[list[int]]:
        """See `Corpus.sequences`; raises as `documents`."""
        yield from islice(pack(self.documents(lm), lm, length), start, count)


@dataclass(frozen=True)
class TextCorpus(GivenText):
    """A UTF-8 text file.

    ``.jsonl``: one JSON object a line, one document each, in a seeded random order, because files are often
    sorted and only their beginning may be needed. ``.txt``: one running document, in file order; blank
    lines are part of the text.

    Args:
        path: The file.
        field: Name of the text field in a ``.jsonl`` file.
        seed: Seed of the document order of a ``.jsonl`` file; None keeps the file's order.
    """

    path: str | Path
    field: str = "text"
    seed: Seed | None = 0

    def __post_init__(self) -> None:
        check_fields(self, CorpusError)

    def describe(self) -> dict[str, Any]:
        """Digest of the file's bytes; for JSONL also the field and the order. The path does not matter."""
        described: dict[str, Any] = {"kind": "text", "sha256": self._digest()}
        if self._is_jsonl:
            described |= {"field": self.field, "seed": self.seed}
        return described

    def documents(self, lm: EditableModel) -> Iterable[Iterable[int]]:
        """Lines of a ``.jsonl`` file, or a ``.txt`` file as one document."""
        self._checked_path()
        if self._is_jsonl:
            return map(lm.encode_bare, self._records())
        return [chain.from_iterable(map(lm.encode_bare, self._blocks()))]

    def _digest(self) -> str:
        """Digest of the file; remembered for as long as the file has the same size, time of change and number."""
        path = self._checked_path()
        found = path.stat()
        stamp = (found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)
        known = self.__dict__.get("_known")
        if known is None or known[0] != stamp:
            known = (stamp, _file_digest(path))
            self.__dict__["_known"] = known  # beside the fields: the description itself does not change
        return str(known[1])

    @property
    def _is_jsonl(self) -> bool:
        return Path(self.path).suffix.lower() == ".jsonl"

    def _checked_path(self) -> Path:
        path = Path(self.path).expanduser()
        if not path.name.lower().endswith(_SUFFIXES):
            raise CorpusError(f"{path}: expected a .txt or .jsonl file (--corpus)")
        if not path.is_file():
            raise CorpusError(f"no text file at {path} (--corpus)")
        return path

    def _records(self) -> Iterator[str]:
        """The text field of every line, in the seeded order, read one line at a time."""
        path = self._checked_path()
        with path.open("rb") as file:
            starts, offset = [], 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    starts.append((number, offset))
                offset += len(line)
            if self.seed is not None:
                random.Random(self.seed).shuffle(starts)
            for number, position in starts:
                file.seek(position)
                yield self._text_of(file.readline(), f"{path} line {number}")

    def _text_of(self, line: bytes, where: str) -> str:
        try:
            record = json.loads(line)
        except ValueError as error:  # includes UnicodeDecodeError
            raise CorpusError(f"{where} is not JSON: {error}. Correct or remove the line") from error
        return _text_field(record, self.field, where)

    def _blocks(self) -> Iterator[str]:
        path = self._checked_path()
        block: list[str] = []
        size = 0
        try:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    block.append(line)
                    size += len(line)
                    if size >= _BLOCK_CHARACTERS:
                        yield "".join(block)
                        block, size = [], 0
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path} is not UTF-8 text: {error}. Convert it first") from error
        if block:
            yield "".join(block)


@dataclass(frozen=True)
class DatasetCorpus(GivenText):
    """A dataset from the Hugging Face hub, or a local dataset folder, through the `datasets` library.

    Rows are streamed, so that the first thousand documents of Wikipedia do not fetch all of it, in the order of
    the library's seeded buffered shuffle.

    Args:
        id: Dataset id, such as ``"wikimedia/wikipedia"``, or a local folder.
        config: Configuration name, such as ``"20231101.en"``.
        split: Split name.
        field: Name of the text column.
        revision: Commit, tag or branch of the dataset; pin a commit to make a cached moment reusable offline.
        seed: Seed of the shuffle; None keeps the dataset's order.
    """

    id: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    revision: str | None = None
    seed: Seed | None = 0

    def __post_init__(self) -> None:
        check_fields(self, CorpusError)

    def describe(self) -> dict[str, Any]:
        """The arguments and the library's own hash of the dataset's version and files."""
        return {
            "kind": "dataset",
            "id": self.id,
            "config": self.config,
            "split": self.split,
            "field": self.field,
            "revision": self.revision,
            "seed": self.seed,
            "sha256": self._content_digest(),
        }

    def documents(self, lm: EditableModel) -> Iterable[Iterable[int]]:
        """One a row."""
        return map(lm.encode_bare, self._texts())

    def _texts(self) -> Iterator[str]:
        builder = self._builder
        try:
            rows = builder.as_streaming_dataset(split=self.split)
        except ValueError as error:
            raise CorpusError(f"dataset {self.id!r}, split {self.split!r}: {error} (--split)") from error
        if self.seed is not None:
            rows = rows.shuffle(seed=self.seed, buffer_size=_SHUFFLE_BUFFER)
        for number, row in enumerate(rows):
            yield _text_field(row, self.field, f"dataset {self.id!r} row {number}")

    @cached_property
    def _builder(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise CorpusError(
                f"reading the dataset {self.id!r} needs the package datasets: {pip_install('data')}"
            ) from error
        try:
            return datasets.load_dataset_builder(self.id, self.config, revision=self.revision)
        except Exception as error:  # the library raises many kinds, network ones among them
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise CorpusError(
                f"cannot open the dataset {self.id!r} (config {self.config!r}, revision {self.revision!r}): "
                f"{first}. Check the id and the network, or give a local .jsonl file (--corpus)"
            ) from error

    def _content_digest(self) -> str:
        builder = self._builder
        identity = [str(builder.info.version), builder.config_id if self.config else None, builder.hash]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


@checked
def open_corpus(
    source: str,
    *,
    field: str = "text",
    split: str = "train",
    revision: str | None = None,
    seed: Seed = 0,
) -> Corpus:
    """The corpus that a command line or a method's configuration names.

    Args:
        source: ``"self"`` (sampled from the model), ``"kinds"`` (sampled after openings of many languages and forms), a
            ``.txt`` or ``.jsonl`` file, or a dataset as ``"hf:ID"`` or ``"hf:ID:CONFIG"``.
        field: Text field of a JSONL file or dataset.
        split: Split of a dataset.
        revision: Revision of a dataset.
        seed: Seed of the sampling or of the document order.

    Raises:
        CorpusError: None of these, or a file that does not exist.
    """
    if source == SELF:
        return SelfSampledCorpus(seed=seed)
    if source == OPENINGS:
        return OpeningsCorpus(seed=seed)
    if source.startswith("hf:"):
        name, _, config = source.removeprefix("hf:").partition(":")
        return DatasetCorpus(name, config or None, split, field, revision, seed)
    if not source.lower().endswith(_SUFFIXES):
        raise CorpusError(
            f"unknown source of text {source!r}; expected 'self', 'kinds', a .txt or .jsonl file, or hf:ID (--corpus)"
        )
    corpus = TextCorpus(Path(source), field, seed)
    corpus._checked_path()
    return corpus


def _text_field(record: Any, field: str, where: str) -> str:
    if not isinstance(record, dict) or field not in record:
        found = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise CorpusError(f"{where} has no field {field!r}; found: {found} (--field)")
    if not isinstance(record[field], str):
        raise CorpusError(f"{where}: field {field!r} holds {type(record[field]).__name__}, expected text (--field)")
    return str(record[field])


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
