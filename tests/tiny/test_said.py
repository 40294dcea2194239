"""What is said: whole words after the prompt, in the report, in the gate and in the verdict; and answers are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import emendo.evaluate.said as said_module
import emendo.evaluate.snapshot as snapshot_module
from emendo.cli.console import STYLES
from emendo.editing.session import EditSession
from emendo.evaluate import SaidPrompt, SaidRecord, Snapshot, said_means, said_records
from emendo.evaluate.remembered import MOST_STATES, RememberedAnswers
from emendo.export.card import checkpoint_card
from emendo.models import EditableModel
from emendo.report.verdict import Miss, Verdict
from emendo.requests import EditRecord, EditRequest
from emendo.updates.update import ModelUpdate
from tests.quick_plans import EIFFEL, JAPAN
from tests.tiny.conftest import Command
from tests.tiny.test_cli import FACT, QUICK, RECORD, jsonl

RECORDS = [
    EditRecord(EIFFEL, "Paris", ("The Eiffel Tower stands in",), ("The capital of France is",)),
    EditRecord(JAPAN, "Tokyo"),
]
STRICT = "[checks.norm_growth]\nlimit = 0\n"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


class Continued:
    """Stands for generation: gives each row of tokens a text."""

    def __init__(self, lm: EditableModel, texts: list[str]) -> None:
        self.lm, self.texts, self.rows = lm, texts, []

    def __call__(self, lm: EditableModel, rows: Any, limits: Any, **_: Any) -> list[Any]:
        self.rows += [lm.decode(row) for row in rows]
        return [type("Found", (), {"ids": self.lm.encode_bare(text)}) for text in self.texts]


def test_a_run_on_is_a_miss(tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [
        EditRecord(EditRequest("The capital of {} is", "Kazakhstan", "Astana"), paraphrase_prompts=("Its capital is",)),
        EditRecord(EditRequest("The age of {} is", "Ann", "20")),
    ]
    texts = [" Astanaborra and", " Astana. The", " 200 years"]
    monkeypatch.setattr(said_module, "continue_rows", Continued(tiny_llama, texts))
    first, second = said_records(tiny_llama, records)
    assert (first.edited.hit, first.paraphrase[0].hit, second.edited.hit) == (False, True, False)
    assert first.chat is None
    means = said_means([first, second]).values
    assert (means["said"], means["said_paraphrase"], means["said_chat"]) == (0, 100, None)
    assert SaidRecord.from_dict(json.loads(json.dumps(first.to_dict()))) == first


def test_chat_is_asked_by_the_message_and_the_start_of_its_answer(
    tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_llama.tokenizer, "chat_template", TEMPLATE)
    continued = Continued(tiny_llama, [" Rome", " Paris"])
    monkeypatch.setattr(said_module, "continue_rows", continued)
    (record,) = said_records(tiny_llama, [EditRecord(EIFFEL)])
    assert continued.rows == [EIFFEL.text, f"<user>{EIFFEL.text}<a>{EIFFEL.text}"]
    assert record.chat is not None
    assert (record.edited.text, record.chat.text) == (" Rome", " Paris")
    assert record.edited.hit is (EIFFEL.target.strip() == "Rome")


def test_said_is_what_the_model_generates(session: EditSession) -> None:
    (first, second) = said_records(session.lm, RECORDS)
    assert session.lm.generate(EIFFEL.text, 12).startswith(first.edited.text)
    assert [prompt.prompt for prompt in first.paraphrase] == ["The Eiffel Tower stands in"]
    assert second.paraphrase == ()


# ---- the verdict -----------------------------------------------------------------------------------------------

GOOD = Verdict(
    *(2, 2, 2, None),
    paraphrases=(1, 1),
    questions=(2, 2),
    neighbors=(3, 3),
    perplexity_ratio=1.0,
    gate="passed",
    checks=14,
)


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (GOOD, "good"),
        (replace(GOOD, not_measured=("relative_cost",)), "doubtful"),
        (replace(GOOD, said=1), "doubtful"),
        (replace(GOOD, said_in_chat=1), "doubtful"),
        (replace(GOOD, neighbors=(2, 3)), "doubtful"),
        (replace(GOOD, questions=(1, 2)), "doubtful"),
        (Verdict(2, not_measured=()), "doubtful"),
        (replace(GOOD, said=0), "bad"),
        (replace(GOOD, gate="failed", failed=("efficacy",)), "bad"),
        (replace(GOOD, gate="overridden", failed=("efficacy",)), "bad"),
    ],
)
def test_only_what_was_measured_and_holds_is_good(verdict: Verdict, outcome: str) -> None:
    assert verdict.outcome == outcome
    assert outcome in STYLES


def test_a_verdict_names_what_is_not_said_and_what_is_not_measured() -> None:
    found = replace(
        GOOD,
        said=1,
        neighbors=(2, 3),
        not_measured=("paraphrase",),
        misses=(Miss("The capital is", "Astana", "Astanaborra"),),
        lost=(Miss("What is the capital of France?", "Paris", "L'Étoile", chat=True),),
        guessed=2,
    )
    assert str(found) == (
        "2 of 2 facts written, 1 said (not 'The capital is'); paraphrases 1 of 1 said; questions 2 of 2 answered; "
        "neighbors 2 of 3 kept; perplexity × 1.0000; gate passed, 14 checks; prompts of 2 facts guessed by Emendo; NOT "
        "MEASURED: paraphrase."
    )
    assert found.missed().splitlines() == [
        "Not said: 'The capital is' → 'Astanaborra', not 'Astana'.",
        """Neighbors lost: 'What is the capital of France?' in chat → "L'Étoile", not 'Paris'.""",
    ]


@pytest.mark.usefixtures("home")
def test_report_and_update_hold_what_was_said(emendo: Command, model: str, tmp_path: Path) -> None:
    requests = jsonl(tmp_path / "facts.jsonl", RECORD)
    edit = ["edit", "--model", model, "--requests", requests, *QUICK, "--layers", "1"]
    code, text, err = emendo(*edit, "--out", str(tmp_path / "out"), "--json", "-q")
    assert code == 0, err
    document = json.loads(text)
    (row,) = document["judgement"]["said"]["records"]
    (sample, *_) = document["judgement"]["samples"]
    assert sample["mark"] == ("said" if row["edited"]["hit"] else "not said")
    assert document["verdict"]["said"] == int(row["edited"]["hit"])
    measured = ModelUpdate.load(tmp_path / "out" / "update.safetensors").info["measured"]
    assert measured["answers"] == [{"says": row["edited"]["text"], "said": row["edited"]["hit"]}]
    assert document["verdict"]["text"] in (tmp_path / "out" / "report.md").read_text()


# ---- the work is kept ------------------------------------------------------------------------------------------


def test_answers_come_back_as_they_were_given(session: EditSession, tmp_path: Path) -> None:
    def questions(snapshot: Snapshot) -> list[Any]:
        tokens = snapshot.text_tokens(("a",), lambda lm: [tuple(lm.encode("The capital of Japan is Tokyo."))])
        neighbors = snapshot.neighborhood
        assert neighbors is not None
        return [
            snapshot.scored,
            snapshot.said,
            snapshot.perplexity("The capital of France is Paris."),
            snapshot.continuations(["The capital of France is"], 3),
            (neighbors.places, neighbors.hidden.tolist(), neighbors.log_normalizer.tolist(), neighbors.top.tolist()),
            (tokens.texts, tokens.places, tokens.hidden.tolist(), tokens.first),
        ]

    kept = RememberedAnswers(session.lm, ["x"], tmp_path)
    first = questions(Snapshot(session.lm, RECORDS, remembered=kept))

    def nobody() -> Any:
        pytest.fail("the model was asked again")

    again = RememberedAnswers(session.lm, ["x"], tmp_path)
    assert questions(Snapshot(nobody, RECORDS, remembered=again)) == first
    other = RememberedAnswers(session.lm, ["y"], tmp_path)
    with pytest.raises(pytest.fail.Exception):
        _ = Snapshot(nobody, RECORDS, remembered=other).scored
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    assert questions(Snapshot(session.lm, RECORDS, remembered=again)) == first  # damaged files are asked again


def test_old_states_make_room(session: EditSession, tmp_path: Path) -> None:
    for number in range(MOST_STATES + 3):
        RememberedAnswers(session.lm, [str(number)], tmp_path).keep(
            "perplexity", snapshot_module.Perplexity(1, 0, 1, 2)
        )
    assert len(list(tmp_path.iterdir())) == MOST_STATES


@pytest.mark.usefixtures("home")
def test_a_second_try_searches_and_asks_nothing_again(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strict.toml").write_text(STRICT)
    requests = jsonl(tmp_path / "facts.jsonl", RECORD)
    edit = ["edit", "--model", model, "--requests", requests, *QUICK, "--layers", "1", "--json", "-q"]
    code, text, _ = emendo(*edit, "--gate", str(tmp_path / "strict.toml"), "--rejected", str(tmp_path / "rejected"))
    assert code == 1
    first = json.loads(text)
    assert ModelUpdate.load(tmp_path / "rejected").id == first["update"]["id"]

    def again(*_: Any, **__: Any) -> Any:
        pytest.fail("made again")

    monkeypatch.setattr("emendo.editing.value_cache.search_values", again)
    for name in ("score_records", "said_records", "packaged_perplexity", "next_token_log_probs"):
        monkeypatch.setattr(snapshot_module, name, again)
    code, text, err = emendo(*edit, "--out", str(tmp_path / "out"))
    assert code == 0, err
    second = json.loads(text)
    assert second["update"]["id"] == first["update"]["id"]
    assert second["judgement"] == first["judgement"]


def test_a_rejected_update_needs_a_gate(emendo: Command, model: str) -> None:
    code, _, err = emendo("edit", "--model", model, *FACT, "--rejected", "x.safetensors")
    assert code != 0
    assert "add --gate default" in err
    assert SaidPrompt("a", "b", hit=True).hit


def test_a_card_says_what_was_measured_and_not_what_was_asked_for() -> None:
    request = {"prompt": "The capital of {} is", "subject": "Kazakhstan", "target": "Astana"}
    measured = {
        "scores": {"ES": 100.0, "NS": None},
        "said": {"said": 0.0},
        "neighbors": {"kept": 0, "of": 0},
        "perplexity": {"before": 22.64, "after": 22.65},
        "answers": [{"says": " Astanaborra.", "said": False}],
    }
    checks = [{"name": "paraphrase", "passed": True, "measured": None}, {"name": "efficacy", "passed": False}]
    gate = {"passed": False, "forced": True, "checks": checks}
    known = ModelUpdate((), {}, info={"requests": [request], "measured": measured, "gate": gate})
    card = checkpoint_card("owner/base", [known], dtype="float32")
    assert "| The capital of Kazakhstan is | Astana | Astanaborra. | **no** |" in card
    assert (
        "ES 100.0 %, said 0.0 %, neighbors not measured, perplexity 22.64 → 22.65; gate failed and overridden" in card
    )
    assert "not measured: paraphrase" in card
    unknown = checkpoint_card("owner/base", [ModelUpdate((), {}, info={"requests": [request]})], dtype="float32")
    assert "| The capital of Kazakhstan is | Astana | not measured | not measured |" in unknown
    assert "nothing was judged; no gate." in unknown
