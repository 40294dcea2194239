"""An experiment's folder as a page, a Markdown file and plots."""

from emendo.report.experiment.folder import Cell, Experiment, read_experiment
from emendo.report.experiment.write import write_report

__all__ = ["Cell", "Experiment", "read_experiment", "write_report"]
