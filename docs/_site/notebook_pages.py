"""Notebooks as pages: their text, their code, and the text that they printed when they were last run."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parents[1] / "notebooks"


def notebook_pages() -> dict[str, str]:
    """Markdown by path."""
    return {f"notebooks/{file.stem}.md": _page(file) for file in sorted(_FOLDER.glob("*.ipynb"))}


def _page(file: Path) -> str:
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in _cell(cell)]
    ran = any(cell.get("outputs") for cell in cells)
    where = f"This page is the notebook `docs/notebooks/{file.name}`" + (
        "; its outputs are those of the demo model." if ran else "."
    )
    return "\n\n".join([parts[0], f"*{where}*", *parts[1:]]) + "\n"


def _cell(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"]).strip()
    if cell["cell_type"] == "markdown":
        return [source]
    return [f"```python\n{source}\n```", *(_output(output) for output in cell["outputs"])]


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        png = "".join(data["image/png"].split())
        base64.b64decode(png, validate=True)
        return f'<img alt="Picture made by the cell above" src="data:image/png;base64,{png}">'
    text = "".join(output["text"] if "text" in output else data["text/plain"]).rstrip()
    return f"```text\n{text}\n```"
