"""The notebooks of docs/notebooks run on a tiny model: every cell, in order, in one namespace."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
_MODEL = re.compile(r'^MODEL = ".*?"', re.MULTILINE)
_FACTS = re.compile(r"^N = \d+", re.MULTILINE)
MOST_BYTES = 150_000


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    return list(json.loads(notebook.read_text(encoding="utf-8"))["cells"])


def code_of(notebook: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells_of(notebook) if cell["cell_type"] == "code"]


def test_there_are_three() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["compare-methods", "fix-a-fact", "look-inside"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_every_cell_runs(
    notebook: Path, model: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code as it stands, but for the name of the model and the number of facts."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    code = "\n".join(code_of(notebook))
    assert len(_MODEL.findall(code)) == 1
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for source in code_of(notebook):
        source = _FACTS.sub("N = 2", _MODEL.sub(f"MODEL = {model!r}", source))
        exec(compile(source, notebook.name, "exec"), namespace)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_small_and_was_run_in_order(notebook: Path) -> None:
    """What is shown is what one run of the whole notebook gave, without warnings or errors."""
    assert notebook.stat().st_size < MOST_BYTES
    counts = [cell["execution_count"] for cell in cells_of(notebook) if cell["cell_type"] == "code"]
    if set(counts) == {None}:  # as it was written, not run yet: it shows nothing
        assert not any(cell.get("outputs") for cell in cells_of(notebook))
        return
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in cells_of(notebook) for output in cell.get("outputs", [])]
    assert outputs
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert "stderr" not in {output.get("name") for output in outputs}
    assert str(Path.home()) not in notebook.read_text(encoding="utf-8")
