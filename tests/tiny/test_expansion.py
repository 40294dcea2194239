"""Neighbors that a model answers; questions and localities in reports, verdicts and the gate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import emendo.evaluate.said_probes as said_probes_module
from emendo.datasets import read_records
from emendo.evaluate.said_probes import SaidProbe, said_probes
from emendo.expansion import Relation, expand_records
from emendo.gate.checks import measure
from emendo.gate.evidence import Evidence
from emendo.gate.sections import ShareConfig
from emendo.models import EditableModel
from emendo.report.judging import Judgement
from emendo.report.verdict import verdict_of
from emendo.requests import EditRecord, EditRequest, Probe
from tests.tiny.conftest import Command
from tests.tiny.test_cli import QUICK, jsonl

TEMPLATE = "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %} {% endif %}"
CAPITALS = Relation(
    "capital of a country",
    ("The capital of {} is", "The capital city of {} is", "{} is governed from"),
    ("What is the capital of {}?", "Which city is the capital of {}?"),
    (frozenset({"capital"}),),
    {
        "France": ("Paris",),
        "Japan": ("Tokyo",),
        "Spain": ("Madrid",),
        "Italy": ("Rome",),
        "the Netherlands": ("Amsterdam",),
    },
)
KENYA = EditRecord(EditRequest("The capital of {} is", "Kenya", "Rome"), target_true="Paris")


class Answering:
    """Stands for generation: a text by the word that its prompt has."""

    def __init__(self, lm: EditableModel, answers: Mapping[str, str]) -> None:
        self.lm, self.answers, self.asked = lm, answers, []

    def __call__(self, lm: EditableModel, rows: Any, limits: Any, **_: Any) -> list[Any]:
        texts = [lm.decode(row) for row in rows]
        self.asked += texts
        said = [next((answer for word, answer in self.answers.items() if word in text), " x") for text in texts]
        return [SimpleNamespace(ids=self.lm.encode_bare(text)) for text in said]


@pytest.fixture
def answering(tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> Answering:
    monkeypatch.setattr(tiny_llama.tokenizer, "chat_template", TEMPLATE)
    answers = {"France": " Paris", "Japan": " Kyoto", "Spain": " Madridborough", "Netherlands": " It is Amsterdam."}
    found = Answering(tiny_llama, answers)
    monkeypatch.setattr(said_probes_module, "continue_rows", found)
    return found


def test_neighbors_are_those_that_the_model_answers(tiny_llama: EditableModel, answering: Answering) -> None:
    expansion = expand_records(tiny_llama, [KENYA], neighbors=2, relations=[CAPITALS])
    (record,), (found,) = expansion.records, expansion.found
    # Italy has the new target; Japan and Spain are answered wrongly, the Netherlands in a sentence, as only chat may.
    assert (found.neighbors, found.neighbors_in_chat) == ((4, 1), (4, 2))
    assert not any("Italy" in text or "Kenya" in text for text in answering.asked)
    assert record.neighborhood_prompts == ("The capital of France is",)  # shares the true target
    assert record.paraphrase_prompts == ("The capital city of Kenya is", "Kenya is governed from")
    by_kind = {kind: [p for p in record.probes if p.kind == kind] for kind in ("question", "locality")}
    assert [(probe.prompt, probe.chat) for probe in by_kind["question"]] == [
        ("What is the capital of Kenya? It is", False),
        ("Which city is the capital of Kenya? It is", False),
        ("What is the capital of Kenya?", True),
        ("Which city is the capital of Kenya?", True),
    ]
    assert all(probe.answers == ("Rome",) for probe in by_kind["question"])
    assert by_kind["locality"] == [
        Probe("locality", "What is the capital of France?", ("Paris",), "neighbor", chat=True),
        Probe("locality", "What is the capital of the Netherlands?", ("Amsterdam",), "neighbor", chat=True),
    ]
    assert record.relation == "capital of a country"
    assert record.guessed == ("neighborhood_prompts", "paraphrase_prompts", "probes")


def test_no_more_is_asked_than_is_needed(tiny_llama: EditableModel, answering: Answering) -> None:
    expand_records(tiny_llama, [KENYA], neighbors=1, relations=[CAPITALS])
    assert len(answering.asked) == 2  # France, in the prompt's words and in chat


def test_what_a_record_has_stays(tiny_llama: EditableModel, answering: Answering) -> None:
    own = EditRecord(
        KENYA.request, paraphrase_prompts=("Kenya's capital is",), neighborhood_prompts=("The capital of Chad is",)
    )
    unknown = EditRecord(EditRequest("{} likes", "Ann", "tea"))
    expansion = expand_records(tiny_llama, [own, unknown], relations=[CAPITALS])
    first, second = expansion.records
    assert (first.paraphrase_prompts, first.neighborhood_prompts) == (own.paraphrase_prompts, own.neighborhood_prompts)
    assert first.guessed == ("probes",)
    assert expansion.found[0].kept == ("neighbors", "paraphrases")
    assert second == unknown
    assert expansion.found[1].recognition.why == "its prompt is like none that is known"
    assert not answering.asked


def test_questions_get_questions(tiny_llama: EditableModel, answering: Answering) -> None:
    asked = EditRecord(EditRequest.question("What is the capital of {}?", "Kenya", "Rome"))
    expansion = expand_records(tiny_llama, [asked], neighbors=1, relations=[CAPITALS])
    (record,) = expansion.records
    assert record.paraphrase_prompts == ("Which city is the capital of Kenya?",)
    assert [probe.prompt for probe in record.probes] == ["What is the capital of France?"]
    assert answering.asked == ["<What is the capital of France?> "]


def test_an_answer_in_chat_may_be_a_sentence(tiny_llama: EditableModel, answering: Answering) -> None:
    probes = tuple(
        Probe("locality", "The Netherlands are governed from", ("Amsterdam",), chat=chat) for chat in (False, True)
    )
    ((raw, chat),) = said_probes(tiny_llama, [EditRecord(KENYA.request, probes=probes)])
    assert (raw.hit, chat.hit) == (False, True)
    assert (raw.chat, chat.chat) == (False, True)


def _said(kind: str, *hits: bool) -> tuple[tuple[SaidProbe, ...], ...]:
    return (tuple(SaidProbe(kind, f"p{n}", True, "yes", "yes" if hit else "no", hit) for n, hit in enumerate(hits)),)


def test_the_gate_counts_lost_localities_and_unanswered_questions() -> None:
    def evidence(before: Any, after: Any) -> Evidence:
        scored = (SimpleNamespace(neighborhood=()),)
        pair = (SimpleNamespace(said_probes=said, scored=scored, records=(KENYA,)) for said in (before, after))
        return cast("Evidence", SimpleNamespace(**dict(zip(("before", "after"), pair, strict=True))))

    limit = ShareConfig(limit=0.2)
    not_kept = {"prompt": "p1", "says": "no", "target": "yes", "chat": True}
    lost = evidence(_said("locality", True, True, False), _said("locality", True, False, False))
    found = measure("neighborhood_lost", limit, lost)
    assert (found.value, found.n, found.details) == (0.5, 2, (not_kept,))
    asked = evidence(_said("question", False, False), _said("question", True, False))
    found = measure("questions", limit, asked)
    assert (found.value, found.n, found.details) == (0.5, 2, ({"prompt": "p1", "says": "no"},))
    none = evidence(((),), ((),))
    assert measure("questions", limit, none).value is None
    assert "emendo requests expand" in measure("neighborhood_lost", limit, none).words


@pytest.mark.usefixtures("home")
def test_the_command_writes_a_file_that_edit_reads(emendo: Command, model: str, tmp_path: Path) -> None:
    fact = {"prompt": "The capital of {} is", "subject": "Kenya", "target": "Rome"}
    facts = jsonl(tmp_path / "facts.jsonl", fact, {"prompt": "{} likes", "subject": "Ann", "target": "tea"})
    out = tmp_path / "expanded.yaml"
    expand = ["requests", "expand", facts, "--model", model, "--out", str(out), "--neighbors", "1", "--questions", "1"]
    code, text, err = emendo(*expand, "--json", "-q")
    assert code == 0, err
    first, second = json.loads(text)["requests"]
    assert first["relation"] == "capital of a country"
    assert first["neighbors"]["asked"] > 20  # a model that knows nothing is asked them all
    assert (second["relation"], second["guessed"]) == (None, [])
    written = out.read_text(encoding="utf-8")
    assert "GUESSED" in written
    assert "# Taken for: capital of a country (its prompt is a wording of it). Neighbors answered: 0 of" in written
    assert "# Nothing was proposed: its prompt is like none that is known." in written
    record = read_records(out)[0]
    assert record.probes == (Probe("question", "What is the capital of Kenya? It is", ("Rome",), "plain"),)
    code, _, err = emendo(*expand)
    assert code == 2
    assert "is there already" in err
    code, text, err = emendo("edit", "--model", model, "--requests", str(out), *QUICK, "--layers", "1", "--json", "-q")
    assert code == 0, err
    verdict = json.loads(text)["verdict"]
    assert verdict["questions"][1] == 1
    assert verdict["guessed"] == 1
    assert "guessed by Emendo" in verdict["text"]


def test_a_lost_neighbor_is_named() -> None:
    judgement = SimpleNamespace(
        after=SimpleNamespace(records=[]),
        said_after=[],
        perplexity_ratio=1.0,
        **{name: getattr(Judgement, name).fget(_Probes()) for name in ("questions", "lost", "unanswered")},
        neighbors=(1, 2),
        guessed=((),),
    )
    verdict = verdict_of(1, cast("Judgement", judgement), None)
    assert (verdict.questions, len(verdict.lost), len(verdict.unanswered)) == ((1, 2), 1, 1)
    assert verdict.outcome == "bad"


class _Probes:
    """What a judgement knows of its probes."""

    def _probes(self, kind: str) -> list[tuple[SaidProbe, SaidProbe]]:
        (before,), (after,) = _said(kind, True, kind == "locality"), _said(kind, True, False)
        return list(zip(before, after, strict=True))
