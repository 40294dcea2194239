"""Facts that stand under one key share a value: in one batch, and one after another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers

import emendo.editing.edit_run
from emendo.attribution import edits_of
from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.editing.sharing import share_groups
from emendo.editing.value_search import search_values
from emendo.errors import ConflictError, InfeasibleError, UndoError
from emendo.methods import METHODS
from emendo.methods.settings import TargetSettings
from emendo.models import EditableModel
from emendo.models.alignment import align_edit
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from emendo.updates.merge import merge, scale
from emendo.updates.removal import without
from tests.conftest import build_tiny
from tests.naive_loop import Naive, close
from tests.quick_plans import DARRIEUX, JAPAN, planned
from tests.tiny.conftest import Command

WHERE = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome", id="where")
WHEN = EditRequest("{} was built in", "The Eiffel Tower", "Tokyo", id="when")
WHO = EditRequest("{} is said to like", "The Eiffel Tower", "French", id="who")
FACTS = [WHERE, WHEN, WHO]
REACHED = [replace(fact, target=target, join="none") for fact, target in zip(FACTS, ("w", "5", "а"), strict=True)]
"""The same with tokens that `listening` can be brought to say by one vector, in layer 0."""

FREE: dict[str, Any] = {
    "target__steps": 60,
    "target__learning_rate": 0.5,
    "target__max_norm_ratio": 20.0,
    "target__weight_decay": 0.0,
    "target__kl_weight": 0.0,
    "target__argmax_steps": 2,
    "target__precision": "float32",
    "contexts__scheme": "none",
}
"""A search that goes as far as it likes, for the plain prompts alone."""


def listening() -> EditableModel:
    """A model in which what stands at a subject matters to what follows; of random weights it hardly does."""
    lm = build_tiny("llama")
    with torch.no_grad():
        for block in lm.blocks:
            block.self_attn.o_proj.weight *= 2  # type: ignore[union-attr, operator]
    return EditableModel(lm.model, lm.tokenizer)


def nll(lm: EditableModel, request: EditRequest) -> float:
    """Of the target after the plain prompt, in nats a token."""
    edit = align_edit(lm, request)
    with torch.no_grad():
        logp = lm.model(input_ids=torch.tensor([edit.ids])).logits[0].log_softmax(dim=1)
    first = len(edit.prompt.ids) - 1
    return -float(logp[first:].gather(1, torch.tensor(edit.target_ids)[:, None]).mean())


def one_after_another(
    session: EditSession,
    store: MomentStore,
    requests: Sequence[EditRequest],
    method: str,
    layers: list[int],
    **more: Any,
) -> list[Plan]:
    plans = []
    for request in requests:
        plans.append(planned(session, store, [request], method, layers, **more))
        session.apply(plans[-1])
    return plans


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[list[EditRequest]]:
    """The requests of every search, and the earlier facts that it keeps."""
    made: list[list[EditRequest]] = []
    find = emendo.editing.edit_run.search_values

    def counted(*arguments: Any) -> Any:
        made.append([*arguments[1], *arguments[6]])
        return find(*arguments)

    monkeypatch.setattr(emendo.editing.edit_run, "search_values", counted)
    return made


# ---- who shares --------------------------------------------------------------------------------------------------


def test_requests_share_by_what_stands_before_the_subjects_end(tiny_llama: EditableModel) -> None:
    inside = replace(WHERE, prompt="They say that {} is located in")
    divided = replace(WHO, prompt="The Eiffel {} is said to like", subject="Tower")
    spaced = replace(WHEN, subject="The Eiffel Tower ", prompt="{}was built in")
    requests = [WHERE, JAPAN, WHEN, inside, divided, spaced, replace(WHERE, subject="The Eiffel")]
    assert share_groups(tiny_llama, requests, "key") == [[0, 2, 4, 5], [1], [3], [6]]
    assert share_groups(tiny_llama, requests, "subject") == [[0, 2, 3, 5], [1], [4], [6]]
    assert share_groups(tiny_llama, requests, "request") == [[index] for index in range(7)]


def test_texts_that_are_one_prompt_to_the_model_contradict_each_other(
    store: MomentStore, tiny_llama: EditableModel
) -> None:
    tiny_llama.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    loud = replace(WHERE, subject="THE EIFFEL TOWER", target="Tokyo")
    with pytest.raises(ConflictError, match=r"contradicting: .*'Rome' and 'THE EIFFEL TOWER .* have the same tokens"):
        planned(tiny_llama, store, [WHERE, JAPAN, loud], "emmet", [1])
    with pytest.raises(ConflictError, match="repeated"):
        planned(tiny_llama, store, [WHERE, JAPAN, replace(loud, target="Rome")], "emmet", [1])


# ---- one batch ---------------------------------------------------------------------------------------------------


def test_three_facts_of_one_subject_are_edited_by_the_default_method(store: MomentStore) -> None:
    lm = listening()
    session, naive = EditSession(lm, store=store), Naive(lm, ("{}",))
    plan = planned(session, store, REACHED, "emendo", [0], **FREE)
    assert plan.update.layers[0].rank == 1
    assert plan.update.info["groups"] == [[0, 1, 2]]
    assert [trace.argmax for trace in plan.targets] == [True] * 3
    assert plan.warnings == ()
    assert len({trace.nll for trace in plan.targets}) == 3, "each fact has its own figures"
    found = search_values(lm, REACHED, plan.contexts, 0, plan.method.config.target)
    for fact, trace in zip(REACHED, found.traces, strict=True):
        with naive.pushed(fact, 0, found.delta[0]):
            assert nll(lm, fact) == pytest.approx(trace.nll, rel=1e-4)
    session.apply(plan)
    close(naive.values(REACHED, 0), found.value.T, 1e-4)
    (edit,) = edits_of([plan.update]).edits
    assert edit.label == "The Eiffel Tower → w + The Eiffel Tower → 5 + The Eiffel Tower → а"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_equal_keys_one_value(method: str, store: MomentStore) -> None:
    lm = build_tiny("llama")
    more = {"preservation__threshold": 0.3} if method == "alphaedit" else {}
    plan = planned(EditSession(lm, store=store), store, [WHERE, JAPAN, WHEN, DARRIEUX], method, **more)
    if plan.method.config.post.kind == "none":
        assert {part.rank for part in plan.update.layers} == {3}
    assert {len(part.keys) for part in plan.update.layers if part.keys is not None} == {3}
    assert plan.update.info["groups"] == [[0, 2], [1], [3]]
    per_layer = len(plan.targets) // 4
    subjects = [plan.requests[index].subject for index in range(4)]
    assert subjects == ["The Eiffel Tower", "Japan", "The Eiffel Tower", "Danielle Darrieux"]
    deltas = [trace.delta_norm for trace in plan.targets]
    by_request = [deltas[i::4] for i in range(4)] if METHODS[method].batching == "joint" else [[d] for d in deltas]
    assert by_request[0] == by_request[2] != by_request[1]
    assert len(by_request[0]) == per_layer


def test_a_value_for_each_request_is_still_to_be_had(store: MomentStore, searches: list[list[EditRequest]]) -> None:
    lm = build_tiny("llama")
    plan = planned(lm, store, [WHERE, WHEN], "memit", [1], target__shared="request")
    assert plan.update.layers[0].rank == 2
    assert "groups" not in plan.update.info
    with pytest.raises(InfeasibleError, match="share a key: where, when"):
        planned(lm, store, [WHERE, WHEN], "emmet", [1], target__shared="request")
    assert len(searches) == 1, "refused before the search"


@pytest.mark.parametrize("method", ["emendo", "emmet"])
def test_keys_that_equality_cannot_tell_apart_are_named_before_the_search(
    method: str, store: MomentStore, searches: list[list[EditRequest]]
) -> None:
    """Two tokens of nearly one embedding: other tokens, and hardly another key."""
    lm = build_tiny("llama", dtype=torch.float64)
    rome, tokyo = replace(JAPAN, subject="Rome"), replace(JAPAN, subject="Tokyo")
    one, other = (align_edit(lm, request).prompt.ids for request in (rome, tokyo))
    assert one != other
    with torch.no_grad():
        rows = lm.model.get_input_embeddings().weight
        for first, second in zip(one, other, strict=True):
            rows[first] = rows[second] * (1 + 1e-13)
    lm = EditableModel(lm.model, lm.tokenizer)
    assert share_groups(lm, [rome, tokyo], "key") == [[0], [1]]
    with pytest.raises(InfeasibleError, match=r"Rome, Tokyo(.|\n)*target\.shared=subject(.|\n)*--method memit"):
        planned(lm, store, [rome, tokyo, DARRIEUX], method, [1])
    assert searches == []
    planned(lm, store, [rome, tokyo, DARRIEUX], "memit", [1])


# ---- one after another -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["emendo", "memit-history"])
def test_a_later_fact_keeps_the_earlier_ones_of_its_key(
    method: str, store: MomentStore, searches: list[list[EditRequest]]
) -> None:
    lm = listening()
    session = EditSession(lm, store=store)
    where, when, who = REACHED
    # λ is small enough for one request alone to be written in full.
    more = {**FREE, "target__steps": 8, **({"preservation__weight": 1e-6} if method == "memit-history" else {})}
    plans = one_after_another(session, store, [where, JAPAN, when, who], method, [0, 1], **more)
    assert searches == [[where], [JAPAN], [when, where], [who, where, when]]
    assert [[row["id"] for row in plan.update.info.get("kept", [])] for plan in plans] == [
        [],
        [],
        ["where"],
        ["where", "when"],
    ]
    # The earlier key is not preserved beside the one that is written.
    assert [plan.update.info.get("left_out") for plan in plans] == [
        None,
        None,
        {"0": [0], "1": [0]},
        {"0": [0, 2], "1": [0, 2]},
    ]
    assert [report.achieved for report in plans[-1].layers] == pytest.approx([1.0, 1.0], abs=1e-3)
    session.rollback()
    assert "kept" not in planned(session, store, [who], method, [0, 1], **more).update.info


def test_a_value_that_keeps_facts_is_that_of_all_of_them_together(tiny_llama: EditableModel) -> None:
    contexts, settings = ("{}", "The weather was calm. {}"), TargetSettings(steps=4, batch_size=2)
    where, when, who = FACTS
    together = search_values(tiny_llama, [who, JAPAN, where, when], contexts, 2, settings)
    found = search_values(tiny_llama, [who, JAPAN], contexts, 2, settings, None, [where, when])
    assert torch.equal(found.value, together.value[:2])
    assert (found.traces, found.kept) == (together.traces[:2], together.traces[2:])
    alone = search_values(tiny_llama, [who, JAPAN], contexts, 2, settings)
    assert not torch.equal(alone.value[0], found.value[0])


def test_a_fact_that_is_written_anew_is_not_kept(store: MomentStore, searches: list[list[EditRequest]]) -> None:
    lm = build_tiny("llama")
    session = EditSession(lm, store=store)
    again = replace(WHERE, target="Tokyo")
    plans = one_after_another(session, store, [WHERE, WHEN, again], "emendo", [1])
    assert searches == [[WHERE], [WHEN, WHERE], [again, WHEN]]
    assert plans[-1].update.info["left_out"] == {"1": [0, 1]}


def test_one_by_one_writes_each_key_once(store: MomentStore) -> None:
    lm = build_tiny("llama")
    session = EditSession(lm, store=store)
    plan = planned(session, store, [WHERE, JAPAN, WHEN], "r-rome", [1])
    assert plan.update.layers[0].rank == 2
    assert plan.update.info["groups"] == [[0, 2], [1]]
    assert plan.targets[0].delta_norm == plan.targets[2].delta_norm != plan.targets[1].delta_norm
    group = planned(session, store, [WHERE, WHEN], "r-rome", [1]).update.layers[0]
    assert torch.equal(plan.update.layers[0].residuals[:1], group.residuals)
    assert torch.equal(plan.update.layers[0].dual_keys[:1], group.dual_keys)


def test_updates_from_files_tell_what_they_wrote(store: MomentStore, tmp_path: Path) -> None:
    """Merged ones too; one that was scaled holds its facts in part, so they are nothing to keep."""
    lm = build_tiny("llama")
    session = EditSession(lm, store=store)
    (first,) = one_after_another(session, store, [WHERE], "emendo", [1])
    second = planned(session, store, [JAPAN, WHEN, DARRIEUX, WHO], "emendo", [1]).update
    both = merge([type(second).load(part.save(tmp_path / part.id)) for part in (first.update, second)])
    assert both.info["groups"] == [[0], [1], [2, 4], [3]]
    assert [edit.label for edit in edits_of([both]).edits][2:] == [
        "The Eiffel Tower → Tokyo + The Eiffel Tower → French",
        "Danielle Darrieux → Tokyo",
    ]
    session.move_to([both])
    more = EditRequest("{} was calm, since", "The Eiffel Tower", "Paris")
    plan = planned(session, store, [more], "emendo", [1])
    assert [row["id"] for row in plan.update.info["kept"]] == ["where", "when", "who"]
    assert plan.update.info["left_out"] == {"1": [0, 2]}
    session.move_to([scale(both, 0.5)])
    plan = planned(session, store, [more], "emendo", [1])
    assert not {"kept", "left_out"} & set(plan.update.info)


def test_algebra_does_not_follow_facts_that_were_kept(store: MomentStore) -> None:
    session = EditSession(build_tiny("llama"), store=store)
    one_after_another(session, store, [WHERE, JAPAN], "emendo", [1])
    metrics = session.preservation(session.resolve("emendo", layers=[1], settings={"moments.multiple": 4}).config)
    assert len(without(session.applied_updates, 0, metrics)) == 1
    one_after_another(session, store, [WHEN], "emendo", [1])
    with pytest.raises(UndoError, match=r"holds facts of earlier updates.*replay"):
        without(session.applied_updates, 0, metrics)


# ---- what is told ------------------------------------------------------------------------------------------------

QUICK = ["--set", "target.steps=2", "--set", "contexts.scheme=fixed", "--set", "moments.multiple=4"]


@pytest.fixture
def three(tmp_path: Path) -> str:
    path = tmp_path / "three.jsonl"
    rows = [{"prompt": fact.prompt, "subject": fact.subject, "target": fact.target} for fact in [*FACTS, JAPAN]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_plan_shows_who_shares(emendo: Command, model: str, three: str) -> None:
    arguments = ["edit", "--model", model, "--requests", three, "--plan-only"]
    code, text, err = emendo(*arguments)
    assert code == 0, err
    shown = text.split("share one value", 1)[1].split("Nothing was edited")[0]
    assert all(fact.prompt.format(fact.subject) in " ".join(shown.split()) for fact in FACTS)
    assert "Japan" not in shown
    assert json.loads(emendo(*arguments, "--json")[1])["groups"] == [[0, 1, 2], [3]]
    each = emendo(*arguments, "--set", "target.shared=request")[1]
    assert "share one value" not in each
    assert json.loads(emendo(*arguments, "--json", "--method", "ft")[1])["groups"] == []


def test_targets_that_were_not_reached_are_named_with_what_to_try(
    emendo: Command, model: str, three: str, tmp_path: Path
) -> None:
    arguments = ["edit", "--model", model, "--requests", three, *QUICK, "--no-judge"]
    code, text, err = emendo(*arguments, "--out", str(tmp_path / "out"))
    assert code == 0, err
    told = " ".join(text.split())
    assert "The search did not reach 4 target(s)" in told
    assert "'The Eiffel Tower was built in' → 'Tokyo'" in told
    assert "(--set target.steps=4)" in told
    assert "(--set target.max_norm_ratio=4)" in told
    report = (tmp_path / "out" / "report.md").read_text()
    assert "**The search did not reach 4 target(s)" in report
    (warning,) = json.loads((tmp_path / "out" / "report.json").read_text())["warnings"]
    assert warning.startswith("The search did not reach")


def test_training_that_did_not_reach_a_target_says_so(store: MomentStore) -> None:
    session = EditSession(build_tiny("llama"), store=store)
    settings = {"fine_tune.learning_rate": 0.02}
    short, long = (session.plan([JAPAN], "ft", settings={**settings, "fine_tune.steps": n}) for n in (1, 60))
    assert "'The capital of Japan is' → 'Bordeaux'" in short.warnings[0]
    assert short.warnings[0].endswith("Try more steps (--set fine_tune.steps=2).")
    assert long.warnings == ()
    assert session.plan([JAPAN], "in-context").warnings == ()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))
