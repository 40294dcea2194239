"""A trace as files: a page, Markdown, a picture, JSON and the tensors."""

from emendo.report.trace.write import write_trace_report

__all__ = ["write_trace_report"]
