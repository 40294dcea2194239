"""Run the notebooks and keep what they print and draw: `python docs/_site/run_notebooks.py [NAME ...]`.

Needs nbclient and ipykernel. A notebook runs in a folder of its own, so that its files do not end up in docs/.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

_FOLDER = Path(__file__).parents[1] / "notebooks"


def run(file: Path) -> None:
    """Run one notebook from its first cell to its last, and write it back."""
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _kept(cell.outputs)
    file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _kept(outputs: list[Any]) -> list[Any]:
    """Outputs without warnings and progress of other packages; what was printed in one piece."""
    kept: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if kept and output.get("name") == kept[-1].get("name") == "stdout":
            kept[-1]["text"] += output["text"]
        else:
            kept.append(output)
    return kept


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(file.stem for file in _FOLDER.glob("*.ipynb")):
        run(_FOLDER / f"{name}.ipynb")
