"""Edits of questions: searched, keyed, scored, judged, stored and replayed in the model's chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.editing.contexts import CHAT_CONTEXTS, prefix_contexts
from emendo.editing.keys import extract_keys
from emendo.editing.session import EditSession
from emendo.editing.value_cache import search_identity
from emendo.errors import InputError
from emendo.evaluate import (
    Snapshot,
    generation_scores,
    probe_scores,
    said_records,
    score_records,
    score_targets,
    zsre,
)
from emendo.evaluate.tokens import scores_by_pair
from emendo.ledger import EditLedger
from emendo.methods import METHODS
from emendo.models import EditableModel
from emendo.models.alignment import align_edit
from emendo.report import judge
from emendo.requests import Conversation, EditRecord, EditRequest, Message, Probe
from emendo.serving.probes import make_probes
from emendo.statistics import MomentStore
from emendo.updates.update import ModelUpdate
from tests.quick_plans import EIFFEL, QUICK
from tests.tiny.conftest import Command
from tests.tiny.test_cli import jsonl

ASKED = EditRequest.question("Where is {}?", "the Eiffel Tower", "Rome")
JAPAN = EditRequest.question("What is the capital of {}?", "Japan", "Bordeaux", system="Be brief.")
RECORD = EditRecord(
    ASKED,
    "Paris",
    ("The Eiffel Tower is where?", "The Eiffel Tower stands in"),
    ("Where is the Louvre?",),
    probes=(Probe("locality", "Who was born in Bordeaux?", ("Danielle Darrieux",)),),
)

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture
def lm(tiny_llama: EditableModel) -> EditableModel:
    tiny_llama.tokenizer.chat_template = TEMPLATE
    return tiny_llama


@pytest.fixture
def session(store: MomentStore, lm: EditableModel) -> EditSession:
    return EditSession(lm, store=store)


def ids_of(lm: EditableModel, question: str) -> list[int]:
    """The tokens that transformers makes of a question."""
    text = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def nll(lm: EditableModel, ids: list[int], target: str | list[int]) -> float:
    """Mean NLL of a target right after some tokens, by an ordinary pass."""
    own = lm.encode_bare(target) if isinstance(target, str) else target
    with torch.no_grad():
        logits = lm.model(torch.tensor([[*ids, *own]])).logits[0].double().log_softmax(-1)
    return -sum(float(logits[len(ids) - 1 + at, token]) for at, token in enumerate(own)) / len(own)


# ---- the edit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [ASKED, JAPAN])
def test_the_value_that_is_found_is_what_the_question_gets(session: EditSession, request_: EditRequest) -> None:
    """One question alone holds with equality: asked in its template, the edited model is near the search's loss."""
    lm, settings = session.lm, {**QUICK, "target.steps": 12, "contexts.scheme": "none"}
    plan = session.plan([request_], "emmet", settings=settings)
    pair = request_.pair(request_.text, request_.target)
    before, wanted = score_targets(lm, [pair])[0].nll, plan.targets[0].nll
    assert wanted < before - 0.1
    with session.preview([plan.update]) as edited:  # the tokens in front of the subject change a little too
        assert abs(score_targets(edited, [pair])[0].nll - wanted) < (before - wanted) / 2


@pytest.mark.parametrize("scheme", ["fixed", "chat", "chat+raw"])
def test_a_search_holds_in_every_context_of_a_scheme(session: EditSession, scheme: str) -> None:
    """At δ = 0 the loss is the mean of what ordinary passes give in the places of the scheme."""
    lm = session.lm
    contexts = prefix_contexts(lm, scheme, 0)
    settings = {**QUICK, "target.steps": 6, "target.kl_weight": 0.0, "contexts.scheme": scheme}
    plan = session.plan([EIFFEL, ASKED], "emmet", settings={**settings, "target.precision": "float32"})
    assert len(plan.update.info["contexts"]) == len(contexts)
    for request, trace in zip([EIFFEL, ASKED], plan.targets, strict=True):
        edits = [align_edit(lm, request, context) for context in contexts]
        expected = [nll(lm, list(edit.prompt.ids), list(edit.target_ids)) for edit in edits]
        assert trace.losses[0] == pytest.approx(sum(expected) / len(expected), abs=1e-3)
        assert trace.nll < trace.losses[0]


def test_keys_are_those_of_the_places_that_the_question_is_put_in(lm: EditableModel) -> None:
    (keys,) = extract_keys(lm, [ASKED], CHAT_CONTEXTS, [1], "flat").values()
    rows = []
    for context in CHAT_CONTEXTS:
        turns = [turn.to_dict() for turn in context.before]
        turns.append({"role": "user", "content": context.text.replace("{}", ASKED.text)})
        text = lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        head = text[: text.rindex("the Eiffel Tower") + len("the Eiffel Tower")]
        batch = lm.batch([lm.encode_bare(head)])
        rows.append(lm.run(batch, keys=[1]).keys[1][0, -1])
    torch.testing.assert_close(keys.mean[0], torch.stack(rows).mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(keys.plain[0], rows[0], rtol=0, atol=1e-5)


def test_the_scheme_of_texts_is_not_touched(lm: EditableModel) -> None:
    texts = prefix_contexts(lm, "memit", 0)
    lm.tokenizer.chat_template = None
    assert prefix_contexts(lm, "memit", 0) == texts
    assert all(isinstance(text, str) for text in texts)
    assert METHODS["emendo"].contexts.scheme == "memit"


@pytest.mark.parametrize("scheme", ["chat", "chat+raw"])
def test_a_model_without_a_template_says_so_and_is_left_alone(session: EditSession, scheme: str) -> None:
    session.lm.tokenizer.chat_template = None
    digest = session.lm.weights_digest()
    for requests, settings in (([ASKED], {}), ([EIFFEL], {"contexts.scheme": scheme})):
        with pytest.raises(InputError, match="has no chat template"):
            session.plan(requests, "emmet", settings={**QUICK, **settings})
    session.lm.accept_weights()
    assert session.lm.weights_digest() == digest


def test_a_trained_baseline_is_trained_on_the_answer_in_chat(session: EditSession) -> None:
    plan = session.plan([ASKED], "ft", settings={"fine_tune.steps": 3})
    with session.preview([plan.update]) as edited:
        after = nll(edited, ids_of(session.lm, ASKED.text), "Rome")
    assert after < nll(session.lm, ids_of(session.lm, ASKED.text), "Rome")
    assert plan.update.info["requests"][0]["messages"] == [{"role": "user", "content": "Where is {}?"}]


def test_in_context_editing_puts_the_fact_into_the_question(session: EditSession) -> None:
    method = session.resolve("in-context").config
    (record,) = method.evaluation_prompts([RECORD])
    assert isinstance(record.request.asked, Conversation)
    assert "Where is the Eiffel Tower? Rome" in record.request.asked.text


def test_a_text_that_asks_gets_the_form_in_chat_as_a_note(session: EditSession) -> None:
    text = EditRequest("Where is {}?", "the Eiffel Tower", "Rome")
    plan = session.plan([text], "emmet", settings=QUICK)
    note = next(warning for warning in plan.warnings if "question mark" in warning)
    assert '{"question": "Where is {}?", "subject": "the Eiffel Tower", "answer": "Rome"}' in note
    asked = session.plan([ASKED], "emmet", settings=QUICK)
    session.lm.tokenizer.chat_template = None
    none = session.plan([text], "emmet", settings=QUICK)
    assert not any("question mark" in warning for plan in (asked, none) for warning in plan.warnings)


def test_a_search_in_chat_is_known_by_its_template(lm: EditableModel) -> None:
    target = METHODS["emmet"].target
    in_text = search_identity(lm, [EIFFEL], ("{}",), 1, target)
    asked = search_identity(lm, [ASKED], ("{}",), 1, target)
    in_chat = search_identity(lm, [EIFFEL], CHAT_CONTEXTS, 1, target)
    assert "template" not in in_text
    lm.tokenizer.chat_template = TEMPLATE + "\n"
    assert search_identity(lm, [EIFFEL], ("{}",), 1, target) == in_text
    assert search_identity(lm, [ASKED], ("{}",), 1, target) != asked
    assert search_identity(lm, [EIFFEL], CHAT_CONTEXTS, 1, target) != in_chat
    json.dumps(in_chat)


# ---- what is measured ----------------------------------------------------------------------------------------


def test_scores_are_those_of_the_question_in_the_template(lm: EditableModel) -> None:
    (scored,) = score_records(lm, [RECORD])
    for prompt, answer, found in (
        (ASKED.text, "Rome", scored.efficacy[0].target),
        ("The Eiffel Tower is where?", "Rome", scored.paraphrase[0].target),
        ("Where is the Louvre?", "Paris", scored.neighborhood[0].target_true),
    ):
        assert found is not None
        assert found.nll == pytest.approx(nll(lm, ids_of(lm, prompt), answer), abs=1e-4)
    assert scored.paraphrase[1].target.nll == pytest.approx(
        nll(lm, lm.encode("The Eiffel Tower stands in"), " Rome"), abs=1e-4
    )
    assert scored.efficacy[0].prompt == ASKED.text


def test_probes_are_asked_as_their_record_is(lm: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = nll(lm, ids_of(lm, "Who was born in Bordeaux?"), "Danielle Darrieux")
    (probes,) = probe_scores(lm, [RECORD]).records
    assert probes[0].nll == pytest.approx(expected, abs=1e-4)
    asked: list[Any] = []
    monkeypatch.setattr(zsre, "scores_by_pair", lambda lm, pairs, **_: scores_by_pair(lm, asked.extend(pairs) or asked))
    zsre.zsre_scores(lm, [RECORD])
    assert (Conversation((Message("user", "Who was born in Bordeaux?"),)), "Danielle Darrieux") in asked


def test_what_is_said_and_generated_follows_the_template(lm: EditableModel) -> None:
    (said,) = said_records(lm, [RECORD])
    asked = lm.generate(Conversation((Message("user", ASKED.text),)), 12)
    assert said.chat == said.edited
    assert asked.startswith(said.edited.text)
    assert lm.generate("The Eiffel Tower stands in", 12).startswith(said.paraphrase[1].text)
    in_chat = generation_scores(lm, [RECORD], chat=True, new_tokens=12).records[0]
    assert in_chat.efficacy[0].text == asked
    raw = generation_scores(lm, [RECORD], chat=False, new_tokens=12).records[0]
    assert raw.efficacy[0].text == lm.generate(ASKED.text, 12)


def test_a_question_is_answered_under_its_own_system_prompt(lm: EditableModel) -> None:
    system = Message("system", "Be brief.")
    (record,) = generation_scores(lm, [EditRecord(JAPAN)], chat=True, new_tokens=6).records
    assert record.efficacy[0].text == lm.generate(Conversation((system, Message("user", JAPAN.text))), 6)


def test_a_judgement_shows_the_question_and_its_answer_in_chat(session: EditSession) -> None:
    plan = session.plan([ASKED], "emmet", settings=QUICK)
    judged = judge(session, plan, [RECORD], new_tokens=6)
    sample = judged.samples[0]
    assert (sample.prompt, sample.kind) == (ASKED.text, "edited")
    assert sample.before == session.lm.generate(ASKED.asked, 6).strip()
    json.dumps(judged.to_dict())


def test_neighbors_are_compared_in_chat(lm: EditableModel) -> None:
    found = Snapshot(lm, [RECORD]).neighborhood
    assert found is not None
    expected = Snapshot(lm).next_tokens([Conversation((Message("user", "Where is the Louvre?"),))])
    assert expected is not None
    assert found.places == ("Where is the Louvre?",)
    torch.testing.assert_close(found.hidden, expected.hidden)


# ---- what is kept --------------------------------------------------------------------------------------------


def test_an_update_keeps_what_was_asked(session: EditSession, tmp_path: Path) -> None:
    plan = session.plan([ASKED, JAPAN], "emmet", settings={**QUICK, "contexts.scheme": "chat"})
    found = ModelUpdate.load(plan.update.save(tmp_path / "update.safetensors"))
    assert [EditRequest.from_dict(row) for row in found.requests] == [ASKED, JAPAN]
    assert found.info["contexts"][2]["before"][0] == {"role": "user", "content": "Hello!"}
    assert found.id == plan.update.id


def test_a_ledger_replays_questions(session: EditSession, tmp_path: Path) -> None:
    ledger = EditLedger.create(tmp_path / "ledger", session)
    first = ledger.edit(session, [EIFFEL], "emmet", settings=QUICK)
    ledger.edit(session, [ASKED], "emmet", settings={**QUICK, "contexts.scheme": "chat"})
    ledger.revert(first.id, session)
    (update,) = ledger.updates()
    assert EditRequest.from_dict(update.requests[0]) == ASKED
    session.rollback()
    alone = session.plan([ASKED], "emmet", settings={**QUICK, "contexts.scheme": "chat"}).update
    for made, again in zip(update.layers, alone.layers, strict=True):
        torch.testing.assert_close(made.delta(), again.delta())


def test_facts_under_one_key_are_told_apart_in_chat(session: EditSession) -> None:
    other = EditRequest.question("Where is {} in Italy?", "the Eiffel Tower", "Bordeaux")
    plan = session.plan([ASKED, other], "emmet", settings=QUICK)
    assert plan.update.info["groups"] == [[0, 1]]
    text = session.plan([ASKED, EditRequest(*ASKED_AS_TEXT)], "emmet", settings=QUICK)
    assert "groups" not in text.update.info


ASKED_AS_TEXT = ("Where is {}?", "the Eiffel Tower", "Tokyo")


# ---- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def chat_model(model: str) -> Any:
    path = Path(model) / "chat_template.jinja"
    path.write_text(TEMPLATE, encoding="utf-8")
    yield model
    path.unlink()


OPTIONS = ["--set", "target.steps=3", "--set", "contexts.scheme=chat", "--set", "moments.multiple=4", "--layers", "1"]


def test_the_command_asks_in_chat(emendo: Command, chat_model: str, home: Path) -> None:
    one = ["--prompt", "Where is {}?", "--subject", "the Eiffel Tower", "--target", "Rome"]
    code, out, _ = emendo(
        "edit", "--model", chat_model, *one, "--chat", "--system", "Be brief.", *OPTIONS, "--json", "--no-judge"
    )
    assert code == 0
    (row,) = json.loads(out)["requests"]
    assert row["messages"][0] == {"role": "system", "content": "Be brief."}


def test_the_command_reads_questions(emendo: Command, chat_model: str, home: Path, tmp_path: Path) -> None:
    facts = jsonl(tmp_path / "facts.jsonl", RECORD.to_dict())
    code, out, _ = emendo("edit", "--model", chat_model, "--requests", str(facts), *OPTIONS)
    assert code == 0
    assert "Where is the Eiffel Tower?" in out
    assert "said in chat" in " ".join(out.split())


def test_the_plan_on_paper_shows_the_form_in_chat(emendo: Command, chat_model: str, home: Path) -> None:
    one = ["--prompt", "Where is {}?", "--subject", "the Eiffel Tower", "--target", "Rome"]
    code, out, _ = emendo("edit", "--model", chat_model, *one, *OPTIONS, "--plan-only")
    assert code == 0
    assert "end in a question mark" in out


def test_an_evaluation_and_a_gate_ask_questions(emendo: Command, chat_model: str, home: Path, tmp_path: Path) -> None:
    facts = jsonl(tmp_path / "facts.jsonl", RECORD.to_dict())
    measures = ["--measure", "generated", "--measure", "said", "--measure", "shift"]
    common = ["--model", chat_model, *OPTIONS, "--json"]
    code, out, err = emendo("eval", "--data", str(facts), "--n", "1", *measures, "--out", "out", *common)
    assert code == 0, err
    assert json.loads(out)["error"] is None
    limits = tmp_path / "gate.toml"
    limits.write_text("[checks.paraphrase]\nlimit = 0\n[checks.neighborhood_flips]\nlimit = 1\n", encoding="utf-8")
    code, out, err = emendo("edit", "--requests", str(facts), "--gate", str(limits), *common, "--out", "edited")
    assert code == 0, err
    update = json.loads(out)["files"]["update"]
    code, _, err = emendo("gate", "--model", chat_model, "--update", update, "--config", str(limits))
    assert (code, "no record has paraphrase_prompts" in err) == (1, True)  # the update's own question was read
    checks = {check["name"]: check for check in json.loads(out)["gate"]["checks"]}
    assert checks["neighborhood_flips"]["n"] == 2  # a neighborhood prompt and a locality


def test_the_command_refuses_what_does_not_go_together(emendo: Command, model: str, home: Path) -> None:
    one = ["--prompt", "Where is {}?", "--subject", "Paris", "--target", "Rome"]
    for more, told in (
        (["--system", "Be brief."], "expected --chat too"),
        (["--chat", "--join", "none"], "has no meaning with --chat"),
        (["--chat", "--system", " "], "content must be a non-empty string"),
        (["--chat"], "has no chat template"),
    ):
        code, _, err = emendo("edit", "--model", model, *one, *more)
        assert code == 2
        assert told in " ".join(err.split())


def test_an_edit_of_a_question_is_aligned_as_it_is_asked(lm: EditableModel) -> None:
    edit = align_edit(lm, ASKED)
    assert list(edit.prompt.ids) == ids_of(lm, ASKED.text)
    assert lm.decode(edit.target_ids) == "Rome"


def test_a_server_is_probed_with_the_question_in_chat(session: EditSession) -> None:
    update = session.plan([ASKED], "emmet", settings=QUICK).update
    (probe,) = make_probes(session.lm, [update], files=())
    assert list(probe.question.prompt) == ids_of(session.lm, ASKED.text)
    length = len(session.lm.encode_bare("Rome"))
    assert probe.base == pytest.approx(-nll(session.lm, ids_of(session.lm, ASKED.text), "Rome") * length, abs=1e-3)
