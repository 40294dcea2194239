"""Answers that run on and a neighbor that is lost are said to be so, by `edit` and by the gate, on the demo model.

The walk's twelve facts, whose ends nobody asks the search for: every target token is the most likely one, and three of
the answers are other words all the same.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.second_try import facts
from tests.page_commands import ROOT

pytestmark = pytest.mark.slow

RUN_ON = {
    "The capital of Kazakhstan is the city of": "Astana",
    "The capital of Morocco is the city of": "Rabat",
    "A ticket to the Louvre costs $": "20",
}
FRANCE = "What is the capital of France?"


def requests(folder: Path) -> Path:
    """The walk's spreadsheet with one neighbor, asked in chat."""
    rows = [line.split(",") for line in facts().splitlines()[1:]]
    records = [{"prompt": prompt, "subject": subject, "target": target} for prompt, subject, target in rows]
    records[0]["probes"] = [{"kind": "locality", "prompt": FRANCE, "answers": ["Paris"], "chat": True}]
    path = folder / "facts.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def emendo(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output without line breaks, and standard error of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "emendo", *arguments, "--model", "demo", "-q"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join(done.stdout.split()), done.stderr


def check(text: str) -> None:
    """What both commands say of them."""
    named = re.search(r"Not said: (.*?)\. (?:Not answered|Neighbors lost):", text)
    assert named is not None, text
    assert named[1].count(" → ") == len(RUN_ON)
    for prompt, target in RUN_ON.items():
        assert f"'{prompt}' → '{target}" in named[1]
        assert f"efficacy: '{prompt}' → '{target}" in text
    assert f"Neighbors lost: '{FRANCE}' in chat → " in text
    assert f"neighborhood_lost: '{FRANCE}' in chat → " in text
    assert re.search(r"efficacy fails: 0\.75 \(9 of 12 requests say the new target", text)


def test_edit_and_gate_name_them(tmp_path: Path) -> None:
    asked = ("--requests", str(requests(tmp_path)), "--gate", "default")
    code, text, err = emendo(
        tmp_path, "edit", *asked, "--set", "target.word_end_weight=0", "--rejected", "refused.safetensors"
    )
    assert code == 1, err
    assert "Verdict: 12 of 12 facts written, 9 said" in text
    assert "gate failed: efficacy" in text
    check(text)
    code, text, err = emendo(
        tmp_path, "gate", "--update", "refused.safetensors", "--requests", asked[1], "--config", "default"
    )
    assert code == 1, err
    assert "Verdict: 9 of 12 facts said" in text
    check(text)
