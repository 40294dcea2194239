"""Answers of snapshots on the disk, so that a second try of an edit, or its gate, asks only what is new.

An answer depends on the weights (the base and the updates in it), on the question and on the code; all of that names
its file. A file that cannot be read is asked again, and one that cannot be written is not kept: neither is an error.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from emendo.errors import InputError, OutputError
from emendo.evaluate.drift import NextTokenLogProbs
from emendo.evaluate.metrics import PromptScore, RecordScore, TargetScore
from emendo.evaluate.perplexity import Perplexity
from emendo.evaluate.said import SaidRecord
from emendo.evaluate.said_probes import SaidProbe, rows_of
from emendo.evaluate.text_drift import TextTokens
from emendo.io.home import emendo_home
from emendo.io.tensor_file import TensorFileFormat, read_tensor_file, write_tensor_file
from emendo.io.versions import versions
from emendo.models import EditableModel
from emendo.models.identity import template_sha256

ANSWERS = 1
"""Of how questions are asked and answered: raised where the same state would give another answer."""

MOST_STATES = 24
"""States of models that are kept; the oldest ones go."""

_FORMAT = TensorFileFormat("emendo.answer", 1, InputError, "delete it: the question is then asked again")

_Stored = tuple[Any, Mapping[str, Tensor]]


@dataclass(frozen=True)
class _Kind:
    """How answers to one kind of question are stored and read.

    Attributes:
        store: JSON values and tensors.
        read: The answer from them, and the model that gives its unembedding.
    """

    store: Callable[[Any], _Stored]
    read: Callable[[Any, Mapping[str, Tensor], EditableModel], Any]


class RememberedAnswers:
    """What is known of one state of a model.

    Args:
        model: The model; it gives the base's identity and the unembedding.
        updates: Identities of the updates that the state has, in order.
        home: Where states are kept; None: under EMENDO_HOME.

    Attributes:
        state: Names the state.
    """

    def __init__(self, model: EditableModel, updates: Sequence[str], home: Path | None = None) -> None:
        self._model = model
        libraries = {name: version for name, version in versions().items() if name != "python"}
        state = {
            "answers": ANSWERS,
            "weights": model.weights_digest(),
            "config": model.config_digest(),
            "tokenizer": model.tokenizer_digest(),
            "template": template_sha256(model.tokenizer),
            "dtype": str(model.dtype),
            "device": model.device.type,
            "versions": libraries,
            "updates": list(updates),
        }
        self._home = home or emendo_home() / "answers"
        self.state = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:32]
        self._folder = self._home / self.state

    def read(self, question: Hashable) -> Any | None:
        """The answer to a question; None where it is not known."""
        kind = _kind(question)
        path = self._path(question)
        if kind is None or not path.is_file():
            return None
        try:
            tensors, header = read_tensor_file(path, _FORMAT)
            if header["question"] != _digest(question):
                return None
            return kind.read(header["answer"], tensors, self._model)
        except (InputError, OSError, KeyError, TypeError, ValueError):
            return None

    def keep(self, question: Hashable, answer: Any) -> None:
        """Keep an answer, where its kind can be kept and the folder be written."""
        kind = _kind(question)
        if kind is None:
            return
        values, tensors = kind.store(answer)
        with suppress(OutputError, InputError):
            new = not self._folder.is_dir()
            write_tensor_file(self._path(question), _FORMAT, tensors, {"question": _digest(question), "answer": values})
            if new:
                self._forget_older()

    def _path(self, question: Hashable) -> Path:
        return self._folder / f"{_digest(question)[:32]}.safetensors"

    def _forget_older(self) -> None:
        with suppress(OSError):
            states = sorted((path for path in self._home.iterdir() if path.is_dir()), key=lambda p: p.stat().st_mtime)
            for old in states[: max(0, len(states) - MOST_STATES)]:
                shutil.rmtree(old, ignore_errors=True)


def _digest(question: Hashable) -> str:
    """SHA-256 of a question: of texts, numbers and dataclasses of them, whose representation is the same everywhere."""
    return hashlib.sha256(repr(question).encode()).hexdigest()


def _kind(question: Hashable) -> _Kind | None:
    name = question[0] if isinstance(question, tuple) and question else question
    return _KINDS.get(name) if isinstance(name, str) else None


def _target(row: Mapping[str, Any] | None) -> TargetScore | None:
    return None if row is None else TargetScore(**row)


def _prompts(rows: Sequence[Mapping[str, Any]]) -> tuple[PromptScore, ...]:
    return tuple(PromptScore(row["prompt"], TargetScore(**row["target"]), _target(row["target_true"])) for row in rows)


def _record(row: Mapping[str, Any]) -> RecordScore:
    groups = {name: _prompts(row[name]) for name in ("efficacy", "paraphrase", "neighborhood")}
    return RecordScore(row["id"], row["target"], row["target_true"], **groups)


def _ids(rows: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, rows))


_KINDS: dict[str, _Kind] = {
    "scores": _Kind(
        lambda records: ([record.to_dict() for record in records], {}),
        lambda rows, _, __: tuple(map(_record, rows)),
    ),
    "said": _Kind(
        lambda records: ([record.to_dict() for record in records], {}),
        lambda rows, _, __: tuple(map(SaidRecord.from_dict, rows)),
    ),
    "said probes": _Kind(
        lambda records: (rows_of(records), {}),
        lambda rows, _, __: tuple(tuple(map(SaidProbe.from_dict, row)) for row in rows),
    ),
    "perplexity": _Kind(lambda found: (asdict(found), {}), lambda row, _, __: Perplexity(**row)),
    "values": _Kind(lambda values: (values, {}), lambda values, _, __: values),
    "continuations": _Kind(lambda texts: (list(texts), {}), lambda texts, _, __: tuple(texts)),
    "next tokens": _Kind(
        lambda found: (
            list(found.places),
            {"hidden": found.hidden, "log_normalizer": found.log_normalizer, "top": found.top},
        ),
        lambda places, tensors, model: NextTokenLogProbs(tuple(places), **tensors, lm=model),
    ),
    "texts": _Kind(
        lambda found: (
            {"texts": found.texts, "places": found.places, "first": found.first},
            {"hidden": found.hidden},
        ),
        lambda row, tensors, model: TextTokens(
            _ids(row["texts"]),
            tuple((text, position) for text, position in row["places"]),
            tensors["hidden"],
            row["first"],
            model,
        ),
    ),
}
"""By the first word of a question; questions of other kinds are not kept."""
