"""A new public function is held to its arguments, or stands in the list below with the reason why it is not."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import emendo
from tests.public_functions import PACKAGES

INNER_ROOMS = {
    "emendo.arguments": "holds the arguments of the others",
    "emendo.cli": "commands; the fuzz of the commands calls them",
    "emendo.expansion": "for one command",
    "emendo.models.suffix": "the engine's own",
    "emendo.parallel": "workers, which commands start",
    "emendo.report.layers": "the page of one command",
    "emendo.ui": "the page, whose guard and desk have tests of their own",
    "emendo.worlds": "experiments with models that are trained on made-up worlds",
}
"""Packages that export names for Emendo's own rooms only."""

OF_A_METHOD = "hooks that Emendo calls on methods of one's own"
OF_A_ROW = "readers of formats use it on rows that have been read"
OF_A_CORPUS = "called while second moments are collected, whose arguments were held before"
OF_A_RESULT = "looks something up in a result"
OF_A_MIXTURE = "pieces of the algebra of mixtures, between two checked functions"
OF_A_DOCUMENT = "reads a document that Emendo has written"
OWN_WORDS = "refuses in words of its own, all problems at once"

UNCHECKED = {
    **dict.fromkeys(
        (
            *("Method.default_layers", "Method.with_layers", "Method.family_settings", "Method.check_model"),
            *("Method.check_given", "Method.evaluation_prompts", "Method.with_own_lambda"),
        ),
        OF_A_METHOD,
    ),
    **dict.fromkeys(("DataFormat.recognises", "Fields"), OF_A_ROW),
    **dict.fromkeys(
        (
            "Corpus",
            "DatasetCorpus",
            "TextCorpus",
            "SampledText",
            "SelfSampledCorpus",
            "OpeningsCorpus",
            "GivenText",
            "Corpora.open",
        ),
        OF_A_CORPUS,
    ),
    **dict.fromkeys(
        (
            *("Difference.own", "Compared.within", "Cell.get", "Cell.number", "Chat.around", "Capture.keys_at"),
            *("Measures.wanted", "StoredEdit.without", "Predecessors"),
        ),
        OF_A_RESULT,
    ),
    **dict.fromkeys(("BlockMoment", "KeySample", "ExpertSecondMoment", "PreparedLayer.refuse_starved"), OF_A_MIXTURE),
    **dict.fromkeys(
        (
            *("SaidRecord.from_dict", "recorded_metrics", "report_document", "score_table", "target_table"),
            *("verdict_of", "with_judgement", "said_means"),
        ),
        OF_A_DOCUMENT,
    ),
    **dict.fromkeys(("reading", "base_rates", "norm", "singular_values", "stable_rank"), "arrays, of NumPy or torch"),
    **dict.fromkeys(("requests_of", "GateConfig.model_post_init"), OWN_WORDS),
    **dict.fromkeys(
        ("Snapshot.asked", "Snapshot.compared", "Snapshot.text_tokens"), "takes functions; gate checks use it"
    ),
    **dict.fromkeys(("ServerClient", "Experiment.run"), "what commands build from arguments that were held before"),
    "forget_parts": "removes the folder that `trace` was given",
    **dict.fromkeys(("CanaryText.encode", "CheckConfig.limit_for", "GrowingConfig.limit_for"), "called by the gate"),
    "adding": "the engine's hook, inside an isolated model",
    "DecoderView.put_back": "takes what `original()` gave",
    "HeldModel.__init__": "EditSession's own is held",
    "RunnableModel.__init__": "EditableModel's own is held",
    "TextModel.__init__": "EditableModel's own is held",
}
"""Public functions without `@checked` by name, or by the class whose functions all are, and why."""


def functions() -> Iterator[tuple[str, Any]]:
    """Every public function with arguments, and the methods of public classes under the class that defines them."""
    for package in map(importlib.import_module, PACKAGES):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value):
                yield name, value
            elif inspect.isclass(value) and value.__module__.startswith("emendo"):
                for kind in value.__mro__:
                    if kind.__module__.startswith("emendo"):
                        yield from _methods(kind)


def _methods(kind: type) -> Iterator[tuple[str, Any]]:
    for key, entry in vars(kind).items():
        function = entry.__func__ if isinstance(entry, classmethod | staticmethod) else entry
        made = key == "__init__" and dataclasses.is_dataclass(kind)
        if inspect.isfunction(function) and not made and (key == "__init__" or not key.startswith("_")):
            yield f"{kind.__name__}.{key}", function


def test_every_public_function_is_held_to_its_arguments() -> None:
    unchecked = {
        name
        for name, function in functions()
        if not hasattr(function, "__checked__") and set(inspect.signature(function).parameters) - {"self", "cls"}
    }
    told = {name: _names_of(name) & set(UNCHECKED) for name in unchecked}
    assert [name for name in unchecked if not told[name]] == [], "decorate it with `checked`, or add it to UNCHECKED"
    assert set(UNCHECKED) == set().union(*told.values()), "no longer there, or checked: take it out"


def _names_of(name: str) -> set[str]:
    """What stands for a function in the list: its name, its class, and both of the classes that this one is of."""
    owner, _, method = name.partition(".")
    bases = {base.__name__ for key, kind in public_classes() if key == owner for base in kind.__mro__}
    return {name, owner, *bases, *(f"{base}.{method}" for base in bases)}


def public_classes() -> list[tuple[str, type]]:
    found = {}
    for package in map(importlib.import_module, PACKAGES):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isclass(value) and value.__module__.startswith("emendo"):
                found.update({kind.__name__: kind for kind in value.__mro__ if kind.__module__.startswith("emendo")})
    return list(found.items())


def test_dataclasses_that_callers_make_hold_their_fields() -> None:
    """Fields under ``Args:`` are the caller's to give; under ``Attributes:`` they are Emendo's results."""
    loose = [
        name
        for name, kind in public_classes()
        if dataclasses.is_dataclass(kind)
        and "\n    Args:" in (kind.__doc__ or "")
        and "__post_init__" not in vars(kind)
        and not any("__post_init__" in vars(base) for base in kind.__mro__)
    ]
    assert sorted(loose) == sorted(LOOSE)


LOOSE = {
    **dict.fromkeys(("Axes", "DataFormat", "ArchitectureSpec"), "rows of a table, looked at when they are registered"),
    **dict.fromkeys(("Fingerprint", "MomentHeader", "StoreEntry", "StoredMoment"), "read from checked files"),
    **dict.fromkeys(("MixturePart", "Predecessors", "Context"), "made by functions that check"),
    "TokenBatch": "made by `pad`; the model says what does not fit",
}
"""Dataclasses with ``Args:`` that look at nothing, and why."""


def test_every_package_with_public_names_is_looked_at() -> None:
    packages = {
        module.name
        for module in pkgutil.walk_packages(emendo.__path__, "emendo.")
        if module.ispkg and hasattr(importlib.import_module(module.name), "__all__")
    }
    missed = {
        name
        for name in packages - set(PACKAGES)
        if not any(name == room or name.startswith(f"{room}.") for room in INNER_ROOMS)
    }
    assert missed == set(), "add it to PACKAGES of tests/public_functions.py, or to INNER_ROOMS with a reason"
