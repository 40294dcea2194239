"""A sweep over layers beside a trace, against single edits and traces made by hand; and `emendo layers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emendo.editing.session import EditSession
from emendo.errors import ExperimentError, LayerError
from emendo.evaluate import evaluate_records
from emendo.evaluate.aggregate import record_measures
from emendo.experiments.layer_study import CHEAP, StudySettings, layer_study, swept_places
from emendo.models import EditableModel
from emendo.report.layers import document
from emendo.requests import EditRecord, EditRequest
from emendo.statistics import MomentStore
from emendo.tracing import TraceFact, TraceSettings, trace
from emendo.tracing.sweep import LayerStudy, Place
from tests.quick_plans import QUICK
from tests.tiny.conftest import Command

FACTS = [
    ("{} is located in the city of", "The Eiffel Tower", "Rome", "Paris"),
    ("The capital of {} is", "Japan", "Bordeaux", "Tokyo"),
    ("{}, a native speaker of", "Danielle Darrieux", "Tokyo", "French"),
]
RECORDS = [
    EditRecord(
        EditRequest(prompt, subject, target),
        target_true=true,
        paraphrase_prompts=(f"I wrote that {prompt.format(subject)}",),
        neighborhood_prompts=("The capital of Italy is", "The weather of France is"),
    )
    for prompt, subject, target, true in FACTS
]
TRACE = TraceSettings(kinds=("hidden", "mlp"), positions="ends", samples=2, window=2)
SETTINGS = StudySettings(layers=(0, 2, 3), settings=QUICK, n=3, part="all", trace=TRACE)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    rows = [
        {
            **record.request.to_dict(),
            "target_true": record.target_true,
            "paraphrase_prompts": list(record.paraphrase_prompts),
            "neighborhood_prompts": list(record.neighborhood_prompts),
        }
        for record in RECORDS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def study(facts: str, store: MomentStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[EditableModel, LayerStudy]:
    from tests.conftest import build_tiny

    # All facts at once and one by one differ in the last bits, and Adam's steps make more of that.
    lm = build_tiny("llama", dtype=torch.float64)
    return lm, layer_study(lm, facts, SETTINGS, folder=tmp_path_factory.mktemp("study"), store=store)


def test_the_sweep_is_single_edits(study: tuple[EditableModel, LayerStudy], store: MomentStore) -> None:
    lm, found = study
    assert [place.layers for place in found.places] == [(0,), (2,), (3,)]
    by_text = {record.request.text: record for record in RECORDS}
    place = found.places[1]
    session = EditSession(lm, store=store)
    norms, leverage, nll = [], [], []
    for number, text in enumerate(found.facts):
        plan = session.plan([by_text[text].request], "emmet", layers=[2], settings=QUICK)
        with session.applied(plan.update):
            (scored,) = evaluate_records(lm, [by_text[text]]).records
        for name, value in record_measures(scored).items():
            np.testing.assert_allclose(place.measures[name][number], value, rtol=1e-3, atol=1e-5, err_msg=name)
        (report,), (part,) = plan.layers, plan.update.layers
        norms.append(report.relative_norm)
        nll.append(plan.targets[0].nll)
        prepared = session.preservation(plan.method.config)[2]  # type: ignore[arg-type]
        assert part.keys is not None
        key = part.keys.double()
        leverage.append(float((key @ np.linalg.inv(prepared.metric().numpy()) * key.numpy()).sum()))
    assert place.relative_norm == pytest.approx(np.mean(norms), rel=1e-4)
    assert place.leverage == pytest.approx(np.mean(leverage), rel=1e-4)
    assert place.target_nll == pytest.approx(np.mean(nll), rel=1e-4)
    assert place.delta_ratio is not None
    assert place.delta_ratio > 0


def test_the_trace_is_of_the_same_facts(study: tuple[EditableModel, LayerStudy]) -> None:
    lm, found = study
    by_text = {record.request.text: record for record in RECORDS}
    asked = [TraceFact(by_text[text].request.prompt, by_text[text].request.subject) for text in found.facts]
    traced = trace(lm, asked, TRACE)
    effects = found.effects("mlp", "last subject")
    expected = [fact.effects("mlp")[fact.end - 1] for fact in traced.facts]
    np.testing.assert_allclose(effects, expected, atol=1e-6)
    assert found.known == sum(
        by_text[text].target_true.startswith(fact.said.strip()) and fact.said.strip() != ""  # type: ignore[union-attr]
        for text, fact in zip(found.facts, traced.facts, strict=True)
    )


def test_the_recommendation_is_the_cheapest_that_cannot_be_told_from_the_best(
    study: tuple[EditableModel, LayerStudy],
) -> None:
    _, found = study

    def place(layer: int, shares: list[float], cost: float) -> Place:
        table = {name: np.array(shares) for name in ("ES", "PS", "NS", "EP", "PP", "NM")}
        return Place((layer,), measures=table, relative_cost=cost)

    def told(*places: Place) -> LayerStudy:
        return LayerStudy(found.model, 4, found.made, found.facts, places, found.before, found.trace, found.known)

    best, cheap, bad = place(0, [1, 0.9, 1], 0.5), place(2, [0.9, 1, 0.95], 0.1), place(3, [0.1, 0.2, 0.1], 0.01)
    chosen = told(best, cheap, bad)
    assert chosen.recommended is cheap
    assert chosen.standing.alike == (True, True, False)
    assert {layer for layer, _ in chosen.regrets.values()} <= {0, 2, 3}
    alone = told(Place((1,), error="InfeasibleError: no"), best, bad)
    assert alone.recommended is best
    assert alone.edited == (best, bad)


def test_document_holds_everything(study: tuple[EditableModel, LayerStudy]) -> None:
    _, found = study
    told = document(found)
    assert len(told["explained"]) == 12  # three outcomes, two kinds, two positions
    for row in told["explained"]:
        assert row["both"]["value"] == pytest.approx(row["layer"]["value"] + row["gain"]["value"])
    assert len(told["correlations"]) == 4
    assert sum(row["recommended"] for row in told["places"]) == 1
    assert told["recommended"]["option"] == f"--layers {told['recommended']['layers'][0]}"
    assert json.loads(json.dumps(told)) == told


def test_an_interrupted_study_goes_on(
    facts: str,
    store: MomentStore,
    tmp_path: Path,
    study: tuple[EditableModel, LayerStudy],
) -> None:
    lm, whole = study

    class Stopping:
        left = 4

        def start(self, stage: str, total: int | None = None) -> None: ...

        def advance(self, n: int = 1) -> None:
            self.left -= n
            if self.left < 0:
                raise KeyboardInterrupt

        def finish(self) -> None: ...

    with pytest.raises(KeyboardInterrupt):
        layer_study(lm, facts, SETTINGS, folder=tmp_path / "cut", store=store, progress=Stopping())
    found = layer_study(lm, facts, SETTINGS, folder=tmp_path / "cut", store=store)
    for one, other in zip(found.places, whole.places, strict=True):
        for name in one.measures:
            np.testing.assert_array_equal(one.measures[name], other.measures[name])
    with pytest.raises(ExperimentError, match="another configuration"):
        layer_study(lm, facts, StudySettings(layers=(1,), n=3, part="all"), folder=tmp_path / "cut", store=store)


def test_places(tiny_llama: EditableModel) -> None:
    assert swept_places(tiny_llama, StudySettings()) == [(0,), (1,), (2,), (3,)]
    assert swept_places(tiny_llama, StudySettings(layers=(3, 1), window=2)) == [(1,), (3,), (0, 1), (2, 3)]
    with pytest.raises(LayerError):
        swept_places(tiny_llama, StudySettings(layers=(4,)))
    with pytest.raises(ExperimentError, match="--window"):
        swept_places(tiny_llama, StudySettings(window=9))


# ---- the command ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("home", "small_pictures")
def test_command(emendo: Command, facts: str, model: str, tmp_path: Path) -> None:
    out = tmp_path / "layers"
    quick: list[Any] = [word for name, value in QUICK.items() for word in ("--set", f"{name}={value}")]
    common = ("layers", "--model", model, "--facts", facts, "--part", "all", "--n", "3", "--samples", "2", *quick)
    code, text, err = emendo(*common, "--layers", "0,2", "--window", "2", "--out", str(out))
    assert code == 0, err
    for words in ("Highest S", "Preset((", "--layers", "tracing adds"):
        assert words in text
    names = {"layers.html", "layers.json", "layers.md", "layers.png", "trace.safetensors", "sweep"}
    assert {path.name for path in out.iterdir()} == names
    page = (out / "layers.html").read_text()
    assert page.count('<svg role="img"') == 10
    assert "<script" not in page
    told = json.loads((out / "layers.json").read_text())
    assert [row["name"] for row in told["places"]] == ["0", "2", "0-1", "1-2"]
    assert all(row["error"] is None for row in told["places"]), "windows spread what one layer would write"
    code, _, err = emendo(*common, "--layers", "0,2", "--out", str(out), "-q")
    assert (code, err.count("\n")) == (2, 1)
    assert "--overwrite" in err


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--facts", "missing.jsonl"), "missing.jsonl"),
        (("--n", "1"), "--n 32"),
        (("--layers", "9"), "layers 0 to 3"),
        (("--window", "1"), "--window 5"),
        (("--method", "ft"), "--method"),
        (("--n", "3", "--facts", "BARE"), "--facts"),
        (("--n", "3", "--facts", "ELSEWHERE"), "must hold the subject once"),
        (("--n", "3", "--batch-size", "4"), "--batch-size"),
        (("--part", "test"), "part"),
        (("--n", "3", "--samples", "0"), "--samples"),
    ],
)
def test_bad_input_is_one_line(
    emendo: Command, facts: str, model: str, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    bare = tmp_path / "bare.jsonl"
    rows = [{"prompt": f"{{}} {n} is", "subject": f"Japan {n}", "target": "Rome"} for n in range(4)]
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elsewhere = tmp_path / "elsewhere.jsonl"
    row = {"prompt": "The capital of Italy is", "subject": "Japan", "attribute": "Rome", "known_id": 1, "template": "x"}
    elsewhere.write_text(json.dumps(row) + "\n")
    places = {"BARE": str(bare), "ELSEWHERE": str(elsewhere)}
    named = [places.get(word, word) for word in arguments]
    given = () if "--facts" in arguments else ("--facts", facts)
    code, _, err = emendo("layers", "--model", model, "--part", "all", *given, *named, "-q")
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err


def test_settings_as_plain_values() -> None:
    assert json.loads(json.dumps(StudySettings().to_dict())) == StudySettings().to_dict()
    assert CHEAP.positions == "ends"
