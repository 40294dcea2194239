"""A person's prompts: a text file with one on each line, or JSON lines."""

from __future__ import annotations

import os
from pathlib import Path

from emendo.errors import DatasetError
from emendo.io import strict_json
from emendo.io.plain_file import read_plain_text


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, each once, in their order.

    Args:
        path: Text with one prompt on each line; or, with a name that ends in ``.jsonl``, a string on each line or an
            object with ``prompt``, whose slot ``{}`` its ``subject`` fills.

    Raises:
        DatasetError: It cannot be read, a line is no prompt, or there is none.
    """
    try:
        lines = read_plain_text(path.expanduser()).split("\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DatasetError(
            f"cannot read the prompts {str(path)!r}: {reason}; expected a UTF-8 file with one on each line (--prompts)"
        ) from error
    as_json = os.fspath(path).lower().endswith(".jsonl")
    found = {
        (_from_json(line, f"{path}:{number}") if as_json else line.rstrip()): None
        for number, line in enumerate(lines, start=1)
        if line.strip()
    }
    if not found:
        raise DatasetError(f"{str(path)!r} has no prompt; expected one on each line (--prompts)")
    return list(found)


def _from_json(line: str, place: str) -> str:
    try:
        row = strict_json.loads(line)
    except ValueError as error:
        raise DatasetError(
            f"{place}: no JSON: {error}; expected a string or an object with prompt (--prompts)"
        ) from error
    if isinstance(row, dict):
        prompt, subject = row.get("prompt"), row.get("subject")
        if isinstance(prompt, str) and "{}" in prompt and isinstance(subject, str):
            prompt = prompt.replace("{}", subject)
        row = prompt
    if not isinstance(row, str) or not row.strip():
        raise DatasetError(f"{place}: no prompt; expected a string or an object with the text in prompt (--prompts)")
    return row.rstrip()
