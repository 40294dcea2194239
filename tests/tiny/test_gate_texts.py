"""The gate's texts on tiny models: each kind by itself, each token over all kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import emendo.gate.topics as topics_module
from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.errors import InputError
from emendo.evaluate import perplexity
from emendo.gate import GateConfig, run_gate
from emendo.gate.config import parse_config
from tests.quick_plans import EIFFEL, JAPAN, quick_plan
from tests.tiny.gate_cases import found, gate_of, heavy


@pytest.fixture
def plan(session: EditSession) -> Plan:
    return quick_plan(session, [EIFFEL, JAPAN])


TEXTS = [
    {"topic": "letters", "text": "The weather was calm that morning."},
    {"topic": "letters", "text": "The weather turned."},
    {"topic": "talk", "messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi!"}]},
]


def own_texts(folder: Path, monkeypatch: pytest.MonkeyPatch, known: float = 10.0) -> GateConfig:
    """A gate of own texts; tiny random models read none of them better than a guess, so the bar is moved for them."""
    monkeypatch.setattr(topics_module, "KNOWN", known)
    (folder / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in TEXTS))
    names = ("text_perplexity", "text_kl", "text_flips", "text_token")
    checks = "".join(f"[checks.{name}]\nlimit = 9\n" for name in names)
    return parse_config(f'{checks}[canaries]\nfiles = ["mine.jsonl"]\n', "mine.toml", folder)


def test_each_kind_of_text_is_measured_on_its_own(
    session: EditSession, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own_texts(tmp_path, monkeypatch)
    report = run_gate(session, plan, [], config)
    assert [(topic.topic, topic.known) for topic in report.topics] == [("letters", True), ("talk", True)]
    talk = "User: Hello!\nAssistant: Hi!"  # without a chat template

    def nll() -> tuple[float, float]:
        return perplexity(session.lm, TEXTS[0]["text"]).nll, perplexity(session.lm, talk).nll

    _, before = nll()
    with session.applied(plan.update):
        _, after = nll()
    found = report.topics[1]
    assert (found.nll_before, found.nll_after) == pytest.approx((before, after), rel=1e-5)
    assert found.tokens == len(session.lm.encode(talk)) - 1
    values = {check.name: check.measured for check in report.checks}
    assert values["text_perplexity"] == max(topic.ratio for topic in report.topics)
    assert values["text_kl"] == max(topic.kl for topic in report.topics) > 0
    document = json.loads(json.dumps(report.to_dict()))
    assert [row["topic"] for row in document["texts"]] == ["letters", "talk"]
    assert document["moved_most"] == report.moved_most
    assert report.moved_most.startswith(max(report.topics, key=lambda topic: topic.kl).topic)


def test_what_follows_a_token_is_measured_over_all_kinds(
    session: EditSession, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own_texts(tmp_path, monkeypatch)
    report = run_gate(session, plan, [], config)
    lm = session.lm
    texts = [lm.encode(text) for text in (TEXTS[0]["text"], TEXTS[1]["text"], "User: Hello!\nAssistant: Hi!")]

    def answers() -> list[torch.Tensor]:
        with torch.no_grad():
            return [lm.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1) for ids in texts]

    before = answers()
    with session.applied(plan.update):
        after = answers()
    moved: dict[int, list[float]] = {}
    read: set[tuple[int, ...]] = set()
    for ids, p, q in zip(texts, before, after, strict=True):
        for at in range(1, len(ids)):
            if tuple(ids[: at + 1]) not in read:  # what two texts share is read once
                read.add(tuple(ids[: at + 1]))
                moved.setdefault(ids[at - 1], []).append(float((p[at - 1].exp() * (p[at - 1] - q[at - 1])).sum()))
    expected = {lm.decode([token]): (len(kl), sum(kl) / (len(kl) + 10)) for token, kl in moved.items()}
    largest = max(kl for _, kl in expected.values())
    first = report.tokens[0]
    assert first.kl > 0
    assert first.kl == pytest.approx(largest, rel=1e-3)
    assert (first.places, first.kl) == (expected[first.token][0], pytest.approx(expected[first.token][1], rel=1e-3))
    assert [move.kl for move in report.tokens] == sorted((move.kl for move in report.tokens), reverse=True)
    check = next(check for check in report.checks if check.name == "text_token")
    assert (check.measured, check.n) == (first.kl, first.places)
    assert repr(first.token) in check.words
    assert f"After one token: {first.token!r}" in report.moved_most


def test_a_limit_is_that_of_all_facts_of_the_updates(session: EditSession, plan: Plan) -> None:
    config = gate_of("[checks.text_kl]\nlimit = 9\neach = 0.5\nunmeasured = 'pass'")
    one = quick_plan(session, [JAPAN])
    assert found(session, plan, config).limit == 9.5
    assert found(session, one, config).limit == 9
    assert found(session, heavy(session, 0.1), config).limit == 9, "an update without requests is one"
    session.apply(one.update)
    second = quick_plan(session, [EIFFEL])
    assert found(session, second, config).limit == 9.5, "the base has neither"
    assert found(session, second, config.model_copy(update={"reference": "current"})).limit == 9
    session.rollback()


def test_a_conversation_is_read_in_the_models_own_template(
    session: EditSession, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own_texts(tmp_path, monkeypatch)
    template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    monkeypatch.setattr(session.lm.tokenizer, "chat_template", template)
    text = "<s>user: Hello!</s><s>assistant: Hi!</s>"
    (_, talk) = run_gate(session, plan, [], config).topics
    assert talk.tokens == len(session.lm.encode_bare(text)) - 1
    refusing = "{{ raise_exception('turns must alternate') }}"
    monkeypatch.setattr(session.lm.tokenizer, "chat_template", refusing)
    with pytest.raises(InputError, match="turns must alternate"):
        run_gate(session, plan, [], config)


def test_a_model_that_knows_none_of_the_texts_is_not_judged_by_them(
    session: EditSession, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run_gate(session, plan, [], own_texts(tmp_path, monkeypatch, known=topics_module.KNOWN))
    assert {check.outcome for check in report.checks} == {"not measured, fail"}
    assert not any(topic.known for topic in report.topics)
