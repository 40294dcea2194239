"""Which plots a report of an experiment draws, that each is a picture, and that any text can be shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emendo.report.experiment import read_experiment, write_report
from emendo.report.experiment.axes import across_modes, sweeps, telling
from emendo.report.experiment.figures import figures_of
from emendo.report.experiment.folder import Cell, number
from emendo.report.experiment.measures import END, SCORES, effects, score
from emendo.report.experiment.tables import score_tables
from emendo.report.experiment.text import markdown, shown
from tests.experiment_folders import HOSTILE, curve, plan, summary, write_experiment

pytestmark = pytest.mark.usefixtures("small_pictures")


# ---- which plots -----------------------------------------------------------------------------------------------


def cells_of(plans: list[dict[str, Any]], tmp_path: Path, **summaries: Any) -> tuple[Cell, ...]:
    return read_experiment(write_experiment(tmp_path / "run", plans, summaries or None)).cells


def test_an_axis_that_follows_another_is_not_drawn_twice(tmp_path: Path) -> None:
    cells = cells_of([plan(m, size, n=8 * size) for m in ("emmet", "memit") for size in (1, 4, 16)], tmp_path)
    ((axis, lines),) = sweeps(cells)
    assert (axis.name, axis.values, axis.numeric, axis.log) == ("batch_size", (1, 4, 16), True, True)
    assert {label: len(line) for label, line in lines.items()} == {"emmet": 3, "memit": 3}
    assert telling(cells) == ["method", "batch_size"]


def test_layers_that_belong_to_the_method_are_no_sweep(tmp_path: Path) -> None:
    cells = cells_of([plan("emmet", layers=[5]), plan("memit", layers=[4, 5, 6])], tmp_path)
    assert sweeps(cells) == []
    names = [figure.name for figure in figures_of(read_experiment(tmp_path / "run"))]
    assert names == ["scores-final", "scores-immediate"]


def test_a_layer_sweep_and_its_seeds(tmp_path: Path) -> None:
    cells = cells_of([plan(layers=[layer], seed=seed) for layer in (3, 9, 6) for seed in (0, 1)], tmp_path)
    ((axis, lines),) = sweeps(cells)
    assert (axis.name, axis.values, axis.log) == ("layers", (3, 6, 9), False)
    assert [len(line) for line in lines.values()] == [6]
    figure = next(f for f in figures_of(read_experiment(tmp_path / "run")) if f.name == "scores-final-by-layer")
    (line,) = [line for line in figure.panels[0].lines if line.label == "emmet"]
    assert [x for x, _ in line.points] == [3, 3, 6, 6, 9, 9]
    assert "seeds 0, 1" in figure.note
    assert "n = 24 records a point" in figure.note
    assert "95 %" in figure.note


def test_a_setting_of_words_is_an_axis(tmp_path: Path) -> None:
    plans = [plan("memit", layers=[3, 4], settings={"distribution": name}) for name in ("even", "sqrt", "optimal")]
    ((axis, _),) = sweeps(cells_of(plans, tmp_path))
    assert (axis.name, axis.values, axis.numeric) == ("settings.distribution", ("even", "sqrt", "optimal"), False)
    figure = figures_of(read_experiment(tmp_path / "run"))[0]
    assert not figure.connected
    assert [label for _, label in figure.ticks] == ["even", "sqrt", "optimal"]


def test_axes_whose_names_are_cut_alike_have_plots_of_their_own(tmp_path: Path) -> None:
    plans = [plan(settings={"язык": a, "слово": b}) for a in (1, 2) for b in (1, 2)]
    names = [figure.name for figure in figures_of(read_experiment(write_experiment(tmp_path / "run", plans)))]
    assert len(names) == len(set(names)) == 14, "seven for each of two axes"


def test_all_modes_over_the_edits_in_the_model(tmp_path: Path) -> None:
    plans = [plan("emmet", size, n=16) for size in (1, 4, 16)]
    plans += [plan("rome", 1, n=n, mode="sequential") for n in (1, 4, 16)]
    cells = cells_of(plans, tmp_path)
    found = across_modes(cells)
    assert found is not None
    axis, lines = found
    assert axis.values == (1, 4, 16)
    assert {label: len(line) for label, line in lines.items()} == {"emmet, batch": 3, "rome, sequential": 3}
    assert across_modes(cells[:3]) is None


def test_retention_has_the_interval_of_the_edits_that_were_asked(tmp_path: Path) -> None:
    cell = plan("memit", 2, mode="sequential-batched", n=8, measures={"retention_first": 6})
    points = curve(8, 2)
    points[2]["retention"], points[3]["retention"] = 100 * 3 / 5, 0.0
    folder = write_experiment(tmp_path / "run", [cell], {cell["id"]: summary(cell, curve=points)})
    held = [True, True, False, True, True, True, True, True]
    lines = [{"position": at, "immediate": {"edited": {"argmax_new": [flag]}}} for at, flag in enumerate(held)]
    records = folder / "cells" / cell["id"] / "records.jsonl"
    records.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    figure = next(f for f in figures_of(read_experiment(folder)) if f.name == "retention")
    (line,) = figure.panels[0].lines
    values = [value for _, value in line.points]
    assert [value.n for value in values] == [2, 3, 5, 5], "of the first 6, those that held"
    # Wilson, by hand for 3 of 5: (0.6 + z²/10 ± z √(0.24/5 + z²/100)) / (1 + z²/5), z = 1.959964
    assert values[2].low == pytest.approx(23.07, abs=0.01)
    assert values[2].high == pytest.approx(88.24, abs=0.01)
    assert "n = 8 edits" in figure.note


def test_generated_answers_have_tables_and_a_plot(tmp_path: Path) -> None:
    def means(value: float) -> dict[str, Any]:
        name = "efficacy_contained"
        return {"n": 24, name: value, "counts": {name: 24}, "intervals": {name: [value - 5, value + 5]}}

    plans = [plan(batch_size=size) for size in (1, 4)]
    asked = {"before": {"raw": means(10.0), "chat": None}, "after": {"raw": means(90.0), "chat": None}}
    folder = write_experiment(tmp_path / "run", plans, {c["id"]: summary(c, generated=asked) for c in plans})
    before, after = score_tables(read_experiment(folder))[-2:]
    assert [entry.text for entry in before.rows[0][3:]] == ["10.0"]
    assert (after.rows[0][3].text, after.rows[0][3].interval) == ("90.0", "85.0–95.0")
    figure = next(f for f in figures_of(read_experiment(folder)) if f.name.startswith("generated-raw"))
    values = {line.label: [value.value for _, value in line.points] for line in figure.panels[0].lines}
    assert values == {"before (unedited)": [10.0, 10.0], "emmet": [90.0, 90.0]}


def test_the_end_is_the_last_scores_that_there_are() -> None:
    final, immediate = {"ES": 40.0, "n": 3}, {"ES": 90.0, "n": 3}
    both = Cell("a", {}, "done", {"scores": {"final": final, "immediate": immediate}})
    restored = Cell("b", {}, "done", {"scores": {"final": None, "immediate": immediate}})
    assert [getattr(score(cell, END, "ES"), "value", None) for cell in (both, restored)] == [40.0, 90.0]


@pytest.mark.parametrize(
    ("value", "found"), [(1, 1.0), (True, None), ("1", None), (float("inf"), None), (None, None), (10**400, None)]
)
def test_only_finite_numbers_are_numbers(value: object, found: float | None) -> None:
    assert number(value) == found


def test_more_lines_than_can_be_told_apart(tmp_path: Path) -> None:
    plans = [plan(f"method{index}", size) for index in range(16) for size in (1, 2)]
    figures = figures_of(read_experiment(write_experiment(tmp_path / "run", plans)))
    labels = {line.label for line in figures[0].panels[0].lines}
    assert len(labels) == 15, "fourteen and the base"
    assert "2 more lines in the tables" in figures[0].note


# ---- pictures and text -----------------------------------------------------------------------------------------


def test_colours_of_the_palette_differ_in_brightness_or_hue_for_every_eye() -> None:
    from emendo.report.experiment.drawing import COLOURS

    assert len(set(COLOURS)) == len(COLOURS)

    def contrast(colour: str) -> float:  # WCAG 2, against white
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)

    assert all(contrast(colour) > 2 for colour in COLOURS)


def test_every_kind_of_plot_is_drawn(tmp_path: Path) -> None:
    plans = [plan(m, size, mode="sequential-batched", n=8) for m in ("emmet", "memit") for size in (1, 4)]
    folder = write_experiment(tmp_path / "run", plans, {c["id"]: summary(c, curve=curve(8, 4)) for c in plans})
    written = write_report(folder)
    names = {path.stem for path in written["plots"].iterdir()}
    assert names == {figure.name for figure in figures_of(read_experiment(folder))}
    kinds = ("scores", "argmax", "side-effects", "solve", "cost", "retention", "norm-growth", "perplexity")
    assert all(any(name.startswith(kind) for name in names) for kind in kinds)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written["plots"].iterdir())


def test_matplotlib_is_left_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(write_experiment(tmp_path / "run", [plan()]))
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_can_be_shown(text: str) -> None:
    for safe in (shown(text), markdown(text)):
        assert safe.encode("utf-8").decode("utf-8") == safe
        assert not set(map(chr, range(9))) & set(safe)
        assert len(safe) < 1300


def test_every_score_has_a_meaning() -> None:
    assert all(measure.meaning for measure in (*SCORES, *effects()))
