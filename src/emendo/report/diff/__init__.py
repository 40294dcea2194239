"""Two states of a model on a person's prompts, as files: a page, Markdown, a picture and JSON."""

from emendo.report.diff.document import document
from emendo.report.diff.write import PAGE, write_difference

__all__ = ["PAGE", "document", "write_difference"]
