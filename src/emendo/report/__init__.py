"""Reports: what an edit did, for people and for machines.

Names are imported when used: a page about an update file needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.lazy import lazy

if TYPE_CHECKING:
    from emendo.report.folder import check_free, recorded_metrics, report_document, write_folder
    from emendo.report.judging import Judgement, Sample, edit_snapshots, judge, with_judgement
    from emendo.report.markdown import NOT_JUDGED, markdown_report
    from emendo.report.tables import (
        SHOWN_SCORES,
        added_ridge_note,
        layer_table,
        score_table,
        target_table,
        training_table,
    )
    from emendo.report.verdict import Verdict, verdict_of

__all__ = [
    "NOT_JUDGED",
    "SHOWN_SCORES",
    "Judgement",
    "Sample",
    "Verdict",
    "added_ridge_note",
    "check_free",
    "edit_snapshots",
    "judge",
    "layer_table",
    "markdown_report",
    "recorded_metrics",
    "report_document",
    "score_table",
    "target_table",
    "training_table",
    "verdict_of",
    "with_judgement",
    "write_folder",
]

__getattr__ = lazy(
    __name__,
    {
        "NOT_JUDGED": "emendo.report.markdown",
        "SHOWN_SCORES": "emendo.report.tables",
        "Judgement": "emendo.report.judging",
        "Sample": "emendo.report.judging",
        "added_ridge_note": "emendo.report.tables",
        "check_free": "emendo.report.folder",
        "edit_snapshots": "emendo.report.judging",
        "judge": "emendo.report.judging",
        "layer_table": "emendo.report.tables",
        "markdown_report": "emendo.report.markdown",
        "recorded_metrics": "emendo.report.folder",
        "report_document": "emendo.report.folder",
        "score_table": "emendo.report.tables",
        "target_table": "emendo.report.tables",
        "training_table": "emendo.report.tables",
        "verdict_of": "emendo.report.verdict",
        "Verdict": "emendo.report.verdict",
        "with_judgement": "emendo.report.judging",
        "write_folder": "emendo.report.folder",
    },
)
