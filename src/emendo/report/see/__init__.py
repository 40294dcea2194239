"""What edits do, one by one, as files: a page, Markdown, a picture and JSON."""

from emendo.report.see.document import Seen
from emendo.report.see.write import write_seen

__all__ = ["Seen", "write_seen"]
