"""What a message says of a name that nothing has: the nearest known ones, and all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.4) -> list[str]:
    """The known names that are most like one, best first; none where nothing is alike.

    Args:
        name: What was given.
        known: All names.
        most: Most of them.
        cutoff: Least likeness, from 0 to 1.
    """
    return difflib.get_close_matches(name.lower(), list(known), n=most, cutoff=cutoff)


def unknown_name(kind: str, name: str, known: Iterable[str], fix: str, *, most: int = 1) -> str:
    """The message for a name that is not known.

    Args:
        kind: What it should be the name of, such as ``"method"``.
        name: What was given.
        known: All names, in the order in which they are listed.
        fix: The option or argument that takes the name.
        most: Most suggestions.
    """
    names = list(known)
    near = nearest(name, names, most=most)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}Known: {', '.join(names)} ({fix})"
