"""The report of an experiment: what it says of finished, failed, missing and hostile cells, and its plots."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from emendo.errors import OutputError, ReportError
from emendo.report.experiment import read_experiment, write_report
from emendo.report.experiment.axes import across_modes, sweeps, telling
from emendo.report.experiment.figures import figures_of
from emendo.report.experiment.folder import Cell, number
from emendo.report.experiment.markdown import markdown_text
from emendo.report.experiment.measures import END, SCORES, effects, score
from emendo.report.experiment.page import page
from emendo.report.experiment.tables import score_tables, state_table
from emendo.report.experiment.text import markdown, shown
from tests.experiment_folders import curve, plan, scores, summary, write_experiment

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'emendo[report]'")
pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install 'emendo[report]'")

pytestmark = pytest.mark.usefixtures("small_pictures")

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }} {% for %}",
    "![x](http://example.org/x.png) [y](http://example.org) | pipes | `ticks` *stars* $x^2$ $",
    "مرحبا \u202e بالعالم",
    "🙂👩‍👩‍👧",
    "a\x00b\x1b[31m\x85c\u2028d",
    "\ud800 half",
    "x" * 20_000,
    "two\nlines",
    "",
]


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails where elements do not close."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def has(self, words: str) -> bool:
        return words in " ".join(" ".join(self.text).split())


def page_of(folder: Path) -> tuple[Page, str]:
    write_report(folder)
    return Page((folder / "report.html").read_text(encoding="utf-8")), (folder / "report.md").read_text(
        encoding="utf-8"
    )


# ---- the page --------------------------------------------------------------------------------------------------


def test_a_finished_experiment(tmp_path: Path) -> None:
    plans = [plan(method, 16) for method in ("emmet", "memit")]
    identity = {"weights_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32}
    data = {"counterfact.jsonl": {"sha256": "ef" * 32, "records": 500, "rejected": 3}}
    folder = write_experiment(tmp_path / "run", plans, base={"models": {"demo": identity}, "data": data})
    page, text = page_of(folder)
    for said in (page.has, text.replace("\\", "").__contains__):
        assert said("batch sizes")
        assert said("weights_sha256 abababababababab…")
        assert said("records 500, rejected 3")
        assert said("torch 2.13.0")
        assert said("0123456789abcdef")
        assert said("Batch edits, scored after the last batch")
        assert said("emmet")
    final = summary(plans[0])["scores"]["final"]
    assert page.has(f"{final['ES']:.1f}")
    low, high = final["intervals"]["ES"]
    assert page.has(f"{low:.1f}–{high:.1f}")
    assert f"{final['ES']:.1f} [{low:.1f}–{high:.1f}]" in text
    assert page.has("All 2 cells have results")
    assert page.has("Rome, the capital of Italy.")


def test_pages_about_the_same_model_are_linked_where_they_are(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "run", [plan()])
    page, text = page_of(folder)
    assert not [way for tag, way in page.tags if tag == "a" and not str(way["href"]).startswith("#")]
    assert page.has("emendo see")
    for path in (folder / "see" / "see.html", folder.parent / "layers.html", folder / "trace.html"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    page, text = page_of(folder)
    found = [way["href"] for tag, way in page.tags if tag == "a" and not str(way["href"]).startswith("#")]
    assert found == ["see/see.html", "../layers.html"]
    assert all(f"]({way})" in text for way in found)


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    page, _ = page_of(write_experiment(tmp_path / "run", [plan()]))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href"):
                assert str(value).startswith(("data:image/svg+xml;base64,", "#")), (tag, value)
    policy = [attributes.get("content") for tag, attributes in page.tags if tag == "meta"]
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in policy
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {str(attributes["href"])[1:] for tag, attributes in page.tags if tag == "a"}
    assert links <= ids
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images
    assert all("n = " in str(image["alt"]) for image in images)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    cell = plan(method="<b>$em_met$</b>", data="d<script>\u202e$", settings={"$x{}": "\ud800<i>"})
    found = summary(cell)
    found["samples"] = [
        {"kind": text, "prompt": text, "wanted": text, "before": text, "after": text} for text in HOSTILE
    ]
    found["versions"] = {text: text for text in HOSTILE}
    failed = plan(batch_size=2)
    bad = {**summary(failed), "error": {"type": HOSTILE[0], "message": HOSTILE[1]}}
    folder = write_experiment(
        tmp_path / "run", [cell, failed], {cell["id"]: found, failed["id"]: bad}, name=HOSTILE[0], config={"a": HOSTILE}
    )
    page, text = page_of(folder)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "i", "b"}
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert page.has("<script>alert(1)</script>")
    assert page.has("{{ 7 * 7 }}")
    assert page.has("(20,000 characters)")
    assert "\\<script\\>" in text
    assert not re.search(r"(?<!\\)!\[x", text)
    assert not re.search(r"(?<!\\)<", text)
    table = next(line for line in text.split("\n") if line.startswith("| ") and "wanted" in line)
    at = text.split("\n").index(table)
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.split("\n")[at : at + 2 + len(HOSTILE)]}
    assert widths == {6}


@pytest.mark.parametrize("trick", ["../../outside", "..", "a/../../../outside", "x" * 300, "a\x00b", "ABSOLUTE"])
def test_an_id_does_not_lead_out_of_the_experiment(trick: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    trick = str(outside) if trick == "ABSOLUTE" else trick
    folder = write_experiment(tmp_path / "run", [plan("emmet", 16)])
    secret = {**summary(plan("emmet", 16)), "error": {"type": "Secret", "message": "of another folder"}}
    for place in (outside, folder):
        place.mkdir(exist_ok=True)
        (place / "summary.json").write_text(json.dumps(secret))
    document = json.loads((folder / "experiment.json").read_text())
    document["cells"].append({**plan("memit", 16), "id": trick})
    (folder / "experiment.json").write_text(json.dumps(document))
    experiment = read_experiment(folder)
    found = {cell.id: cell for cell in experiment.cells}
    assert found[trick].state == "damaged"
    assert found[trick].summary == {}
    assert "of another folder" not in page(experiment, []) + markdown_text(experiment, [])


@pytest.mark.parametrize("wrong", [5, "text", [1], {"ES": "x"}, 10**400])
@pytest.mark.parametrize("field", ["notes", "intervals", "counts", "n", "bootstrap"])
def test_a_damaged_score_is_no_crash(field: str, wrong: object, tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "run", [plan("emmet", 16)])
    path = next(folder.glob("cells/*/summary.json"))
    document = json.loads(path.read_text())
    document["scores"]["final"][field] = wrong
    path.write_text(json.dumps(document))
    experiment = read_experiment(folder)
    for text in (page(experiment, []), markdown_text(experiment, [])):
        assert f"{document['scores']['final']['ES']:.1f}" in text


def test_an_unfinished_experiment(tmp_path: Path) -> None:
    plans = [plan(batch_size=size) for size in (1, 2, 4, 8, 16)]
    error = {"type": "InfeasibleError", "message": "equality over dependent keys", "batch": 3}
    states: dict[str, Any] = {
        plans[1]["id"]: None,
        plans[2]["id"]: {**summary(plans[2]), "scores": {"before": scores(1), "immediate": None}, "error": error},
        plans[3]["id"]: "{half a docum",
        plans[4]["id"]: None,
    }
    folder = write_experiment(tmp_path / "run", plans, states)
    journal = folder / "cells" / plans[4]["id"] / "batches.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text('{"batch": 0}\n{"batch": 1}\n{"bat')
    page, text = page_of(folder)
    assert page.has("1 of 5 cells have results, 1 failed, 2 missing, 1 damaged")
    assert page.has("InfeasibleError: equality over dependent keys")
    assert page.has("not run yet")
    assert page.has("not finished: 2 batch(es) done")
    assert "1 of 5 cells" in text
    table = state_table(read_experiment(folder))
    assert table is not None
    assert [row[2].text for row in table.rows] == ["missing", "failed", "damaged", "missing"]


def test_nothing_done_yet(tmp_path: Path) -> None:
    cell = plan()
    page, text = page_of(write_experiment(tmp_path / "run", [cell], {cell["id"]: None}))
    assert page.has("0 of 1 cells have results")
    assert page.has("No plot can be drawn yet.")
    assert "0 of 1 cells" in text
    assert list((tmp_path / "run" / "plots").iterdir()) == []


def test_what_is_not_measured_is_a_dash(tmp_path: Path) -> None:
    cell = plan()
    bare = {name: summary(cell)[name] for name in ("format", "version", "cell", "error")}
    final = scores(1)
    final["NS"], final["S"] = None, float("nan")
    final["intervals"]["ES"] = None
    bare |= {"scores": {"final": final}, "shift": None, "perplexity": {"ratio": None}, "seconds": {"edit": "long"}}
    folder = write_experiment(tmp_path / "run", [cell], {cell["id"]: bare})
    page_of(folder)
    (table,) = score_tables(read_experiment(folder))
    row = dict(zip([column.label for column in table.columns], table.rows[0], strict=True))
    assert (row["NS"].text, row["S"].text) == ("–", "–")
    assert row["ES"].interval == ""
    assert not {measure.label for measure in effects()} & row.keys()


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "run", [plan()])

    def files() -> dict[str, bytes]:
        write_report(folder)
        made = [folder / "report.html", folder / "report.md", *sorted((folder / "plots").iterdir())]
        return {path.name: path.read_bytes() for path in made}

    first = files()
    (folder / "plots" / "old.png").write_bytes(b"of an earlier report")
    assert files() == first


def test_another_place(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "run", [plan()])
    before = sorted(folder.rglob("*"))
    written = write_report(folder, out=tmp_path / "elsewhere")
    assert all(path.exists() and path.is_relative_to(tmp_path / "elsewhere") for path in written.values())
    assert sorted(folder.rglob("*")) == before


# ---- what cannot be reported -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "holds no experiment.json"),
        ("{", "cannot read"),
        ("[]", "found 'list'"),
        ('{"format": "emendo.report"}', "found 'emendo.report'"),
        ('{"format": "emendo.experiment", "version": 9}', "upgrade"),
    ],
)
def test_folders_that_are_no_experiment(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "experiment.json").write_text(content)
    with pytest.raises(ReportError, match=re.escape(words)):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="emendo experiment"):
        write_report(tmp_path / "nowhere")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "run", [plan()])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_report(folder, out=tmp_path / "file")


@pytest.mark.parametrize(("package", "module"), [("matplotlib", "matplotlib.figure"), ("jinja2", "jinja2")])
def test_without_the_extra(package: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_experiment(tmp_path / "run", [plan()])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ReportError, match=rf"{package}.*pip install .*'{package}>="):
        write_report(folder)
    assert not (folder / "report.html").exists()


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


@pytest.mark.usefixtures("small_pictures")
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
