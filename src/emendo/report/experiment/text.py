"""Text of models and data sets, made safe to show: any characters, any length."""

from __future__ import annotations

import re

MOST_SHOWN = 600
"""Characters of one text on a page; the whole of it stays in records.jsonl."""

_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~!$])")


def shown(value: object, most: int = MOST_SHOWN) -> str:
    """A text that can be written and drawn: no control characters, no half characters, not too long."""
    text = _UNSHOWN.sub("\ufffd", str(value))
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def shortened(value: object, most: int) -> str:
    """One line of at most `most` characters, for legends and headings."""
    text = " ".join(_UNSHOWN.sub("\ufffd", str(value)).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def markdown(value: object, most: int = MOST_SHOWN) -> str:
    """A text as one Markdown table cell in which nothing is markup: no HTML, no link, no image."""
    return " ".join(_MARKDOWN.sub(r"\\\1", shown(value, most)).replace("&", "&amp;").split())
