"""Every public function, given every wrong argument: taken, or refused in words; never an error from inside."""

from __future__ import annotations

import inspect
import signal
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emendo.editing.session import EditSession
from emendo.errors import EmendoError
from emendo.requests import EditRecord
from tests.public_functions import PUBLIC, arguments, values_of
from tests.quick_plans import EIFFEL

LONGEST = 30
"""Seconds of a call; the longest take one."""

TRIED = 4
"""Values of a parameter that a function takes and is called with: what it computes is the business of other tests."""

LONG = (
    *("generation", "entropy", "generate", "gate", "snapshot", "plan", "judge", "edit", "moments", "fit", "write"),
    *("difference", "evaluate"),
)
"""Functions that take long; there it is one for the function."""


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return values_of(tmp_path_factory.mktemp("values"))


def wrong(values: dict[str, Any]) -> Iterator[Any]:
    """What people hand over by mistake."""
    yield from (None, True, 7, -1, 0, 10**30, -(10**30), 0.5, -0.5, float("nan"), float("inf"), float("-inf"), 1e308)
    yield from ("", "text", "a\0b", "\ud800", "{}", b"x", Path("a\0b"), Path("nowhere"), object(), int, print)
    yield from ([], (), {}, set(), [None], ["text"], ["\ud800"], [7], [-1], [10**30], [[7]], [[]], [float("nan")])
    yield from ({"a": 1}, {1: None}, {-1: None}, (one for one in [7]), iter([]), np.zeros(3), np.zeros((2, 2)))
    yield from (torch.zeros(()), torch.zeros(3), torch.zeros(3, 3), torch.full((3,), 7), torch.empty(0))
    yield from (EIFFEL, [EIFFEL], EditRecord(EIFFEL), [EditRecord(EIFFEL)], [EIFFEL.to_dict()], EIFFEL.to_dict())
    yield from (
        values[name] for name in ("adapter", "model", "tokenizer", "session", "plan", "update", "store", "keys")
    )
    yield from ([values["plan"]], [values["update"]] * 2, [[values["update"]]], values["trace"], values["edits"])


def unseen(annotation: str, value: Any) -> bool:
    """What no check can see: what a function gives, what is in a generator, in a document that Emendo itself wrote."""
    of_a_document = isinstance(value, dict) and annotation in ("dict[str, Any]", "Mapping[str, Any]")
    return of_a_document or (callable(value) and "Callable" in annotation) or isinstance(value, Iterator)


def call(function: Callable[..., Any], given: dict[str, Any]) -> None:
    """Call it, and begin what it gives."""
    more = dict(given)
    first = [more.pop("self")] if "self" in more else []
    result = function(*first, **more)
    if hasattr(result, "__enter__"):
        with result:
            pass
    elif inspect.isgenerator(result):
        list(islice(result, 3))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_wrong_argument_is_taken_or_refused_in_words(
    name: str, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function, tests, right = PUBLIC[name], PUBLIC[name].__checked__(), arguments(name, values)
    assert all(test(right[parameter]) is None for parameter, test in tests.items() if parameter in right), "ill chosen"
    long, taken = any(word in name for word in LONG), 0
    for parameter, declared in inspect.signature(function).parameters.items():
        if parameter == "self" or declared.kind is declared.VAR_KEYWORD:
            continue
        refused, taken = False, taken if long else 0
        for value in wrong(values):
            if unseen(str(declared.annotation), value):
                continue
            fault = tests[parameter](value) if parameter in tests else None
            if refused and fault is not None:
                continue  # `checked` has been seen at work
            refused, taken = refused or fault is not None, taken + (fault is None)
            if taken > (1 if long else TRIED) and fault is None:
                continue
            try_one(name, {**right, parameter: value})
    session: EditSession = values["session"]
    session.rollback()


def try_one(name: str, given: dict[str, Any]) -> None:
    """Call a function: it does it, or says in words why not, and soon."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(PUBLIC[name], given)
    except EmendoError:
        pass
    except Exception as error:
        shown = {key: value for key, value in given.items() if key != "self"}
        raise AssertionError(f"{type(error).__name__} from inside {name}: {error}\n{shown!r:.500}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
