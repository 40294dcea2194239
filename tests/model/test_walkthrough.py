"""docs/guides/served-model.md, run: every command as written, in order, in one shell and folder, on the demo model.

A line of a `text` block has to be in what the block of commands before it printed. Hashes, times, sizes of files and
numbers with a decimal point may differ, since they hang on the clock or on the last bits of a processor; `…` stands
for what the page leaves out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "served-model.md"
LEFT_OUT = "…"
SIGNED = "root"  # who signed the records that the page shows

FENCE = re.compile(r"^```(bash|text)(?: exit=(\d+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_VARIES = (
    (re.compile(r"\b[0-9a-f]{10,64}\b"), "HASH"),
    (re.compile(r"\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?"), "TIME"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "TIME"),
    (re.compile(r"\d+\.\d+(?:e-?\d+)?"), "NUMBER"),
    (re.compile(r"\b\d{5,}\b|\b\d+(?= KiB)"), "SIZE"),
    # Rules of tables and the padding of cells follow the widths of the columns.
    (re.compile(r"[\s│┃━─┏┳┓┡╇┩└┴┘]+"), " "),
)


@dataclass(frozen=True)
class Step:
    """A block of commands, the exit code of its last command, and the lines that the page shows of its output."""

    commands: str
    exit_code: int
    shown: tuple[str, ...]


def read_steps(page: str) -> list[Step]:
    """The steps of a page: each `bash` block with the `text` blocks up to the next one."""
    steps: list[Step] = []
    for kind, code, body in FENCE.findall(page):
        if kind == "bash":
            steps.append(Step(body, int(code or 0), ()))
        else:
            last = steps.pop()
            steps.append(Step(last.commands, last.exit_code, (*last.shown, *body.splitlines())))
    return steps


def without_what_varies(line: str) -> str:
    for pattern, name in _VARIES:
        line = pattern.sub(name if name == " " else f" {name} ", line)
    return " ".join(line.split())


def missing(step: Step, output: str) -> list[str]:
    """Lines that the page shows and the output has not; a line with `…` is held by each of its parts."""
    text = "\n".join(without_what_varies(line) for line in output.splitlines())
    parts = [part for line in step.shown for part in line.split(LEFT_OUT)]
    return [part for part in parts if without_what_varies(part) not in text]


def run_steps(steps: list[Step], folder: Path) -> list[tuple[int, str]]:
    """Exit code and output (both streams) of each step, all in one shell, which is what a reader has."""
    marks = [f"== end of step {number} of the page" for number in range(len(steps))]
    script = f'emendo() {{ {shlex.quote(sys.executable)} -m emendo "$@"; }}\n'
    script += f'python() {{ {shlex.quote(sys.executable)} "$@"; }}\n'
    # Any command that fails ends the step with its code, not only the last one.
    script += "failed=0; trap 'failed=$?' ERR\n"
    for step, mark in zip(steps, marks, strict=True):
        script += f"failed=0\n{step.commands}echo; echo '{mark}:' $failed\n"
    source = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": source, "COLUMNS": "100", "HF_HUB_OFFLINE": "1", "LOGNAME": SIGNED},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    found, rest = [], done.stdout
    for mark in marks:
        output, _, rest = rest.partition(f"{mark}: ")
        code, _, rest = rest.partition("\n")
        found.append((int(code or -1), output))
    return found


@pytest.mark.slow
def test_every_command_does_what_the_page_shows(tmp_path: Path) -> None:
    steps = read_steps(PAGE.read_text(encoding="utf-8"))
    assert len(steps) > 10
    for step, (code, output) in zip(steps, run_steps(steps, tmp_path), strict=True):
        print(f"$ {step.commands}{output}")
        assert code == step.exit_code, f"{step.commands}exit code {code}, expected {step.exit_code}:\n{output}"
        assert not missing(step, output), f"{step.commands}the page shows what was not printed in:\n{output}"


# ---- the test of the page can fail -----------------------------------------------------------------------------

SMALL = """
```bash
NAME=$(echo world)
```

```bash
echo "hello $NAME, took 1.5 s, 2 edits, id 0123456789ab"
```

```text
hello world, took 7.25 s, 2 edits, id ffff56789abc
```

```bash exit=3
(exit 3)
```
"""


def test_steps_share_a_shell_and_hold_what_the_page_shows(tmp_path: Path) -> None:
    steps = read_steps(SMALL)
    found = run_steps(steps, tmp_path)
    assert [code for code, _ in found] == [0, 0, 3] == [step.exit_code for step in steps]
    assert [missing(step, output) for step, (_, output) in zip(steps, found, strict=True)] == [[], [], []]


def test_another_count_or_word_is_found(tmp_path: Path) -> None:
    steps = read_steps(SMALL.replace("7.25 s, 2 edits", "7.25 s, 3 edits"))
    (_, _), (_, output), (_, _) = run_steps(steps, tmp_path)
    assert missing(steps[1], output) == ["hello world, took 7.25 s, 3 edits, id ffff56789abc"]


def test_a_command_that_fails_before_the_last_one_is_found(tmp_path: Path) -> None:
    assert [code for code, _ in run_steps(read_steps("```bash\n(exit 4)\ntrue\n```\n"), tmp_path)] == [4]
