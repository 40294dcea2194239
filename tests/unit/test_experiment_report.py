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
from emendo.report.experiment.markdown import markdown_text
from emendo.report.experiment.measures import effects
from emendo.report.experiment.page import page
from emendo.report.experiment.tables import score_tables, state_table
from tests.experiment_folders import HOSTILE, plan, scores, summary, write_experiment

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'emendo[report]'")
pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install 'emendo[report]'")

pytestmark = pytest.mark.usefixtures("small_pictures")


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
