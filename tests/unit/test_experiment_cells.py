"""Modes, cells and the file of an experiment: what goes together, and what is refused in which words."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.errors import ExperimentError
from emendo.experiments import ExperimentConfig, batch_ranges, check_mode, comparable, find_config, read_config
from emendo.experiments.cell_run import spread
from emendo.experiments.estimate import duration
from emendo.experiments.files import append_lines, locked, read_lines
from emendo.experiments.meter import Meter, release_memory
from tests.experiment_cases import cell

BASE: dict[str, Any] = {"name": "grid", "data": "facts.jsonl", "n": 64}


def cells_of(**fields: Any) -> list[Any]:
    return ExperimentConfig.model_validate(BASE | fields).expand()


# ---- modes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "batch_size", "schedule", "words"),
    [
        ("single", 2, "immediate", "--mode batch --batch-size 2"),
        ("sequential", 4, "final", "--mode sequential-batched --batch-size 4"),
        ("batch", 9, "immediate", "--n 9"),
        ("batch", 4, "final", "--mode sequential-batched"),
        ("single", 1, "both", "no last state"),
        ("batch", 0, "immediate", "at least 1"),
    ],
)
def test_what_means_nothing_is_refused_with_what_does(mode: Any, batch_size: int, schedule: Any, words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        check_mode(mode, batch_size, 8, schedule)


def test_the_last_batch_is_what_is_left() -> None:
    assert [list(part) for part in batch_ranges(5, 2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(("count", "most"), [(1, 10), (3, 10), (10, 10), (11, 10), (256, 32), (1000, 7)])
def test_a_spread_is_even_and_ends_at_the_end(count: int, most: int) -> None:
    chosen = sorted(spread(count, most))
    assert len(chosen) == min(count, most)
    assert chosen[-1] == count - 1
    gaps = [b - a for a, b in pairwise(chosen)]
    assert not gaps or max(gaps) - min(gaps) <= 1


# ---- the grid --------------------------------------------------------------------------------------------------


def test_the_grid_is_the_product_of_its_axes() -> None:
    cells = cells_of(
        methods=["emmet", {"method": "rome", "batch_sizes": [1], "settings": {"target.steps": 5}}],
        batch_sizes=[1, 16],
        seeds=[0, 1],
        settings={"moments.multiple": [5, 10], "target.steps": 3},
        layers=[[5], None],
    )
    assert len(cells) == 2 * 2 * 2 * 2 + 1 * 2 * 2 * 2
    assert len({one.id for one in cells}) == len(cells)
    assert {one.settings["target.steps"] for one in cells if one.method == "rome"} == {5}
    assert {one.settings["moments.multiple"] for one in cells} == {5, 10}
    assert {one.schedule for one in cells} == {"immediate"}


def test_exclusions_match_every_field_that_they_name() -> None:
    cells = cells_of(
        methods=["emmet", "memit"],
        layers=[[5], [1, 2]],
        distributions=["single", "even"],
        exclude=[
            {"layers": [1, 2], "distribution": "single"},
            {"layers": [[5]], "distribution": ["even", "sqrt"]},
            {"method": "memit", "batch_size": 64, "layers": [5]},
        ],
    )
    left = [(one.method, one.layers, one.settings["distribution"]) for one in cells]
    assert left == [("emmet", (5,), "single"), ("emmet", (1, 2), "even"), ("memit", (1, 2), "even")]


def test_models_are_loaded_once_each() -> None:
    cells = cells_of(methods=["emmet", "memit"], models=["a", "b"], cells=[{"method": "rome", "mode": "single"}])
    assert [one.model for one in cells] == ["a"] * 3 + ["b"] * 3


def test_explicit_cells_take_what_they_leave_out_from_the_experiment() -> None:
    (one,) = cells_of(
        cells=[{"method": "memit", "mode": "sequential-batched", "batch_size": 8, "seed": 4}],
        settings={"target.steps": 3, "moments.multiple": [1, 2]},
        part="dev",
    )
    assert (one.seed, one.n, one.part, one.schedule) == (4, 64, "dev", "both")
    assert one.settings == {"target.steps": 3}


def test_a_smaller_n_leaves_larger_batches_out() -> None:
    config = ExperimentConfig.model_validate(BASE | {"methods": ["emmet"], "batch_sizes": [1, 16, 64]})
    assert [one.batch_size for one in config.with_n(20).expand()] == [1, 16]


def test_a_cell_is_named_by_its_content() -> None:
    one = cell("facts.jsonl", settings={"history.weight": 0})
    assert one.id.startswith("emmet-weight-0-")
    assert "b2-n4-s0" in one.id
    assert one.id == replace(one).id
    for change in ({"seed": 1}, {"data": "other"}, {"layers": (1,)}, {"settings": {}}, {"part": "dev"}):
        assert replace(one, **change).id != one.id


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": ["emmet"]}, "did you mean 'methods'"),
        ({"methods": [{"method": "rome", "setings": {}}]}, "did you mean 'settings'"),
        ({"methods": ["emmet"], "measures": {"perplexty": False}}, "did you mean 'perplexity'"),
        ({"methods": ["emmet"], "cells": [{"method": "rome", "sed": 1}]}, "did you mean 'seed'"),
        ({"methods": ["emmet"], "n": "many"}, "n"),
        ({"methods": ["emmet"], "mode": "batched"}, "mode"),
        ({"methods": ["emmet"], "exclude": [{"metod": "emmet"}]}, "did you mean 'method'"),
        ({"methods": ["emmet"], "batch_sizes": [128]}, "more than the n=64"),
        ({}, "no cell"),
    ],
)
def test_a_file_that_is_wrong_is_told_how(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    import yaml

    path.write_text(yaml.safe_dump(BASE | fields))
    with pytest.raises(ExperimentError, match=words):
        read_config(path).expand()


@pytest.mark.parametrize(
    ("text", "words"),
    [("name: a\nname: b\n", "given twice"), ("- a\n", "holds a list"), ("a: [", "expected an experiment in YAML")],
)
def test_what_is_no_mapping_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    with pytest.raises(ExperimentError, match=words):
        read_config(path)
    with pytest.raises(ExperimentError, match="cannot read"):
        read_config(tmp_path / "missing.yaml")


FILES = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_committed_experiment_has_cells(path: Path) -> None:
    config = read_config(path)
    assert find_config(Path(path.stem)) == path  # by its name, from anywhere
    assert "/" not in config.data, "no folder of one machine"
    cells = config.expand()
    assert len(cells) > 1
    assert config.name == path.stem
    assert all(one.settings["target.precision"] == "bfloat16" for one in cells)
    assert f"experiments/{path.name}" in path.read_text()


# ---- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_torn_last_line_is_dropped(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_lines(path, [{"a": 1}, {"b": 22}])
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_lines(path) == [{"a": 1}]


def test_a_bad_line_before_the_last_is_no_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"b": 2}\n')
    with pytest.raises(ExperimentError, match="line 2"):
        read_lines(path)


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with locked(tmp_path / "folder"), pytest.raises(ExperimentError, match="at work"), locked(tmp_path / "folder"):
        pass
    with locked(tmp_path / "folder"):
        pass


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the high-water mark cannot be reset here")
def test_a_stage_knows_its_own_memory_from_what_was_there() -> None:
    meter = Meter(torch.device("cpu"))
    kept = torch.ones(32 * 2**20 // 4)
    for _ in range(2):
        with meter.stage("work"):
            scratch = torch.ones(64 * 2**20 // 4)
            del scratch
    release_memory()
    with meter.stage("idle"):
        pass
    assert meter.begin_bytes["work"] > kept.nbytes
    assert 60 * 2**20 < meter.peak_bytes["work"] - meter.begin_bytes["work"] < 80 * 2**20
    assert meter.peak_bytes["idle"] - meter.begin_bytes["idle"] < 8 * 2**20
    meter.add({"old": 1.0}, {"old": 5})
    assert "old" not in meter.begin_bytes


def test_what_is_compared_leaves_out_time_and_memory_alone() -> None:
    summary = {"seconds": {}, "peak_bytes": 1, "peak_bytes_by_stage": {}, "work": {}, "scores": 1, "versions": {}}
    summary["begin_bytes_by_stage"] = {}
    assert comparable(summary) == {"scores": 1, "versions": {}}


@pytest.mark.parametrize(("seconds", "text"), [(8.2, "8 s"), (600, "10 min"), (7800, "2 h 10 min")])
def test_durations_are_read_by_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB + "name: *j\n", "alias"),
        ("name: x\nsettings: &s {seed: 1}\nexclude: [*s]\n", "write its value out"),
        ("base: &b {n: 1}\nname: x\n<<: *b\n", "alias"),
        ("name: &a [*a]\n", "alias"),
        ("? [1, 2]\n: x\n", "key is a list"),
        ("name: " + "[" * 100_000, "recursion"),
        ("name: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    ],
)
def test_a_hostile_file_is_refused_at_once(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(ExperimentError, match=words):
        read_config(path)


def test_a_measure_of_a_later_version_leaves_older_folders_valid() -> None:
    base: dict[str, Any] = {"name": "x", "data": "d", "n": 4, "methods": ["rome"]}
    without = ExperimentConfig.model_validate(base)
    wanted = ExperimentConfig.model_validate(base | {"measures": {"probes": True}})
    assert "probes" not in without.model_dump(mode="json")["measures"]
    assert "probes" not in without.expand()[0].to_dict()["measures"]
    assert wanted.model_dump(mode="json")["measures"]["probes"] is True
    assert wanted.expand()[0].measures.probes
    assert wanted.expand()[0].id != without.expand()[0].id


def test_words_of_other_tools_lead_to_ours_and_all_fields_are_named_once(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("name: a\nmodel: demo\nnum_edits: 3\nalgorithms: [ROME]\n", encoding="utf-8")
    with pytest.raises(ExperimentError) as found:
        read_config(path)
    lines = str(found.value).splitlines()
    assert lines[1:-1] == [
        "  data: is missing",
        "  n: is missing",
        "  model: unknown field; did you mean 'models'?",
        "  num_edits: unknown field; did you mean 'n' or 'batch_sizes'?",
        "  algorithms: unknown field; did you mean 'methods'?",
    ]
    assert lines[-1].startswith("Fields of the file: name, data, n, methods,")
