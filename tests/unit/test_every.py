"""Cases that are one test: all of them run, each that fails is named, and fixtures are those of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.every import every


def test_every_case_runs_and_all_that_fail_are_named() -> None:
    seen = []

    @every(("number", "double"), [(1, 2), (2, 5), (3, 6), (4, 9)])
    def doubles(number: int, double: int) -> None:
        seen.append(number)
        assert 2 * number == double
        with pytest.raises(ZeroDivisionError):
            _ = 1 / (number - 3)

    with pytest.raises(AssertionError, match=r"3 of 4 cases[\s\S]*'number': 1[\s\S]*'double': 5"):
        doubles()
    assert seen == [1, 2, 3, 4]


def test_no_case_is_a_fault() -> None:
    @every("number", [])
    def nothing(number: int) -> None:
        raise AssertionError

    with pytest.raises(AssertionError, match="no cases"):
        nothing()


@every("name", ["a", "b"])
def test_fixtures_come_as_ever(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(name)
    assert {path.name for path in tmp_path.iterdir()} <= {"a", "b"}
