"""The output folder of an edit: the update, a report for machines and one for people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.editing.plan import Plan
from emendo.errors import OutputError
from emendo.io.in_place import replaced_files
from emendo.io.whole_file import write_json, write_text
from emendo.io.writable import check_writable
from emendo.report.judging import Judgement
from emendo.report.markdown import markdown_report
from emendo.report.verdict import Verdict
from emendo.updates.update import ModelUpdate

UPDATE_NAME = "update.safetensors"
_REPORTS = ("report.json", "report.md")


@checked
def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that could not be written or that holds a result, before any work is done; nothing is changed.

    Args:
        folder: Where a result shall go.
        overwrite: A result that is there will be replaced.

    Raises:
        OutputError: See `check_writable`; or there is an update, which is not to be overwritten.
    """
    check_writable(folder)
    for name in (UPDATE_NAME, *_REPORTS):
        if (folder.expanduser() / name).is_dir():
            raise OutputError(f"{str(folder)!r} holds a folder named {name}; choose another folder (--out)")
    if not overwrite and os.path.lexists(folder.expanduser() / UPDATE_NAME):
        raise OutputError(
            f"{str(folder)!r} holds the result of an edit already ({UPDATE_NAME}); choose another folder (--out), or "
            "replace that result (--overwrite)"
        )


def report_document(
    plan: Plan, judgement: Judgement | None, seconds: dict[str, float], verdict: Verdict | None = None
) -> dict[str, Any]:
    """Everything about an edit as one JSON document."""
    return {
        "format": "emendo.report",
        "version": 1,
        "update": {
            "id": plan.update.id,
            "bytes": plan.update.nbytes,
            "layers": [part.layer for part in plan.update.layers],
            "rank": max((part.rank for part in plan.update.layers), default=0),
        },
        "base": plan.update.base,
        "preceding": plan.update.preceding.to_dict(),
        "training": None,  # what a baseline's training did
        **{name: value for name, value in plan.update.info.items() if name != "measured"},
        "warnings": list(plan.warnings),
        "seconds": seconds,
        "judgement": judgement.to_dict() if judgement is not None else None,
        "verdict": verdict.to_dict() if verdict is not None else None,
    }


def recorded_metrics(document: dict[str, Any]) -> dict[str, Any]:
    """What a ledger's record keeps of what was measured of an edit.

    Args:
        document: As `report_document` makes it.
    """
    metrics = {"layers": document["layers"]}
    if (judgement := document["judgement"]) is not None:
        scores = {when: judgement[when]["scores"] for when in ("before", "after")}
        said = judgement["said"]["after"]
        metrics |= {**scores, "perplexity": judgement["perplexity"], "said": said}
    return metrics


@checked
def write_folder(
    folder: Path, update: ModelUpdate, document: dict[str, Any], *, overwrite: bool = False
) -> dict[str, str]:
    """Write update, report.json and report.md, all of them or none; a result that is there stays until they are safe.

    Args:
        folder: Made where there is none.
        update: The edit.
        document: As `report_document` makes it.
        overwrite: Replace a result that is there.

    Returns:
        The paths written, by kind.

    Raises:
        OutputError: The folder cannot be written, or holds a result.
    """
    check_free(folder, overwrite=overwrite)
    folder = folder.expanduser()
    with replaced_files(folder) as draft:
        write_json(draft / "report.json", document)
        write_text(draft / "report.md", markdown_report(document))
        update.save(draft / UPDATE_NAME)
    names = {"update": UPDATE_NAME, "report": "report.json", "markdown": "report.md"}
    return {kind: str(folder / name) for kind, name in names.items()}
