"""The three walks of `examples/walks`, run from the built wheel in an environment of its own, on the demo model."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.model.test_walkthrough import FENCE, Step, missing
from tests.wheel_environment import ROOT, built_wheel, wheel_environment

pytestmark = pytest.mark.slow

WALKS = ROOT / "examples" / "walks"
PAGE = ROOT / "docs" / "guides" / "first-hour.md"


def shown(name: str) -> tuple[str, ...]:
    """The lines that the page shows of a walk."""
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")
    (section,) = (text for text in sections if f"examples/walks/{name}.sh`" in text and "examples/walks`." not in text)
    return tuple(line for _, _, body in FENCE.findall(section) for line in body.splitlines())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the shell finds the wheel's `emendo` and `python`."""
    python, _ = wheel_environment(
        built_wheel(tmp_path_factory.mktemp("wheel")), tmp_path_factory.mktemp("stranger") / "environment"
    )
    return f"{python.parent}{os.pathsep}{os.environ['PATH']}"


def walk(name: str, folder: Path, path: str) -> str:
    """What a walk prints, without line breaks of the terminal's width; it has to end well."""
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", str(WALKS / f"{name}.sh"), str(folder)],
        cwd=folder.parent,
        env={**plain, "PATH": path, "COLUMNS": "100", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not missing(Step("", 0, shown(name)), done.stdout), "the page shows what was not printed"
    return " ".join(done.stdout.split())


def test_twelve_facts_are_judged_by_what_is_said(path: str, tmp_path: Path) -> None:
    text = walk("correct", tmp_path / "walk", path)
    first, second = text.split("== a second try")
    assert "10 of 12 facts recognized" in first
    said = re.search(r"Verdict: 12 of 12 facts written, (\d+) said.*?, (\d+) said in chat", first)
    assert said is not None
    missed = 12 - int(said[1])
    assert missed > 0, "this model runs on after some of them"
    named = re.search(r"Not said: (.*?)\. Not answered:", first)
    assert named is not None
    assert named[1].count(" → ") == missed
    assert "'The capital of Kazakhstan is the city of' → 'Astana" in named[1]
    # A neighbor that is lost in chat is named by edit and by the gate, which refuses the edit.
    assert re.search(r"Neighbors lost: .*'What is the capital of France\?' in chat → ", first)
    assert re.search(r"efficacy fails: .*\(\d+ of 12 requests say", first)
    assert "efficacy: 'The capital of Kazakhstan is the city of' → 'Astana" in first
    assert "neighborhood_lost: 'What is the capital of France?' in chat → " in first
    assert "exit code 1" in first
    assert "prompts of 10 facts guessed by Emendo" in first
    assert "gate passed" in second
    assert (tmp_path / "walk" / "shipped" / "model.safetensors").is_file()


def test_three_methods_are_compared(path: str, tmp_path: Path) -> None:
    text = walk("compare", tmp_path / "walk", path)
    published, fair = text.split("== one search for all of them")
    assert "these cells differ in more than the method" in published
    assert re.search(r"target.argmax_steps: rome=none, memit=none, emmet=\d", published)
    assert "target.precision" not in fair.split("== the page")[0]
    assert list((tmp_path / "walk" / "runs" / "plots").glob("*.png"))
    page = (tmp_path / "walk" / "runs" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("rome", "memit", "emmet"))


def test_one_edit_is_looked_at(path: str, tmp_path: Path) -> None:
    walk("look", tmp_path / "walk", path)
    pages = {page.name for page in (tmp_path / "walk").rglob("*.html")}
    assert {"see.html", "diff.html"} <= pages
    assert list((tmp_path / "walk" / "trace").glob("*.png"))
