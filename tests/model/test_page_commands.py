"""Every command of README and pages, run in order, page by page, in a folder of its own, on the demo model.

Only blocks with a comment that says why are left out (`tests.page_commands`). What a page takes for granted is laid
out first: the README's file of facts, or an edit that an earlier page made. `emendo` is the one of the environment, or
with ``EMENDO_PAGES_PYTHON`` the one of another interpreter, such as that of an environment with the built wheel.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.page_commands import ROOT, blocks, pages

pytestmark = pytest.mark.slow

_EDIT = "emendo edit --model demo --requests facts.jsonl --no-judge -q --out {out}\n"
_BEFORE = {
    "docs/guides/attribution.md": _EDIT.format(out="out"),
    "docs/guides/export.md": _EDIT.format(out="out/demo"),
}
"""What a page's commands find, because another page made it."""

_GRID = "name: grid\ndata: demo\nn: 2\nmethods: [rome, emmet]\nsearch: fast\n"
_NEWEST = """import json, sys; print(json.load(sys.stdin)["records"][-1]["id"])"""
_ID = f"$(emendo ledger log --ledger facts --json | python -c '{_NEWEST}')"

RUN = [page for page in pages() if any(block.reason is None for block in blocks(page))]


def readme_fact() -> str:
    """The README's example of a fact as a JSON line."""
    (found,) = re.findall(r"^```json\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return f"{json.dumps(json.loads(found))}\n"


def script(page: Path) -> str:
    """The page's blocks as one script that ends at the first command that fails."""
    python = shlex.quote(os.environ.get("EMENDO_PAGES_PYTHON", sys.executable))
    head = f'set -e\nemendo() {{ {python} -m emendo "$@"; }}\npython() {{ {python} "$@"; }}\n'
    parts = [head, _BEFORE.get(str(page.relative_to(ROOT)), "")]
    for block in blocks(page):
        if block.reason is None:
            # The id of a record is what the log shows; a reader copies it.
            parts.append(re.sub(r"(?<=revert )ID\b", lambda _: f'"{_ID}"', block.commands))
    return "\n".join(parts)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_no_command_of_a_page_fails(page: Path, tmp_path: Path) -> None:
    for name in ("edits.jsonl", "facts.jsonl"):
        (tmp_path / name).write_text(readme_fact(), encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("The Eiffel Tower is in the city of\nParis is the capital of\n")
    (tmp_path / "grid.yaml").write_text(_GRID)
    commands = script(page)
    done = subprocess.run(
        ["bash", "-x", "-c", commands],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT / "src")), "HF_HUB_OFFLINE": "1"},
        input=readme_fact(),  # of the one command that reads standard input
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_a_page_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\nemendo data nosuch.jsonl\necho reached\n```\n", encoding="utf-8")
    commands = "set -e\n" + f'emendo() {{ {shlex.quote(sys.executable)} -m emendo "$@"; }}\n'
    commands += page.read_text().split("```bash\n")[1].split("```")[0]
    done = subprocess.run(["bash", "-c", commands], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "reached" not in done.stdout
