"""The diffs of `docs/guides/changes.md` fit the code, touch the files that are said, and work."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import build_tiny

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "changes.md").read_text(encoding="utf-8")
FILES = {"A distribution over layers": 1, "A baseline": 2, "A measure": 2, "A post-step": 3}
WORDS = {1: "one file", 2: "two files", 3: "three files"}
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git, which applies a diff, is not installed")


def diff_of(title: str) -> str:
    section = PAGE.partition(f"\n## {title}: {WORDS[FILES[title]]}\n")[2].partition("\n## ")[0]
    (found,) = re.findall(r"```diff\n(.*?)```", section, re.DOTALL)
    return found


def apply(diff: str, root: Path, *options: str) -> None:
    subprocess.run(["git", "apply", *options, "-"], cwd=root, input=diff, text=True, check=True)


@pytest.mark.parametrize("title", FILES)
def test_a_diff_fits_and_touches_so_many_files(title: str) -> None:
    diff = diff_of(title)
    assert len(re.findall(r"^\+\+\+ b/", diff, re.MULTILINE)) == FILES[title]
    apply(diff, ROOT, "--check")


WORKS = """
import sys
import emendo
from emendo.evaluate.measures import MEASURES
from emendo.evaluate.snapshot import Snapshot

lm, quick = emendo.load(sys.argv[1], device="cpu"), {"contexts.scheme": "fixed", "moments.multiple": 4}
quick["target.steps"] = 2
request = emendo.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
session = emendo.EditSession(lm)

plan = session.plan([request], "emmet", layers=[0, 1, 3], settings={**quick, "distribution": "first-half"})
assert [part.layer for part in plan.update.layers] == [0, 3]

whole = session.plan([request], "emmet", layers=[2], settings=quick).update.layers[0].delta()
half = session.plan([request], "emmet", layers=[2], settings={**quick, "post.kind": "halve"}).update.layers[0].delta()
assert (half - whole / 2).norm() < 1e-6 * whole.norm() > 0

(part,) = session.plan([request], "ft-sign").update.layers
assert set(part.delta().abs().unique().tolist()) <= {0.0, part.delta().abs().max().item()}
assert part.delta().abs().max() > 0

measure, snapshot = MEASURES["length"], Snapshot(lm, [emendo.EditRecord(request)])
asked = measure.ask(snapshot, None)
assert measure.summarise(asked, [asked])["after"] == len(snapshot.continuations([request.text], 5)[0])
print("works")
"""


@pytest.mark.crash  # another process
def test_together_they_work(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for title in FILES:
        apply(diff_of(title), tmp_path)
    lm = build_tiny("llama")
    for part in (lm.model, lm.tokenizer):
        part.save_pretrained(tmp_path / "model")
    script = tmp_path / "works.py"
    script.write_text(WORKS, encoding="utf-8")
    environment = {"PYTHONPATH": str(tmp_path / "src"), "EMENDO_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script), str(tmp_path / "model")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "works"), done.stderr[-2000:]
