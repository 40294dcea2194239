"""Many cases that take a moment each, as one test: handing a test to a worker takes longer than such a case does."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def every(names: str | tuple[str, ...], cases: Iterable[Any], **_: Any) -> Callable[[Callable[..., None]], Any]:
    """`pytest.mark.parametrize` in one test: runs all cases, and fails with every case that does not hold.

    Args:
        names: Of the test's arguments: one, or several of which each case is a tuple.
        cases: Their values. Cases share the test's fixtures, so it has none that a case changes.
        _: What `parametrize` takes besides, such as `ids`; a case is named by its values here.
    """
    known = list(cases)
    given = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else names

    def decorate(test: Callable[..., None]) -> Any:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            failed = []
            for case in known:
                values = dict(zip(given, (case,) if len(given) == 1 else case, strict=True))
                try:
                    test(**fixtures, **values)
                except (Exception, pytest.fail.Exception):
                    failed.append(f"{values}\n{traceback.format_exc()}")
            assert known, "no cases"
            assert not failed, f"{len(failed)} of {len(known)} cases:\n" + "\n".join(failed[:5])

        kept = [parameter for name, parameter in signature.parameters.items() if name not in given]
        run.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return run

    return decorate
