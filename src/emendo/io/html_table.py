"""A small table as HTML, which notebooks show in place of a representation (`_repr_html_`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_MOST = 20
"""Rows that are shown."""


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a caption; of many rows the first ones, and how many more there are.

    Args:
        title: The caption.
        header: Names of the columns.
        rows: Cells; None is a dash.
    """
    cells = [["–" if cell is None else escape(str(cell)) for cell in row] for row in rows]
    more = f"<p>and {len(cells) - _MOST} more</p>" if len(cells) > _MOST else ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells[:_MOST])
    caption = f"<caption>{escape(title)}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
