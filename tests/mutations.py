"""Files and arguments made slightly or badly wrong, by a seeded draw: what the fuzz of the commands feeds them."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from typing import Any

NUMBERS = ("NaN", "Infinity", "-Infinity", "1e400", "-1", "0", "-0.0", "1e-320", "9" * 40, "2147483648", "0.5", "1_000")
TEXTS = (
    "",
    " ",
    "{}",
    "{}{}",
    "{",
    "a\0b",
    "\u202e",
    "é",
    "😀",
    "\ud800",
    "\x1b[2J",
    "x" * 5000,
    "None",
    "../..",
    "-",
    "\n",
)
NAMES = ("prompt", "subject", "target", "__class__", "", "a.b", "0")


def weird(draw: random.Random) -> Any:
    """A value that is probably not what a field holds."""
    deep: Any = 0
    for _ in range(draw.choice((1, 5, 200))):
        deep = [deep] if draw.random() < 0.5 else {"a": deep}
    values: tuple[Any, ...] = (None, True, False, [], {}, 0, -1, 10**30, 1.5, float("nan"), float("inf"), deep)
    return draw.choice((*values, *TEXTS, *map(_number, NUMBERS)))


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes with bits turned over, parts cut, repeated, moved or put in; once or a few times."""
    for _ in range(draw.choice((1, 1, 2, 5))):
        size = len(content)
        a, b = sorted((draw.randrange(size + 1), draw.randrange(size + 1)))
        what = draw.randrange(8)
        if what == 0 and size:
            content = content[:a] + bytes([content[min(a, size - 1)] ^ (1 << draw.randrange(8))]) + content[a + 1 :]
        elif what == 1:
            content = content[:a]
        elif what == 2:
            content = content[:a] + content[b:]
        elif what == 3:
            content = content[:b] + content[a : a + 2000] + content[b:]
        elif what == 4:
            content = (
                content[:a]
                + draw.choice((b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\n", b'"', b"{"))
                + content[a:]
            )
        elif what == 5:
            content = content[:a] + draw.randbytes(draw.choice((1, 8, 64))) + content[a:]
        elif what == 6:
            content = draw.choice(
                (b"", b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), b"PK\x03\x04" + content)
            )
        elif size >= 8:  # a length of a binary header
            at = draw.choice((0, draw.randrange(size - 7)))
            number = draw.choice((0, 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1))
            content = content[:at] + number.to_bytes(8, "little") + content[at + 8 :]
    return content


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*at, key))


def changed(value: Any, draw: random.Random) -> Any:
    """A JSON value with a part of it replaced, left out, renamed, repeated or exchanged with another."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2, 4))):
        places = [place for place in _places(value) if place]
        if not places:
            return weird(draw)
        *path, key = draw.choice(places)
        holder = value
        for step in path:
            holder = holder[step]
        what = draw.randrange(6)
        if what <= 1:
            holder[key] = weird(draw)
        elif what == 2:
            del holder[key]
        elif what == 3 and isinstance(holder, dict):
            holder[draw.choice((*NAMES, *map(str, holder)))] = holder.pop(key)
        elif what == 4 and isinstance(holder, dict):
            other = draw.choice(list(holder))
            holder[key], holder[other] = holder[other], holder[key]
        else:
            holder[key] = [copy.deepcopy(holder[key])] * draw.choice((1, 2, 50))
    return value


def as_json(value: Any, draw: random.Random) -> bytes:
    """JSON text, as broken as it comes: repeated names, numbers that no parser takes, raw halves of characters."""
    text = json.dumps(value, ensure_ascii=draw.random() < 0.7)
    what = draw.randrange(8)
    if what == 0:
        text = re.sub(
            r'("[^"]*": ?)', lambda found: found[1] + "1, " + found[1] if draw.random() < 0.2 else found[1], text
        )
    elif what == 1:
        text = re.sub(r"\d+", lambda found: draw.choice(NUMBERS) if draw.random() < 0.2 else found[0], text)
    elif what == 2:
        text = text.replace(",", ",,", 1) if draw.random() < 0.5 else text.replace("}", ",}", 1)
    elif what == 3:
        text = text.replace('"', "'")
    return text.encode("utf-8", "surrogatepass")


def rewritten(text: str, draw: random.Random) -> bytes:
    """YAML, TOML or CSV with words and lines exchanged, repeated, left out or indented otherwise."""
    lines = text.split("\n")
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(lines))
        what = draw.randrange(7)
        if what == 0:
            lines.insert(at, lines[draw.randrange(len(lines))])
        elif what == 1 and len(lines) > 1:
            lines.pop(at)
        elif what == 2:
            lines[at] = draw.choice(("  ", "\t", "- ", "[", "#")) + lines[at]
        elif what == 3:
            lines[at] = re.sub(r"[\w.]+$", lambda _: str(weird(draw)), lines[at])
        elif what == 4:
            lines[at] = re.sub(r"^\s*[\w.-]+", lambda _: str(weird(draw)), lines[at])
        elif what == 5:
            lines[at] += draw.choice((": &a *a", " !!python/object:os.system x", "[" * 300, ",", '"'))
        else:
            lines.insert(at, "<<: *x" if draw.random() < 0.5 else "a: &x [" + "*x," * 5 + "]")
    return "\n".join(lines).encode("utf-8", "surrogatepass")
