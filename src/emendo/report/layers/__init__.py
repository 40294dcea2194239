"""A sweep over layers beside a trace, as files: a page, Markdown, a picture and JSON."""

from emendo.report.layers.document import document
from emendo.report.layers.write import PAGE, write_layers

__all__ = ["PAGE", "document", "write_layers"]
