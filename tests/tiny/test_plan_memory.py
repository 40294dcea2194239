"""A plan that is asked for again, under other limits, comes from the disk: the same to the last bit, or made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from emendo import EditableModel, EditRequest, EditSession, MethodConfig, register_distribution
from emendo.editing import plan_memory, session
from emendo.editing.plan import Plan
from emendo.editing.plan_memory import PlanMemory
from emendo.io import strict_json
from emendo.solve.distribution import DISTRIBUTIONS
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.quick_plans import EIFFEL, JAPAN, QUICK

Again = Callable[..., Plan]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every plan that the engine makes."""
    plans: list[int] = []
    engine = session.plan_edit

    def counted(*args: Any, **kwargs: Any) -> Plan:
        plans.append(1)
        return engine(*args, **kwargs)

    monkeypatch.setattr(session, "plan_edit", counted)
    return plans


@pytest.fixture
def again(tmp_path: Path) -> Again:
    """Plans in a new session, as another run of the command does."""
    lm = build_tiny("llama")

    def plan(
        requests: list[EditRequest] | None = None,
        method: str | MethodConfig = "emmet",
        *,
        model: EditableModel = lm,
        seed: int = 0,
        folder: Path = tmp_path / "plans",
        layers: list[int] | None = None,
        **settings: Any,
    ) -> Plan:
        known = EditSession(model, seed=seed, store=MomentStore(tmp_path / "moments"), plans=PlanMemory(folder))
        more = {name.replace("__", "."): value for name, value in settings.items()}
        return known.plan(requests or [EIFFEL, JAPAN], method, layers=layers, settings={**QUICK, **more})

    return plan


def described(plan: Plan) -> Any:
    """All that a report or an update says of a plan."""
    layers = [layer.to_dict() for layer in plan.layers]
    return strict_json.loads(
        strict_json.dumps([plan.update.id, plan.update.info, layers, plan.warnings, plan.contexts])
    )


def test_a_second_plan_is_the_first(again: Again, made: list[int]) -> None:
    first, second = again(), again()
    assert made == [1]
    assert second.update.id == first.update.id
    assert described(second) == described(first)
    assert (second.targets, second.layers, second.method) == (first.targets, first.layers, first.method)
    assert second.requests == first.requests


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"requests": [EIFFEL]},
        {"requests": [JAPAN, EIFFEL]},
        {"method": "memit", "memorization__share": None},
        {"target__steps": 5},
        {"layers": [1]},
        {"moments__multiple": 5},
        {"contexts__scheme": "none"},
        {"model": build_tiny("llama", seed=1)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_whatever_it_depends_on_makes_another(again: Again, made: list[int], other: dict[str, Any]) -> None:
    again()
    again(**other)
    assert made == [1, 1]


def test_other_code_makes_another(again: Again, made: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    again()
    monkeypatch.setattr(plan_memory, "code_sha256", lambda: "0" * 64)
    again()
    assert made == [1, 1]


@contextmanager
def distribution_of_others() -> Iterator[str]:
    class Last(type(DISTRIBUTIONS["even"])):  # type: ignore[misc]
        name = "last-of-others"

    register_distribution(Last())
    try:
        yield "last-of-others"
    finally:
        DISTRIBUTIONS.unregister("last-of-others")


def test_code_of_others_is_not_remembered(again: Again, made: list[int]) -> None:
    with distribution_of_others() as name:
        again(distribution=name)
        again(distribution=name)
    assert made == [1, 1]


def test_a_model_with_edits_is_planned_on_as_it_is(tmp_path: Path, made: list[int]) -> None:
    known = EditSession(
        build_tiny("llama"), store=MomentStore(tmp_path / "moments"), plans=PlanMemory(tmp_path / "plans")
    )
    first = known.plan([EIFFEL], "emmet", settings=QUICK)
    known.apply(first)
    second = known.plan([EIFFEL], "emmet", settings=QUICK)
    assert made == [1, 1]
    assert second.update.preceding != first.update.preceding


def test_a_file_that_is_damaged_or_of_another_plan_is_made_again(again: Again, made: list[int], tmp_path: Path) -> None:
    first = again()
    (path,) = (tmp_path / "plans").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert again().update.id == first.update.id
    assert path.read_bytes() != whole[:-1]
    again([EIFFEL])
    (other,) = {*(tmp_path / "plans").iterdir()} - {path}
    path.write_bytes(other.read_bytes())  # a sound file, under a name that is not its own
    assert again().update.id == first.update.id
    assert made == [1, 1, 1, 1]


def test_a_folder_that_cannot_be_written_is_no_error(again: Again, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert again(folder=tmp_path / "file" / "plans").update.layers


def test_the_oldest_plans_go(again: Again, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_memory, "MOST_PLANS", 2)
    for seed in range(4):
        again(seed=seed)
    assert len(list((tmp_path / "plans").iterdir())) == 2
    monkeypatch.setattr(plan_memory, "MOST_BYTES", 10)
    again(folder=tmp_path / "others")
    assert not (tmp_path / "others").exists()
