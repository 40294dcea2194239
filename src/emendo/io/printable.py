"""Text from files as a terminal may show it: nothing in it acts."""

from __future__ import annotations

import re
import shlex

_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (an escape sequence can clear the screen, or show another text than there is), line separators,
marks that turn the direction of writing around, and halves of surrogate pairs, which cannot be written at all."""

_HALVES = re.compile("[\ud800-\udfff]")


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with such characters as Python writes them: ``\x1b`` for the escape character.

    Args:
        text: From anywhere.
        keep: Characters that stay, such as the line end where the text is of lines.
    """
    return _ACTING.sub(lambda found: found[0] if found[0] in keep else _as_python_writes(found[0]), text)


def printable_json(document: str) -> str:
    """JSON text that no terminal obeys: such characters stand in its strings alone, where JSON has escapes for them."""
    return _ACTING.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", document)


def well_formed(text: str) -> str:
    r"""The text with halves of surrogate pairs written out, so that it can be kept: ``\xe9`` for a byte of no UTF-8.

    Args:
        text: From the operating system, say, whose names are bytes: Python reads those of no UTF-8 as such halves.
    """
    return _HALVES.sub(lambda found: _byte_or_half(ord(found[0])), text)


def _byte_or_half(code: int) -> str:
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _as_python_writes(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def quoted(value: object) -> str:
    """A name or a path as a word of a command that somebody copies into a shell."""
    return shlex.quote(str(value))
