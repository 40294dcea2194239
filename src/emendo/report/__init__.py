"""Reports: what an edit did, for people and for machines.

Names are imported when used: a page about an update file needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.lazy import lazy

if TYPE_CHECKING:
    from emendo.report.folder import check_free, report_document, write_folder
    from emendo.report.judging import Judgement, Sample, edit_snapshots, judge
    from emendo.report.markdown import NOT_JUDGED, SHOWN_SCORES, markdown_report
    from emendo.report.tables import added_ridge_note, layer_table, target_table, training_table

__all__ = [
    "NOT_JUDGED",
    "SHOWN_SCORES",
    "Judgement",
    "Sample",
    "added_ridge_note",
    "check_free",
    "edit_snapshots",
    "judge",
    "layer_table",
    "markdown_report",
    "report_document",
    "target_table",
    "training_table",
    "write_folder",
]

__getattr__ = lazy(
    __name__,
    {
        "NOT_JUDGED": "emendo.report.markdown",
        "SHOWN_SCORES": "emendo.report.markdown",
        "Judgement": "emendo.report.judging",
        "Sample": "emendo.report.judging",
        "added_ridge_note": "emendo.report.tables",
        "check_free": "emendo.report.folder",
        "edit_snapshots": "emendo.report.judging",
        "judge": "emendo.report.judging",
        "layer_table": "emendo.report.tables",
        "markdown_report": "emendo.report.markdown",
        "report_document": "emendo.report.folder",
        "target_table": "emendo.report.tables",
        "training_table": "emendo.report.tables",
        "write_folder": "emendo.report.folder",
    },
)
