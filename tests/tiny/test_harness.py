"""General ability through lm-evaluation-harness: the live model, as it is, and nothing left behind."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emendo.editing.session import EditSession
from emendo.errors import HarnessError
from emendo.models import EditableModel
from emendo.models.identity import parameters_sha256
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.conftest import build_tiny
from tests.tiny.conftest import Command

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'emendo[harness]'")

from emendo.evaluate.harness import compare, general_ability

TASKS = Path(__file__).parents[2] / "experiments" / "harness"
CITIES = ["Paris", "Rome", "Tokyo", "Bordeaux"]
QUESTIONS = [
    {"question": f"The capital of {country} is", "choices": CITIES, "answer": index % 4, "subject": "geography"}
    for index, country in enumerate(["France", "Italy", "Japan", "Gironde", "the west", "the south", "the east", "art"])
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return path


def run(lm: EditableModel, data: Path, **options: Any) -> dict[str, Any]:
    return general_ability(lm, ["mmlu_sample"], include_path=TASKS, data=data, **options)


def opinionated() -> EditableModel:
    """A tiny model with large logits: an untrained one takes whichever letter is the fewest tokens, edited or not."""
    lm = build_tiny("llama")
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(10)
    return lm


LIKELIHOOD = """
task: {name}
custom_dataset: !function question_file.load
test_split: test
output_type: {kind}
doc_to_text: "{{{{question.strip()}}}}"
doc_to_target: "{target}"
{choices}
metric_list: {metrics}
metadata:
  version: 1.0
"""


def task_folder(folder: Path, name: str, kind: str, metrics: str, more: str = "") -> Path:
    """A folder with one task over the questions, whose right answer is one of the cities or, otherwise, Rome."""
    folder.mkdir()
    (folder / "question_file.py").write_text((TASKS / "question_file.py").read_text())
    choice = kind == "multiple_choice"
    text = LIKELIHOOD.format(
        name=name,
        kind=kind,
        metrics=metrics,
        target="{{answer}}" if choice else " Rome",
        choices='doc_to_choice: "{{choices}}"' if choice else "",
    )
    (folder / f"{name}.yaml").write_text(text + more)
    return folder


def log_likelihood(lm: EditableModel, prompt: str, answer: str) -> float:
    """By the model's own logits, in float64."""
    ids, wanted = lm.encode(prompt), lm.encode_bare(answer)
    with torch.no_grad():
        rows = lm.model(torch.tensor([ids + wanted])).logits[0].double().log_softmax(-1)
    return sum(float(rows[len(ids) - 1 + at, token]) for at, token in enumerate(wanted))


def strong_update(session: EditSession) -> ModelUpdate:
    """One that changes what the model says about nearly everything."""
    lm = session.lm
    draw = torch.Generator().manual_seed(3)
    residuals = 3 * torch.randn(4, lm.d_model, generator=draw)
    part = LayerUpdate(2, lm.module_name(2), residuals, torch.randn(4, lm.d_in(2), generator=draw))
    return ModelUpdate((part,), session.base)


def letters_by_hand(lm: EditableModel) -> tuple[list[float], list[float]]:
    """Whether each question is answered rightly, and -log p(right letter) among the letters.

    From the model's own logits, one prompt at a time.
    """
    hits, losses = [], []
    for row in QUESTIONS:
        choices = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True))
        ids = lm.encode(f"{row['question']}{choices}\nAnswer:")
        scores = []
        for letter in "ABCD":
            wanted = lm.encode_bare(f" {letter}")
            with torch.no_grad():
                logits = lm.model(torch.tensor([ids + wanted])).logits[0].log_softmax(-1)
            scores.append(sum(float(logits[len(ids) - 1 + at, token]) for at, token in enumerate(wanted)))
        hits.append(float(int(np.argmax(scores)) == row["answer"]))
        losses.append(float(np.logaddexp.reduce(scores) - scores[int(str(row["answer"]))]))
    return hits, losses


def test_scores_are_those_of_the_model_in_memory(questions: Path) -> None:
    session = EditSession(opinionated())
    base = run(session.lm, questions)
    found = base["tasks"]["mmlu_sample"]
    hits, losses = letters_by_hand(session.lm)
    assert found["metrics"]["acc"]["items"] == hits
    assert found["metrics"]["choice_nll"]["items"] == pytest.approx(losses, abs=1e-4)
    assert found["n"] == found["n_total"] == 8
    assert base["versions"].keys() >= {"emendo", "torch", "transformers", "lm_eval"}
    session.apply(strong_update(session))
    edited = run(session.lm, questions)
    after, losses = letters_by_hand(session.lm)
    assert edited["tasks"]["mmlu_sample"]["metrics"]["acc"]["items"] == after
    assert edited["tasks"]["mmlu_sample"]["metrics"]["choice_nll"]["items"] == pytest.approx(losses, abs=1e-4)
    row, _ = compare(base, edited)
    assert (row["base"], row["edited"]) == (sum(hits) / 8, sum(after) / 8)
    assert row["up"] + row["down"] > 0, "the update changes no answer, so the test would show nothing"
    assert row["difference"] == pytest.approx((row["up"] - row["down"]) / 8)
    assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    session.rollback()
    assert run(session.lm, questions)["tasks"] == base["tasks"]


def test_a_perplexity_is_that_of_the_harness_and_goes_up_where_answers_become_less_likely(
    questions: Path, tmp_path: Path
) -> None:
    folder = task_folder(tmp_path / "tasks", "rome", "loglikelihood", "[{metric: perplexity}, {metric: acc}]")
    session = EditSession(build_tiny("llama"))
    asked: dict[str, Any] = {"include_path": folder, "data": questions}
    base = general_ability(session.lm, ["rome"], **asked)
    found = base["tasks"]["rome"]["metrics"]["perplexity"]
    likelihoods = [log_likelihood(session.lm, row["question"], " Rome") for row in QUESTIONS]
    assert found["items"] == pytest.approx(likelihoods, abs=1e-4)
    assert found["value"] == pytest.approx(np.exp(-np.mean(likelihoods)), rel=1e-4)
    assert found["interval"][0] < found["value"] < found["interval"][1]
    assert (found["aggregation"], base["tasks"]["rome"]["metrics"]["acc"]["aggregation"]) == ("exp(-mean)", "mean")
    session.apply(strong_update(session))
    edited = general_ability(session.lm, ["rome"], **asked)
    after = [log_likelihood(session.lm, row["question"], " Rome") for row in QUESTIONS]
    row = next(row for row in compare(base, edited) if row["metric"] == "perplexity")
    assert row["difference"] == pytest.approx(np.exp(-np.mean(after)) - np.exp(-np.mean(likelihoods)), rel=1e-3)
    assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    less_likely = sum(now < then for now, then in zip(after, likelihoods, strict=True))
    assert (row["up"], row["down"]) == (less_likely, 8 - less_likely)


def test_metrics_that_are_no_mean_are_left_out_by_name(
    tiny_llama: EditableModel, questions: Path, tmp_path: Path, emendo: Command, model: str
) -> None:
    metrics = "[{metric: acc, aggregation: median}, {metric: acc_norm}, {metric: mcc}]"
    folder = task_folder(tmp_path / "tasks", "cities", "multiple_choice", metrics)
    (task,) = general_ability(tiny_llama, ["cities"], include_path=folder, data=questions)["tasks"].values()
    assert set(task["metrics"]) == {"acc_norm", "choice_nll"}
    assert set(task["left_out"]) == {"acc", "mcc"}
    assert "'median'" in task["left_out"]["acc"]
    asked = ("harness", "--model", model, "--tasks", "cities", "--include", str(folder), "--data", str(questions))
    code, text, err = emendo(*asked)
    assert code == 0, err
    assert "cities also has acc, which is left out: the task makes it of its items by 'median'" in text.replace(
        "\n", ""
    )


def test_the_loss_among_choices_does_not_count_answers_without_their_question(
    tiny_llama: EditableModel, questions: Path, tmp_path: Path
) -> None:
    metrics = "[{metric: acc}, {metric: acc_mutual_info}]"
    folder = task_folder(tmp_path / "tasks", "mutual", "multiple_choice", metrics)
    (task,) = general_ability(tiny_llama, ["mutual"], include_path=folder, data=questions)["tasks"].values()
    for row, nll in zip(QUESTIONS, task["metrics"]["choice_nll"]["items"], strict=True):
        scores = [log_likelihood(tiny_llama, str(row["question"]), f" {city}") for city in CITIES]
        assert nll == pytest.approx(np.logaddexp.reduce(scores) - scores[int(str(row["answer"]))], abs=1e-4)


def test_the_loss_among_choices_is_that_of_each_filter(
    tiny_llama: EditableModel, questions: Path, tmp_path: Path
) -> None:
    filters = """
filter_list:
  - name: all
    filter: [{function: take_first}]
  - name: again
    filter: [{function: take_first}]
"""
    folder = task_folder(tmp_path / "tasks", "filtered", "multiple_choice", "[{metric: acc}]", filters)
    (task,) = general_ability(tiny_llama, ["filtered"], include_path=folder, data=questions)["tasks"].values()
    assert set(task["metrics"]) == {"acc (all)", "acc (again)", "choice_nll (all)", "choice_nll (again)"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_log_probabilities_have_single_precision_at_least(dtype: torch.dtype) -> None:
    from emendo.evaluate.harness import _live

    lm = build_tiny("llama", dtype=dtype)
    (score,) = _live(lm, 1)._loglikelihood_tokens([(("", ""), lm.encode("The capital is"), [7])])
    assert score[0] != float(torch.tensor(score[0]).bfloat16())
    assert score[0] != float(torch.tensor(score[0]).half())


def test_results_of_an_earlier_emendo_are_not_compared(questions: Path, tiny_llama: EditableModel) -> None:
    found = run(tiny_llama, questions, limit=2)
    with pytest.raises(HarnessError, match="version 1, expected 2"):
        compare({**found, "version": 1}, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_is_left_as_it_was(questions: Path, dtype: torch.dtype) -> None:
    lm = build_tiny("gpt2", dtype=dtype)
    lm.model.train()
    lm.model.get_input_embeddings().weight.requires_grad_(False)
    lm.tokenizer.pad_token = None
    kept = {name: id(parameter) for name, parameter in lm.model.named_parameters()}
    digest = parameters_sha256(lm.model)
    grads = [parameter.requires_grad for parameter in lm.model.parameters()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    error = sys.stderr
    run(lm, questions, seed=5)
    assert {name: id(parameter) for name, parameter in lm.model.named_parameters()} == kept
    assert parameters_sha256(lm.model) == digest
    assert [parameter.requires_grad for parameter in lm.model.parameters()] == grads
    assert all(module.training for module in lm.model.modules())
    assert lm.tokenizer.pad_token is None
    assert lm.dtype == dtype
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert sys.stderr is error


def test_limit_and_examples_are_recorded(tiny_llama: EditableModel, tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    rows = [{"question": f"{at}", "choices": list("wxyz"), "answer": 0} for at in range(5)]
    short.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(tiny_llama, short, limit=3, num_fewshot=1)
    task = found["tasks"]["mmlu_sample"]
    assert (task["n"], task["n_total"], task["num_fewshot"]) == (3, 5, 1)
    assert found["settings"]["limit"] == 3
    plain = run(tiny_llama, short, limit=3)
    assert plain["tasks"]["mmlu_sample"]["items_sha256"] != task["items_sha256"], "the prompts are others"
    with pytest.raises(HarnessError, match="not of the same items"):
        compare(plain, found)


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown task": ({"tasks": ["mmlu_sampel"]}, ["'mmlu_sampel'", "--tasks", "--include"]),
    "no task": ({"tasks": []}, ["--tasks"]),
    "no folder": ({"include_path": "nowhere"}, ["'nowhere'", "--include"]),
    "no data": ({"data": None}, ["--data"]),
    "no file": ({"data": "nowhere.jsonl"}, ["nowhere.jsonl", "--data"]),
    "limit": ({"limit": 0}, ["--limit", "found 0"]),
    "batch size": ({"batch_size": -1}, ["--batch-size", "found -1"]),
}


SLOW = {"unknown task"}  # reads the index of all built-in tasks


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in BAD])
def test_bad_arguments(case: str, tiny_llama: EditableModel, questions: Path) -> None:
    changed, words = BAD[case]
    options = {"tasks": ["mmlu_sample"], "include_path": TASKS, "data": questions, **changed}
    with pytest.raises(HarnessError) as caught:
        general_ability(tiny_llama, options.pop("tasks"), **options)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2"),
        ("[]", "JSON object"),
        ('{"question": " ", "choices": ["a","b","c","d"], "answer": 0}', "question"),
        ('{"question": "q", "choices": ["a","b","c"], "answer": 0}', "4 texts"),
        ('{"question": "q", "choices": ["a","b","c","d"], "answer": 4}', "found 4"),
        ('{"question": "q", "choices": ["a","b","c","d"], "answer": true}', "found True"),
    ],
)
def test_bad_questions_are_named(line: str, words: str, tiny_llama: EditableModel, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(QUESTIONS[0]) + "\n" + line + "\n")
    with pytest.raises(HarnessError, match="1 of 2 lines") as caught:
        run(tiny_llama, path)
    assert words in str(caught.value)


def test_a_separator_inside_a_question_is_text(tiny_llama: EditableModel, tmp_path: Path) -> None:
    path = tmp_path / "separators.jsonl"
    rows = [{**QUESTIONS[0], "question": f"a{mark}b"} for mark in "\u2028\x85\x1e"]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert run(tiny_llama, path)["tasks"]["mmlu_sample"]["n"] == 3


def test_a_task_that_fixes_its_examples_refuses_others(
    tiny_llama: EditableModel, questions: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "question_file.py").write_text((TASKS / "question_file.py").read_text())
    text = (TASKS / "mmlu_sample.yaml").read_text()
    (folder / "fixed.yaml").write_text(text.replace("task: mmlu_sample", "task: fixed\nnum_fewshot: 0"))
    with pytest.raises(HarnessError, match="num_fewshot=2"):
        general_ability(tiny_llama, ["fixed"], include_path=folder, data=questions, num_fewshot=2)


def test_without_the_package(tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(HarnessError, match=r"lm-evaluation-harness, which cannot be imported .*: pip install 'lm"):
        general_ability(tiny_llama, ["mmlu_sample"])


@pytest.mark.usefixtures("home")
def test_the_command(emendo: Command, model: str, questions: Path, tmp_path: Path) -> None:
    from emendo.models import load

    session = EditSession(load(model))
    update = strong_update(session).save(tmp_path / "update.safetensors")
    asked = ("harness", "--model", model, "--tasks", "mmlu_sample", "--include", str(TASKS), "--data", str(questions))
    code, text, err = emendo(*asked, "--update", str(update), "--out", str(tmp_path / "out.json"), "--json", "--quiet")
    assert (code, err) == (0, "")
    document = json.loads(text)
    assert document["comparison"][0]["n"] == 8
    assert set(document["rolled_back_bitwise"].values()) == {True}
    assert json.loads((tmp_path / "out.json").read_text()) == document
    code, text, err = emendo(*asked, "--limit", "2")
    assert code == 0, err
    assert "mmlu_sample" in text
    assert "unedited" in text
    code, _, err = emendo(*asked, "--update", str(questions))
    assert code == 2
    assert "Traceback" not in err
