"""Multiple-choice questions from a JSONL file, as a data set for lm-evaluation-harness.

One question a line: ``{"question": str, "choices": [str, str, str, str], "answer": 0..3}``.
The file is named by the task's metadata, which `emendo harness --data FILE` and `lm_eval --metadata` fill.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

from emendo.errors import HarnessError

_CHOICES = 4
_SHOWN = 5  # problems named in a message


def load(data: str | None = None, **_: Any) -> dict[str, Dataset]:
    """The questions, as the split ``test``.

    Args:
        data: Path of the file.

    Raises:
        HarnessError: No file is named, it cannot be read, or a line is not a question.
    """
    if data is None:
        raise HarnessError("the task reads its questions from a file, and none is named; give --data FILE.jsonl")
    try:
        # Not splitlines(), which also parts at separators that JSON allows inside a text.
        lines = Path(data).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"cannot read {data!r}: {error}; expected a JSONL file of questions (--data)") from error
    rows, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_question(json.loads(line)))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems or not rows:
        found = "; ".join(problems[:_SHOWN]) or "it holds no question"
        raise HarnessError(
            f"{len(problems)} of {len(problems) + len(rows)} lines of {data!r} are not questions: {found}. Expected "
            '{"question": "...", "choices": [4 texts], "answer": 0 to 3} on each line (--data)'
        )
    return {"test": Dataset.from_list(rows)}


def _question(row: Any) -> dict[str, Any]:
    """A row that the task's templates can read.

    Raises:
        ValueError: It is not one; says why.
    """
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    if not isinstance(row.get("question"), str) or not row["question"].strip():
        raise ValueError("question must be a text")
    choices = row.get("choices")
    if not isinstance(choices, list) or len(choices) != _CHOICES or not all(isinstance(c, str) for c in choices):
        raise ValueError(f"choices must be {_CHOICES} texts")
    answer = row.get("answer")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < _CHOICES:
        raise ValueError(f"answer must be 0 to {_CHOICES - 1}, found {answer!r}")
    # Only these fields: a data set has the same columns in every row.
    return {"question": row["question"], "choices": choices, "answer": answer, "subject": str(row.get("subject", ""))}
