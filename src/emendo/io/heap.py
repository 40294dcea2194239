"""Memory that was freed goes back to the system.

glibc keeps freed pages that lie between what is still in use. Passes over texts of many lengths leave holes that
nothing fits into; asked, it returns the whole pages in them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def give_back_freed_memory() -> None:
    """Return freed memory to the system, where the C library can: glibc. A few milliseconds; no numbers change."""
    if trim := _trim():
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library, such as musl
        return None
    return trim
