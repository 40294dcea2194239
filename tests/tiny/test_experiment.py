"""Experiments on a tiny model: what cells share, what they refuse, what they write."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import emendo.editing.value_cache as target_memory
from emendo.datasets import load_records, read_records
from emendo.editing.session import EditSession
from emendo.editing.value_search import search_values
from emendo.errors import ExperimentError, InfeasibleError, InputError
from emendo.evaluate import evaluate_records, packaged_text, perplexity, probe_scores, zsre_scores
from emendo.evaluate.rows import score_rows
from emendo.experiments import Cell, Experiment, Measures, comparable
from emendo.experiments import ground as ground_module
from emendo.experiments.folder import ExperimentFolder
from emendo.experiments.ground import Ground
from emendo.models import EditableModel
from emendo.progress import Silent
from emendo.statistics import MomentStore
from emendo.updates.update import LayerUpdate
from tests.conftest import build_tiny
from tests.experiment_cases import CHEAP, QUICK, cell, write_cases, write_records, write_zsre
from tests.pairs import pairs

pytestmark = pytest.mark.usefixtures("settled_heap")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_records(tmp_path / "records.jsonl")


@pytest.fixture
def run(tmp_path: Path, store: MomentStore) -> Any:
    """Run cells in a folder; their summaries."""

    def call(*cells: Cell, folder: str = "out", config: Any = None, lm: EditableModel | None = None) -> Any:
        loaded = lm or build_tiny("llama")
        content = {"cells": [one.to_dict() for one in cells]} if config is None else config
        experiment = Experiment("test", content, cells, tmp_path / folder, lambda _: loaded, store=store)
        return list(experiment.run())

    return call


@pytest.fixture
def loads() -> list[str]:
    """Models, in the order in which they are loaded."""
    return []


@pytest.fixture
def several(tmp_path: Path, store: MomentStore, loads: list[str]) -> Any:
    """An experiment with cells of several models."""

    def load(name: str) -> EditableModel:
        loads.append(name)
        return build_tiny("llama", seed=ord(name))

    def make(*cells: Cell) -> Experiment:
        return Experiment("test", {}, cells, tmp_path / "out", load, store=store)

    return make


def unfinish(tmp_path: Path, one: Cell, folder: str = "out") -> None:
    """Take away what says that a cell is finished."""
    (tmp_path / folder / "cells" / one.id / "summary.json").unlink()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- scores ----------------------------------------------------------------------------------------------------


def test_a_cell_says_what_a_session_by_hand_says(run: Any, data: str, store: MomentStore) -> None:
    one = cell(data, "memit-history", "sequential-batched", batch_size=3, n=5)
    (summary,) = run(one)
    known = {record.request.id: record for record in read_records(data)}
    order = [row["id"] for row in lines_of(run, one)]
    records = [known[name] for name in order]
    lm = build_tiny("llama")
    before = evaluate_records(lm, records).scores.to_dict()
    session = EditSession(lm, store=store)
    for batch in (records[:3], records[3:]):
        session.apply(session.plan([r.request for r in batch], one.method, settings=QUICK).update)
    after = evaluate_records(lm, records).scores.to_dict()
    for metric in ("ES", "PS", "NS", "S", "EM", "PM", "NM", "EA", "NA"):
        assert summary["scores"]["before"][metric] == pytest.approx(before[metric], abs=1e-4)
        assert summary["scores"]["final"][metric] == pytest.approx(after[metric], abs=1e-4)
    ppl = perplexity(lm, packaged_text(), max_tokens=64).value
    assert summary["perplexity"]["after"] == pytest.approx(ppl, rel=1e-6)
    total = sum(part.layers[0].delta().double() for part in session.applied_updates)
    base = build_tiny("llama").weight(summary["layers"][0]["layer"]).double()
    assert summary["layers"][0]["relative_norm"] == pytest.approx(float(total.norm() / base.norm()), rel=1e-5)


def lines_of(run: Any, one: Cell) -> list[dict[str, Any]]:
    folder = Path(one.data).parent / "out" / "cells" / one.id
    return lines(folder / "records.jsonl")


def test_batches_do_not_know_of_each_other_unless_the_mode_says_so(run: Any, data: str) -> None:
    batch, sequence = cell(data, n=4), cell(data, "memit-history", "sequential-batched", n=4)
    apart, together = run(batch, sequence)
    assert [(s["scores"]["immediate"] is None, s["scores"]["final"] is None) for s in (apart, together)] == [
        (False, True),
        (False, False),
    ]
    assert apart["scores"]["before"] == together["scores"]["before"]
    assert apart["curve"] == []
    assert [point["edits"] for point in together["curve"]] == [0, 2, 4]
    assert together["curve"][-1]["perplexity_ratio"] == together["perplexity"]["ratio"]
    assert together["retention"]["final"]["n"] == 4
    assert together["layers"][0]["interference"] is not None
    assert apart["layers"][0]["interference"] is None


def test_a_summary_is_plain_json_with_every_promised_field(run: Any, data: str) -> None:
    (summary,) = run(cell(data))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert {"format", "version", "cell", "resolved", "scores", "perplexity", "layers", "curve", "samples"} <= set(
        summary
    )
    assert {"seconds", "peak_bytes", "versions", "commit", "error"} <= set(summary)
    assert {"id", "model", "data", "method", "settings", "layers", "mode", "batch_size", "n", "seed"} <= set(
        summary["cell"]
    )
    assert summary["resolved"]["settings"]["target.steps"] == QUICK["target.steps"]
    assert summary["peak_bytes"] > 0
    (layer,) = summary["layers"]
    assert 0 <= layer["key_overlap"] <= layer["key_overlap_max"] <= 1
    assert layer["constraint_error"] < 1e-6
    assert {sample["kind"] for sample in summary["samples"]} == {"edited", "paraphrase", "neighbor"}


def test_further_measures_are_made_where_they_are_asked_for(run: Any, data: str) -> None:
    measures = Measures(generated=True, shift=True, entropy=True, perplexity=False, samples=0)
    batch, sequence = (
        cell(data, measures=measures),
        cell(data, "memit-history", "sequential-batched", measures=measures),
    )
    for summary in run(batch, sequence):
        assert summary["perplexity"] is None
        assert summary["shift"]["n"] == 8  # two neighbours of four records
        assert summary["shift"]["kl_mean"] >= 0
        assert summary["entropy"]["n"] == 4
        assert summary["entropy"]["texts"] == {"include_prompt": True, "total_tokens": 100, "top_k": 5, "seed": 0}
        assert summary["generated"]["after"]["raw"]["n"] == 4
        assert summary["generated"]["after"]["chat"] is None  # the tiny tokenizer has no template
    assert lines_of(run, batch)[0]["generated"]["after"]["raw"]["answers"]["efficacy"]


@pytest.mark.parametrize("mode", ["batch", "sequential-batched"])
def test_zsre_is_scored_by_token_accuracy(mode: str, run: Any, tmp_path: Path, store: MomentStore) -> None:
    one = cell(write_zsre(tmp_path / "zsre.jsonl"), "memit-history", mode, batch_size=2, n=4)
    (summary,) = run(one)
    known = {record.request.id: record for record in load_records(one.data).records}
    records = [known[row["id"]] for row in lines_of(run, one)]
    lm = build_tiny("llama")
    assert summary["zsre"]["before"] == zsre_scores(lm, records).to_dict()["scores"]
    session = EditSession(lm, store=store)
    rows: list[dict[str, Any]] = []
    for batch in (records[:2], records[2:]):
        session.apply(session.plan([r.request for r in batch], one.method, settings=QUICK).update)
        if mode == "batch":
            rows += zsre_scores(lm, batch).to_dict()["records"]
            session.rollback()
    rows = rows or zsre_scores(lm, records).to_dict()["records"]
    assert [row["zsre"]["after"] for row in lines_of(run, one)] == rows
    assert summary["zsre"]["after"]["efficacy"] == pytest.approx(25 * sum(row["efficacy"] for row in rows))
    assert summary["scores"]["before"]["S"] is None


def test_records_of_another_format_have_no_zsre_score(run: Any, data: str) -> None:
    assert run(cell(data))[0]["zsre"] is None


def test_probes_are_asked_where_they_are_wanted(run: Any, tmp_path: Path) -> None:
    data = write_cases(tmp_path / "cases.jsonl")
    measures = Measures(probes=True, generated=True, perplexity=False, samples=0)
    one = cell(data, "memit-history", "sequential-batched", batch_size=3, n=3, unique_subjects=False, measures=measures)
    (summary,) = run(one)
    known = {record.request.id: record for record in load_records(data).records}
    records = [known[row["id"]] for row in lines_of(run, one)]
    assert len(records) == 6, "n counts cases"
    expected = probe_scores(build_tiny("llama"), records, new_tokens=32)
    assert summary["probes"]["before"] == expected.to_dict()["scores"]
    assert summary["probes"]["after"]["counts"]["multi_hop_contained"] == 3
    assert lines_of(run, one)[0]["probes"]["after"][0]["prompt"].startswith("The city of")
    assert lines_of(run, one)[1]["probes"]["after"] == []


def test_half_a_case_is_not_asked_its_question(run: Any, data: str, tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "cases.jsonl")
    measures = Measures(probes=True, perplexity=False, samples=0)
    with pytest.raises(ExperimentError, match=r"half a case\. Use --mode sequential-batched"):
        run(cell(cases, "rome", "single", batch_size=1, n=2, measures=measures))
    with pytest.raises(ExperimentError, match=r"none of the 4 records .* has neighborhood_prompts"):
        run(cell(cases, n=2, measures=Measures(shift=True)), folder="unshifted")
    with pytest.raises(ExperimentError, match=r"none of the 4 records .* has a probe"):
        run(cell(data, measures=measures), folder="other")
    (whole,) = run(cell(cases, batch_size=2, n=2, measures=measures), folder="whole")
    assert whole["probes"]["after"]["counts"]["multi_hop_argmax"] == 2


@pytest.mark.parametrize(("method", "mode"), pairs(["ft-l", "in-context"], ["sequential-batched", "batch"]))
def test_baselines_work_in_the_modes(method: str, mode: str, run: Any, data: str) -> None:
    one = cell(data, method, mode)
    (summary,) = run(Cell(**{**vars(one), "settings": {"fine_tune.steps": 2} if method == "ft-l" else {}}))
    assert summary["error"] is None
    assert summary["layers"] == [] or summary["layers"][0]["constraint_error"] is None
    moved = summary["scores"]["immediate"]["EP"] != summary["scores"]["before"]["EP"]
    assert moved


# ---- sharing ---------------------------------------------------------------------------------------------------


def test_cells_that_ask_for_one_search_share_it(run: Any, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(lm: Any, requests: Any, *rest: Any) -> Any:
        made.append(len(requests))
        return search_values(lm, requests, *rest)

    monkeypatch.setattr(target_memory, "search_values", counted)
    cells = [cell(data, method, batch_size=size) for size in (1, 4) for method in ("emmet", "memit")]
    same = {"target.argmax_steps": "none", "target.precision": "float32", "distribution": "single"}
    cells = [Cell(**{**vars(one), "settings": {**one.settings, **same}, "layers": (1,)}) for one in cells]
    first = run(*cells)
    assert made == [4]
    assert [summary["work"]["searches"] for summary in first] == [4, 0, 0, 0]
    assert [summary["work"]["shared_searches"] for summary in first] == [0, 4, 4, 4]
    backwards = run(*reversed(cells), folder="backwards")
    for summary, other in zip(first, reversed(backwards), strict=True):
        assert comparable(summary) == comparable(other)


def test_a_model_is_loaded_once_for_its_cells_and_once_to_plan_them(
    several: Any, loads: list[str], data: str, tmp_path: Path
) -> None:
    cells = [cell(data, batch_size=size, model=name) for size in (2, 4) for name in "ab"]
    found = [summary["cell"]["id"] for summary in several(*cells).run()]
    assert found == [cells[number].id for number in (0, 2, 1, 3)]
    assert loads == ["b", "a", "b"]
    document = json.loads((tmp_path / "out" / "experiment.json").read_text())
    assert [entry["id"] for entry in document["cells"]] == [one.id for one in cells]
    assert set(document["base"]["models"]) == {"a", "b"}


def test_a_model_without_anything_left_to_do_is_not_loaded(
    several: Any, loads: list[str], data: str, tmp_path: Path
) -> None:
    cells = [cell(data, model=name) for name in "ab"]
    first = list(several(*cells).run())
    loads.clear()
    assert list(several(*cells).run()) == first
    assert loads == []
    unfinish(tmp_path, cells[1])
    again = several(*cells)
    assert [(plan.finished, plan.cost is None) for plan in again.plan()] == [(True, True), (False, False)]
    assert again.plan()[0].resolved == first[0]["resolved"]
    assert [comparable(summary) for summary in again.run()] == [comparable(summary) for summary in first]
    assert loads == ["b"]
    assert again.time_left(again.plan()) == "0 s"


def test_the_count_of_a_plan_is_what_a_run_does(data: str, tmp_path: Path, store: MomentStore) -> None:
    cells = [
        cell(data, batch_size=1),
        cell(data, batch_size=4),
        cell(data, "rome", batch_size=4),
        cell(data, "memit-history", "sequential-batched"),
    ]
    lm = build_tiny("llama")
    experiment = Experiment("test", {}, cells, tmp_path / "out", lambda _: lm, store=store)
    planned = experiment.plan()
    assert not (tmp_path / "out").exists()
    for plan, summary in zip(planned, experiment.run(), strict=True):
        assert plan.cost.searches == summary["work"]["searches"]
        assert plan.cost.edits == summary["scores"]["before"]["n"]
    left = experiment.time_left([*experiment.plan()])
    assert left == "0 s"


# ---- refusing --------------------------------------------------------------------------------------------------


def test_a_finished_cell_is_not_run_again(run: Any, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = run(cell(data))
    monkeypatch.setattr(EditSession, "plan", None)
    (second,) = run(cell(data))
    assert first == second


def test_another_configuration_in_the_same_folder_is_refused_in_words(run: Any, data: str, tmp_path: Path) -> None:
    run(cell(data), config={"n": 4, "seed": 0})
    with pytest.raises(ExperimentError, match="n was 4, and is now 8"):
        run(cell(data), config={"n": 8, "seed": 0})
    unfinish(tmp_path, cell(data))
    with pytest.raises(ExperimentError, match="weights_sha256: found"):
        run(cell(data), config={"n": 4, "seed": 0}, lm=build_tiny("llama", seed=1))
    write_records(Path(data), 6)
    with pytest.raises(ExperimentError, match="records was 10, and is now 6"):
        run(cell(data), config={"n": 4, "seed": 0})


def test_a_held_out_text_that_changes_is_refused(run: Any, data: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris.")
    measures = Measures(perplexity_text=str(text), samples=0)
    first, second = cell(data, measures=measures), cell(data, batch_size=4, measures=measures)
    run(first, config={})
    text.write_text("Danielle Darrieux was born in Bordeaux.")
    with pytest.raises(ExperimentError, match=r"text\.txt.* is not what the results"):
        run(first, config={})
    known, fresh = run(second, folder="other"), perplexity(build_tiny("llama"), text.read_text()).value
    assert known[0]["perplexity"]["before"] == pytest.approx(fresh)


def test_another_device_is_another_experiment(
    run: Any, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = build_tiny("llama")
    run(cell(data), config={}, lm=lm)
    unfinish(tmp_path, cell(data))
    monkeypatch.setattr(EditableModel, "device", property(lambda self: torch.device("meta")))
    with pytest.raises(ExperimentError, match="type was 'cpu', and is now 'meta'"):
        run(cell(data), config={}, lm=lm)


def test_everything_is_refused_before_the_first_edit(run: Any, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EditSession, "plan", None)
    for bad in (
        cell(data, "emet"),
        cell(data, settings={"target.stps": 3}),
        cell(data, layers=(99,)),
        cell(data, n=400),
    ):
        with pytest.raises(InputError):
            run(cell(data), bad, folder=f"out-{bad.id}")


def test_a_failure_of_a_method_is_a_result(run: Any, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, calls = EditSession.plan, []

    def failing(self: EditSession, requests: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(requests))
        if len(calls) == 2:
            raise InfeasibleError("dependent keys")
        return plan(self, requests, *args, **kwargs)

    monkeypatch.setattr(EditSession, "plan", failing)
    broken, whole = run(cell(data), cell(data, batch_size=4))
    assert broken["error"] == {"type": "InfeasibleError", "message": "dependent keys", "batch": 1}
    assert (broken["scores"]["immediate"], broken["perplexity"]) == (None, None)
    assert broken["scores"]["before"]["n"] == 4
    assert whole["error"] is None
    assert run(cell(data), cell(data, batch_size=4))[0] == broken


class Stages(Silent):
    """Stages that were started, and those that were finished."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.started: list[str] = []

    def start(self, stage: str, total: int | None = None) -> None:
        self.open.append(stage)
        self.started.append(stage)

    def finish(self) -> None:
        self.open.pop()


def test_a_failure_ends_the_stage_that_it_came_in(
    data: str, tmp_path: Path, store: MomentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: EditSession, requests: Any, *args: Any, **kwargs: Any) -> Any:
        raise InfeasibleError("dependent keys")

    monkeypatch.setattr(EditSession, "plan", failing)
    stages, lm = Stages(), build_tiny("llama")
    list(Experiment("test", {}, [cell(data)], tmp_path / "out", lambda _: lm, store=store, progress=stages).run())
    assert any(stage.startswith("[1/1]") for stage in stages.started)
    assert stages.open == []


def test_what_the_unedited_model_says_is_asked_again_by_another_version_of_the_scoring(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, asked = read_records(data)[:2], []
    monkeypatch.setattr(ground_module, "score_rows", lambda *args: asked.append("rows") or score_rows(*args))
    monkeypatch.setattr(ground_module, "answered", lambda *args, **kwargs: asked.append("answered") or [])

    def ask() -> list[str]:
        asked.clear()
        ground = Ground(build_tiny("llama"), ExperimentFolder(tmp_path))
        ground.state(records, Measures(**CHEAP))
        ground.answered(records, "argmax")
        return list(asked)

    assert ask() == ["rows", "answered"]
    assert ask() == []
    monkeypatch.setattr(ground_module, "SCORING", ground_module.SCORING + 1, raising=False)
    assert ask() == ["rows", "answered"]


# ---- the session under many updates ------------------------------------------------------------------------------


def test_applying_multiplies_out_the_new_update_alone(
    store: MomentStore, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = EditSession(build_tiny("llama"), store=store)
    delta, multiplied = LayerUpdate.delta, []
    monkeypatch.setattr(LayerUpdate, "delta", lambda self: multiplied.append(1) or delta(self))
    for record in read_records(data)[:6]:
        update = session.plan([record.request], "emmet", settings=QUICK).update
        multiplied.clear()
        session.apply(update)
        assert len(multiplied) == len(update.layers)
    multiplied.clear()
    session.rollback()
    assert multiplied == []
    assert all(session.verify_rolled_back().values())


def test_planning_on_cached_moments_does_not_touch_the_weights(
    store: MomentStore, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = EditSession(build_tiny("llama"), store=store)
    first, second, third = read_records(data)[:3]
    session.apply(session.plan([first.request], "emmet", settings=QUICK).update)
    monkeypatch.setattr(session, "_write", None)
    session.plan([second.request], "emmet", settings=QUICK)
    plan = session.plan([third.request], "emmet", settings=QUICK)
    assert math.isfinite(plan.layers[0].relative_norm)
