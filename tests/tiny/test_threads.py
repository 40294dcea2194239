"""Other threads use the model while it is planned on, looked at and written: what they get is never wrong."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from emendo.editing.session import EditSession
from emendo.errors import InputError, ModelBusyError
from emendo.evaluate import evaluate_records
from emendo.gate import run_gate
from emendo.models import EditableModel, wrap
from emendo.report import judge
from emendo.requests import EditRecord
from emendo.statistics import MomentStore
from tests.model_state import changes, model_state
from tests.quick_plans import EIFFEL, JAPAN, QUICK, quick_plan

pytestmark = pytest.mark.crash

IDS = torch.randint(2, 300, (4, 40), generator=torch.Generator().manual_seed(0))


def logits(lm: EditableModel) -> Tensor:
    with torch.no_grad():
        return lm.model(IDS).logits


@contextmanager
def serving(lm: EditableModel, allowed: list[Tensor], servers: int = 2) -> Iterator[list[int]]:
    """Threads that answer all the time; every answer has to be one of these, bit for bit."""
    stop, answers, wrong = threading.Event(), [0] * servers, list[Any]()

    def serve(number: int) -> None:
        while not stop.is_set():
            try:
                found = logits(lm)
            except BaseException as error:
                wrong.append(error)
                return
            answers[number] += 1
            if not any(torch.equal(found, right) for right in allowed):
                wrong.append(float((found - allowed[0]).norm()))
                return

    threads = [threading.Thread(target=serve, args=(number,), daemon=True) for number in range(servers)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
    assert wrong == []
    assert all(answers)


@pytest.mark.parametrize("method", ["memit", "lora", "ft-l"])
def test_answers_are_right_while_plans_are_made(method: str, session: EditSession) -> None:
    settings = QUICK if method == "memit" else {}
    if method == "lora":
        pytest.importorskip("peft")
    alone = session.plan([EIFFEL], method, settings=settings).update
    with serving(session.lm, [logits(session.lm)]) as answers:
        while sum(answers) < 60:
            assert session.plan([EIFFEL], method, settings=settings).update.id == alone.id


@pytest.mark.slow
def test_a_thousand_answers_during_fifty_plans(session: EditSession) -> None:
    plans = 0
    with serving(session.lm, [logits(session.lm)]) as answers:
        while plans < 50 or sum(answers) < 1000:
            quick_plan(session, [EIFFEL], "memit")
            plans += 1


def test_answers_are_right_while_an_edit_is_judged(session: EditSession) -> None:
    records = [EditRecord(EIFFEL, neighborhood_prompts=("The capital of Italy is",))]
    session.apply(quick_plan(session, [JAPAN]).update)
    plan = quick_plan(session, [EIFFEL])
    with serving(session.lm, [logits(session.lm)]):
        judge(session, plan, records)
        run_gate(session, plan, records)
        evaluate_records(session.lm, records)
        session.lm.generate("The capital of Japan is", 3)


def test_an_answer_sees_all_of_a_write_or_nothing_of_it(session: EditSession) -> None:
    update = quick_plan(session, [EIFFEL], "memit", layers=[0, 1, 2]).update
    base = logits(session.lm)
    with session.applied(update):
        edited = logits(session.lm)
    assert not torch.equal(base, edited)
    with serving(session.lm, [base, edited]) as answers:
        while sum(answers) < 60:
            session.apply(update)
            session.rollback()
            with session.applied(update):
                pass
    assert torch.equal(logits(session.lm), base)


def test_a_write_waits_for_a_pass_that_is_under_way(session: EditSession) -> None:
    """And a pass that begins meanwhile waits for the write."""
    update, base = quick_plan(session, [EIFFEL], "memit", layers=[0, 1, 2]).update, logits(session.lm)
    inside, go_on, found = threading.Event(), threading.Event(), dict[str, Tensor]()  # threads end in any order

    def pause(module: Any, args: Any) -> None:
        if threading.current_thread() is slow:
            inside.set()
            assert go_on.wait(60)

    session.lm.blocks[1].register_forward_pre_hook(pause)
    slow = threading.Thread(target=lambda: found.update(slow=logits(session.lm)))
    slow.start()
    assert inside.wait(60)
    writer = threading.Thread(target=session.apply, args=(update,))
    writer.start()
    late = threading.Thread(target=lambda: found.update(late=logits(session.lm)))
    time.sleep(0.1)
    late.start()
    time.sleep(0.1)
    assert writer.is_alive()
    assert late.is_alive()
    assert torch.equal(session.lm.weight(0), session.lm.base_weight(0))
    go_on.set()
    for thread in (slow, writer, late):
        thread.join(60)
    assert torch.equal(found["slow"], base)
    assert torch.equal(found["late"], logits(session.lm))
    assert not torch.equal(found["late"], base)


def test_a_pass_that_one_write_held_back_is_waited_for_by_the_next(
    session: EditSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has met its gate already, so the next write cannot hold it back: it must not begin before that pass ends."""
    update, base = quick_plan(session, [EIFFEL], "memit", layers=[0, 1, 2]).update, logits(session.lm)
    held, go_on, found, sleep = threading.Event(), threading.Event(), list[Tensor](), time.sleep

    def slow(seconds: float) -> None:
        if threading.current_thread() is passing:
            held.set()
            assert go_on.wait(60)
        sleep(seconds)

    passing = threading.Thread(target=lambda: found.append(logits(session.lm)))
    monkeypatch.setattr("emendo.models.access.time.sleep", slow)
    access = session.lm.access
    with access.turn(), access.writing():
        passing.start()
        assert held.wait(60)
    writer = threading.Thread(target=session.apply, args=(update,))
    writer.start()
    sleep(0.2)
    assert writer.is_alive()
    assert torch.equal(session.lm.weight(0), session.lm.base_weight(0))
    go_on.set()
    for thread in (passing, writer):
        thread.join(60)
    assert torch.equal(found[0], base)


def test_an_error_in_a_pass_lets_the_write_go_on(session: EditSession) -> None:
    update = quick_plan(session, [EIFFEL]).update
    handle = session.lm.blocks[0].register_forward_pre_hook(lambda module, args: 1 / 0)

    def broken() -> None:
        with pytest.raises(ZeroDivisionError):
            logits(session.lm)

    thread = threading.Thread(target=broken)
    thread.start()
    thread.join(60)
    handle.remove()
    session.apply(update)
    session.rollback()


def test_sessions_in_threads_plan_as_they_do_alone(session: EditSession, store: MomentStore) -> None:
    alone = quick_plan(session, [EIFFEL], "memit").update.id

    async def together() -> list[str]:
        def plan() -> str:
            return quick_plan(EditSession(session.lm, store=store), [EIFFEL], "memit").update.id

        return await asyncio.gather(*(asyncio.to_thread(plan) for _ in range(3)))

    assert asyncio.run(together()) == [alone] * 3


def test_a_write_waits_for_the_plan_of_another_session(session: EditSession, store: MomentStore) -> None:
    """Also through another adapter of the same model."""
    update = quick_plan(session, [JAPAN]).update
    alone = quick_plan(session, [EIFFEL], "memit").update.id
    began, seen, found = threading.Event(), [], []

    class Told:
        def start(self, stage: str, total: int | None = None) -> None:
            if stage == "targets":
                began.set()
                time.sleep(0.2)
                seen.append(session.lm.weight(update.layers[0].layer).clone())

        def advance(self, n: int = 1) -> None: ...

        def finish(self) -> None: ...

    other = EditSession(wrap(session.lm.model, session.lm.tokenizer, session.lm.name), store=store, progress=Told())
    before = session.lm.weight(update.layers[0].layer).clone()
    thread = threading.Thread(target=lambda: found.append(quick_plan(other, [EIFFEL], "memit").update.id))
    thread.start()
    assert began.wait(60)
    session.apply(update)
    thread.join(60)
    assert torch.equal(seen[0], before)
    assert found == [alone]


def test_two_threads_that_would_wait_for_each_other_are_told(session: EditSession) -> None:
    first, caught = quick_plan(session, [JAPAN]).update, []
    reading, writing = threading.Event(), threading.Event()

    def inside() -> None:
        with session.lm.isolated():
            reading.set()
            assert writing.wait(60)
            time.sleep(0.2)
            try:
                session.rollback()
            except ModelBusyError as error:
                caught.append(str(error))

    thread = threading.Thread(target=inside)
    thread.start()
    assert reading.wait(60)
    writing.set()
    session.apply(first)
    thread.join(60)
    assert len(caught) == 1
    assert session.applied_updates == (first,)
    session.rollback()


STAGES: dict[str, Callable[[EditSession], object]] = {
    "memit": lambda session: quick_plan(session, [EIFFEL], "memit"),
    "one by one": lambda session: quick_plan(session, [EIFFEL, JAPAN], "rome"),
    "lora": lambda session: session.plan([EIFFEL], "lora", settings={}),
    "ft-l": lambda session: session.plan([EIFFEL], "ft-l", settings={}),
    "evaluate": lambda session: evaluate_records(session.lm, [EditRecord(EIFFEL)], progress=session.progress),
}


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_done_to_the_model_at_any_stage(stage: str, tiny_llama: EditableModel, store: MomentStore) -> None:
    """Weights, hooks, flags, attention, random streams: they are untouched meanwhile, not only afterwards."""
    if stage == "lora":
        pytest.importorskip("peft")
    tiny_llama.model.train()
    before, looks = model_state(tiny_llama), []

    def look() -> None:
        looks.append([name for name in changes(before, model_state(tiny_llama)) if name != "grad_enabled"])

    class Looking:
        def start(self, stage: str, total: int | None = None) -> None:
            look()

        def advance(self, n: int = 1) -> None:
            look()

        def finish(self) -> None:
            look()

    STAGES[stage](EditSession(tiny_llama, store=store, progress=Looking()))
    assert len(looks) > 2
    assert not any(looks)


def test_a_copied_or_pickled_model_is_a_plain_one(session: EditSession) -> None:
    update, base = quick_plan(session, [EIFFEL]).update, logits(session.lm)
    session.apply(update)
    for again in (copy.deepcopy(session.lm.model), pickle.loads(pickle.dumps(session.lm.model))):
        with torch.no_grad():
            assert torch.equal(again(IDS).logits, logits(session.lm))
    session.rollback()
    with torch.no_grad():
        assert torch.equal(torch.nn.DataParallel(session.lm.model)(IDS).logits, base)


def test_an_isolated_model_is_no_way_to_write_the_model(session: EditSession) -> None:
    with session.preview([quick_plan(session, [EIFFEL]).update]) as edited:
        assert edited.holds_edits
        assert not session.lm.holds_edits
        with pytest.raises(InputError, match=r"isolated\(\[3\]\)"):
            edited.write(3, edited.weight(3))
        with pytest.raises(InputError, match="isolated view"):
            EditSession(edited)
