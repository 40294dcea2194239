"""Reports: what an edit did, for people and for machines."""

from emendo.report.folder import check_free, report_document, write_folder
from emendo.report.judge import Judgement, Sample, edit_snapshots, judge
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
