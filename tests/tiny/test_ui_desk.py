"""The desk of `emendo ui` without a browser: what a person does, in order, and what may go wrong meanwhile."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emendo.editing.session import EditSession
from emendo.errors import GateError, InputError, RequestError
from emendo.ledger import EditLedger
from emendo.models import load
from emendo.models.identity import parameters_sha256
from emendo.statistics import MomentStore
from emendo.ui import Desk, DeskSettings, Fact
from emendo.ui.jobs import Job, Worker
from emendo.ui.taking import own_folder
from tests.chat_templates import TEMPLATES
from tests.conftest import build_tiny
from tests.quick_plans import JAPAN, QUICK
from tests.tiny.conftest import Command

LENIENT = """
reference = "base"
[checks.efficacy]
limit = 0.0
[checks.perplexity_ratio]
limit = 1000.0
"""
STRICT = """
reference = "base"
[checks.perplexity_ratio]
limit = 0.5
"""
EIFFEL = Fact(
    "The Eiffel Tower is located in the city of",
    "The Eiffel Tower",
    "Rome",
    "Paris",
    ("The Eiffel Tower is in",),
    ("The capital of France is",),
)
QUICK_SETTINGS = {name: str(value) for name, value in QUICK.items()}


def begun(folder: Path, store: MomentStore | None, gate: str = LENIENT, model: str = "tiny") -> Desk:
    (folder / "gate.toml").write_text(gate, encoding="utf-8")
    # As the command loads it: weights that lie elsewhere in memory may give other last bits.
    lm = build_tiny("llama") if model == "tiny" else load(model, device="cpu")
    path = folder / "ledger"
    ledger = EditLedger(path) if path.exists() else EditLedger.create(path, EditSession(lm), who="tester")
    settings = DeskSettings(model, "emmet", None, QUICK_SETTINGS, str(folder / "gate.toml"))
    return Desk(lm, ledger, settings, store=store)


@pytest.fixture
def desk(tmp_path: Path, store: MomentStore) -> Iterator[Desk]:
    made = begun(tmp_path, store)
    yield made
    made.close()


def done(job: Job) -> Any:
    assert job.wait(120)
    assert job.state == "done", job.message
    return job.result


def weights(desk: Desk) -> str:
    return parameters_sha256(desk.session.lm.model)


def drafted(desk: Desk, fact: Fact = EIFFEL, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = done(desk.preview(fact, **options))
    return found


def test_a_fact_is_asked_written_kept_looked_into_and_undone_bitwise(desk: Desk) -> None:
    before, prompt = weights(desk), EIFFEL.prompt
    alone = done(desk.ask(prompt))
    assert alone["alone"]
    assert len(alone["prompts"][0]["first"]["top"]) == 5
    draft = drafted(desk)
    assert [row["kind"] for row in draft["rows"]] == ["own", "paraphrase", "neighbor"]
    assert draft["rows"][0]["fires"] > 0.5
    assert [check["name"] for check in draft["gate"]["checks"]] == ["efficacy", "perplexity_ratio"]
    assert weights(desk) == before, "a preview writes nothing"
    with_draft = done(desk.ask(prompt))
    assert with_draft["second"]["name"] == "the kept edits and the draft"
    record = done(desk.keep(draft["id"]))
    assert desk.ledger.record(record.id).details["metrics"]["said"]
    assert desk.state()["draft"] is None
    assert weights(desk) != before
    asked = done(desk.ask(prompt))["prompts"][0]
    assert asked["next_kl"] > 0
    assert asked["second"]["firing"][0]["firing"] == pytest.approx(draft["rows"][0]["fires"])
    carried = done(desk.carried(prompt, "Rome"))
    assert carried["largest"][0]["label"] == "The Eiffel Tower → Rome"
    done(desk.undo(record.id))
    assert weights(desk) == before
    assert done(desk.ask(prompt)) == alone
    verified = done(desk.verify())
    assert verified["ok"]
    assert verified["now"] == verified["base"] == before
    history = desk.state()["history"]
    assert [row["operation"] for row in history] == ["revert", "edit", "init"]
    assert not any(row["active"] for row in history)


def test_a_question_is_asked_written_and_explained_in_chat(
    tmp_path: Path, store: MomentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "Where is the Eiffel Tower?"
    desk = begun(tmp_path, store)
    monkeypatch.setattr(desk.session.lm.tokenizer, "chat_template", TEMPLATES["chatml"])
    try:
        assert desk.state()["model"]["chat"]
        raw, chat = (done(desk.ask(question, chat=chat))["prompts"][0] for chat in (False, True))
        assert (raw["chat"], chat["chat"]) == (False, True)
        assert raw["first"]["top"] != chat["first"]["top"], "the template is around it"
        fact = Fact.typed(
            *(question, "the Eiffel Tower", "Rome", "Paris"),
            *("In which city is the Eiffel Tower?\nThe Eiffel Tower is in", "Where is Big Ben?"),
            chat=True,
            system="Be brief.",
        )
        read = desk.read_fact(fact)
        assert not read["problem"]
        assert "".join(token["text"] for token in read["tokens"]).count("Be brief.") == 1
        draft = drafted(desk, fact)
        assert [(row["kind"], row["chat"]) for row in draft["rows"]] == [
            *(("own", True), ("paraphrase", True), ("paraphrase", False), ("neighbor", True))
        ], "a text that breaks off is continued"
        done(desk.keep(draft["id"]))
        assert done(desk.ask(question, chat=True))["prompts"][0]["next_kl"] > 0
        assert done(desk.carried(question, "Rome", chat=True))["largest"]
        first, *_ = [row["command"] for row in desk.state()["commands"]]
        assert "--chat" in first
    finally:
        desk.close()


def test_what_edits_need_is_made_ready_before_the_first_one(desk: Desk) -> None:
    done(desk.get_ready())
    stages: list[str] = []
    job = desk.preview(EIFFEL)
    while not job.wait(0.01):
        stages.append(job.stage)
    assert job.state == "done", job.message
    assert "second moments" not in stages
    desk.settings = replace(desk.settings, method="ft", settings={})
    done(desk.get_ready())


def test_what_a_fact_is_shows_before_anything_is_computed(desk: Desk) -> None:
    found = desk.read_fact(EIFFEL)
    (key,) = [token["text"] for token in found["tokens"] if token["key"]]
    assert key.strip()
    assert "The Eiffel Tower".endswith(key.strip())
    assert "".join(found["target"]).strip() == "Rome"
    assert not found["conflict"]
    done(desk.keep(drafted(desk)["id"]))
    same = desk.read_fact(EIFFEL)
    assert "Rome" in same["conflict"]
    assert not same["replaces"]
    other = desk.read_fact(Fact(EIFFEL.prompt, EIFFEL.subject, "Tokyo"))
    assert other["replaces"]
    assert "--replace" not in other["conflict"]
    assert "subject" in desk.read_fact(Fact("x", "", "y"))["problem"]
    assert "{}" in desk.read_fact(Fact("no such", "Tower", "Rome"))["problem"]


def test_a_gate_that_refuses_wants_the_confirmation_typed_and_records_it(tmp_path: Path, store: MomentStore) -> None:
    desk = begun(tmp_path, store, STRICT)
    try:
        draft = drafted(desk, message="ticket 12")
        assert draft["refused"]
        for typed in ("", "yes", "force Paris"):
            with pytest.raises(GateError, match="force Rome"):
                desk.keep(draft["id"], typed)
        record = done(desk.keep(draft["id"], " force Rome "))
        gate = desk.ledger.record(record.id).details["gate"]
        assert gate["forced"]
        assert gate["confirmed"]["typed"] == "force Rome"
        assert gate["confirmed"]["who"] == desk.ledger.who
        (row,) = [row for row in desk.state()["history"] if row["id"] == record.id]
        assert (row["forced"], row["confirmed"], row["message"]) == (True, "force Rome", "ticket 12")
        assert "--force" in desk.state()["commands"][0]["command"]
    finally:
        desk.close()


def test_a_second_writer_waits_and_is_told(desk: Desk) -> None:
    first, second = desk.preview(EIFFEL), desk.preview(Fact(JAPAN.prompt, JAPAN.subject, JAPAN.target))
    assert first.wait(120)
    assert second.wait(120)
    assert first.state == "done", first.message
    assert second.state == "failed"
    assert "a draft waits for a decision: The Eiffel Tower" in second.message
    with pytest.raises(InputError, match="no longer there"):
        desk.keep("0" * 64)
    assert desk.discard()
    assert not desk.discard()
    drafted(desk, Fact(JAPAN.prompt, JAPAN.subject, JAPAN.target))


def test_another_process_that_writes_is_waited_for_and_its_records_are_followed(desk: Desk, store: MomentStore) -> None:
    draft = drafted(desk)
    other = EditLedger(desk.ledger.store.folder, who="another")
    with other.store.locked("edit", timeout=5):
        waiting = desk.keep(draft["id"])
        assert not waiting.wait(1.5)
        assert "another" in waiting.message or "waiting for" in waiting.message
        assert desk.cancel(waiting.number)
        assert waiting.wait(30)
        assert waiting.state == "cancelled"
    session = other.session(build_tiny("llama"), store=store)
    other.edit(session, [JAPAN], "emmet", settings=QUICK)
    for _ in range(600):
        state = desk.state()
        if len(state["history"]) == 2 and not any(job["state"] in ("running", "waiting") for job in state["jobs"]):
            break
        threading.Event().wait(0.05)
    assert "Another process wrote 1 record" in state["notice"]
    assert state["draft"]["stale"]
    assert weights(desk) == parameters_sha256(session.lm.model)
    stale = desk.keep(draft["id"])
    assert stale.wait(120)
    assert stale.state == "failed"
    assert "was changed since this draft was planned" in stale.message
    assert len(other.log()) == 2
    assert weights(desk) == parameters_sha256(session.lm.model)


def test_a_cancelled_job_leaves_weights_and_ledger_as_they_were(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    done(desk.keep(drafted(desk)["id"]))
    before, records = weights(desk), len(desk.ledger.log())
    stages: list[str] = []
    start = Job.start

    def cancelling(job: Job, stage: str, total: int | None = None) -> None:
        stages.append(stage)
        if len(stages) == stop:
            desk.cancel(job.number)
        start(job, stage, total)

    monkeypatch.setattr(Job, "start", cancelling)
    for stop in (1, 2, 3, 6):
        stages.clear()
        job = desk.preview(Fact(JAPAN.prompt, JAPAN.subject, JAPAN.target))
        assert job.wait(120)
        assert job.state == "cancelled", (stop, stages, job.message)
        assert weights(desk) == before
        assert desk.state()["draft"] is None
    assert len(desk.ledger.log()) == records


def test_another_answer_takes_the_place_of_the_old_one(desk: Desk) -> None:
    done(desk.keep(drafted(desk)["id"]))
    tokyo = Fact(EIFFEL.prompt, EIFFEL.subject, "Tokyo")
    refused = desk.preview(tokyo)
    assert refused.wait(120)
    assert refused.state == "failed"
    assert "another target" in refused.message
    draft = drafted(desk, tokyo, replace_old=True)
    record = done(desk.keep(draft["id"]))
    assert desk.ledger.record(record.id).operation == "replace"
    assert [request.target for edit in desk.ledger.history().edits() for request in edit.requests.values()] == ["Tokyo"]
    done(desk.checkout("base"))
    assert weights(desk) == desk.session.base["weights_sha256"]
    done(desk.checkout(record.id))
    compared = done(desk.compare("base", record.id, f"{EIFFEL.prompt}\n\nThe capital of France is\n"))
    assert len(compared["prompts"]) == 2


def test_heat_maps_fill_in_one_after_the_other(desk: Desk) -> None:
    parts: list[int] = []
    put = desk._board.put
    desk._board.put = lambda name, value: (
        parts.append(len(value["heats"])) if name == "trace" else None,
        put(name, value),
    )  # type: ignore[method-assign, assignment, func-returns-value]
    found = done(desk.trace(EIFFEL.prompt, EIFFEL.subject))
    assert found["complete"]
    assert len(found["group"]["heats"]) == 3
    assert len(parts) == 3
    with pytest.raises(RequestError, match="slots"):
        desk.trace("no subject here", "Tower")


def test_the_command_of_a_kept_edit_makes_the_same_update(tmp_path: Path, model: str, emendo: Command) -> None:
    desk = begun(
        tmp_path, None, model=model
    )  # the command has the same second moments: both take them from EMENDO_HOME
    try:
        draft = drafted(desk)
        done(desk.keep(draft["id"]))
        command = desk.state()["commands"][0]["command"]
        taken = [done(desk.take(what)) for what in ("update", "adapter")]
        assert all((desk.files / row["name"]).stat().st_size == row["bytes"] for row in taken)
    finally:
        desk.close()
    assert not desk.files.exists()
    printed, line = command.splitlines()
    row, file = shlex.split(printed)[2], tmp_path / "fact.jsonl"
    file.write_text(row + "\n", encoding="utf-8")
    words = shlex.split(line.replace(str(tmp_path / "ledger"), str(tmp_path / "other")))[1:]
    words[words.index("fact.jsonl")] = str(file)
    assert emendo("ledger", "init", str(tmp_path / "other"), "--model", model)[0] == 0
    code, _, err = emendo(*words, "-q")
    assert code == 0, err
    assert EditLedger(tmp_path / "other").state()[0].update == draft["id"]


def test_files_of_a_killed_page_are_taken_away_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    old, other = tmp_path / f"emendo-ui-{gone.pid}-x", tmp_path / "emendo-ui-notes"
    mine = own_folder()
    for folder in (old, other):
        folder.mkdir()
        (folder / "edits.safetensors").write_bytes(b"left")
    assert own_folder() != mine
    assert not old.exists()
    assert other.exists()
    assert mine.exists(), "its process runs"


def test_a_fault_of_a_job_does_not_end_the_thread(capsys: pytest.CaptureFixture[str]) -> None:
    worker = Worker()

    def wrong(job: Job) -> None:
        raise ZeroDivisionError("of ours")

    broken = worker.submit("broken", wrong)
    assert broken.wait(10)
    assert (broken.state, "fault of Emendo" in broken.message) == ("failed", True)
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert done(worker.submit("next", lambda job: 3)) == 3
    assert worker.close(10)
    with pytest.raises(InputError, match="closing"):
        worker.submit("late", lambda job: None)
