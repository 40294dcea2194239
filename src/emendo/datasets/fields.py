"""Reading the fields of a foreign row: what is there, or every reason why it cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from emendo.arguments.words import shown
from emendo.errors import RequestError
from emendo.requests import SLOT, Probe


class Fields:
    """A row whose fields are read by name; problems are collected and raised together by `check`.

    A field that is None counts as missing, because tables fill absent fields with it.

    Args:
        row: The fields.

    Attributes:
        problems: Why the row cannot be used.
        dropped: What was left out of a row that can be used.
    """

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row = {name: value for name, value in row.items() if value is not None}
        self.problems: list[str] = []
        self.dropped: list[str] = []
        self._where = ""

    def inside(self, name: str) -> Fields:
        """The object in a field, with the same lists of problems."""
        value = self.row.get(name)
        if not isinstance(value, Mapping):
            self._wrong(name, "an object", value)
            value = {}
        return self.of(value, f"{name}.")

    def of(self, value: Mapping[str, Any], where: str) -> Fields:
        """An object that was found within this row, with the same lists of problems."""
        inner = Fields(value)
        inner.problems, inner.dropped, inner._where = self.problems, self.dropped, self._where + where
        return inner

    def objects(self, name: str) -> list[Fields]:
        """The objects of a list, with the same lists of problems."""
        value = self.row.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(entry, Mapping) for entry in value):
            self._wrong(name, "a list of objects", value)
            return []
        return [self.of(entry, f"{name}[{place}].") for place, entry in enumerate(value)]

    def text(self, name: str) -> str:
        """A string that is not blank."""
        return self.optional_text(name, required=True) or ""

    def optional_text(self, name: str, *, required: bool = False) -> str | None:
        """A string that is not blank; None where the field is missing."""
        value = as_text(self.row.get(name))
        if value is None and not required:
            return None
        if not isinstance(value, str) or not value.strip():
            self._wrong(name, "a non-empty string", value)
            return None
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings that are not blank; empty where the field is missing."""
        value = self.row.get(name, [])
        if not isinstance(value, list) or not all(isinstance(entry, str) and entry.strip() for entry in value):
            self._wrong(name, "a list of non-empty strings", value)
            return ()
        return tuple(value)

    def label(self, name: str, default: str) -> str:
        """A number or string that names the row."""
        value = self.row.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            self._wrong(name, "a number or a string", value)
            return default
        try:
            return str(value)
        except ValueError:  # more digits than Python writes
            self._wrong(name, "a number that can be written", "too many digits")
            return default

    def probe(self, kind: str, prompt: object, answers: Iterable[object], group: str) -> list[Probe]:
        """The probe, in a list; an empty one, noted in `dropped`, where the row gives no prompt or answer for it."""
        known = tuple(dict.fromkeys(answer for answer in answers if isinstance(answer, str) and answer.strip()))
        try:
            return [Probe(kind, prompt, known, group)]  # type: ignore[arg-type]  # checked by Probe
        except RequestError as error:
            self.dropped.append(f"{kind} probe{f' {group!r}' if group else ''} left out: {'; '.join(error.problems)}")
            return []

    def cut(self, name: str, subject: str) -> str:
        """The prompt in a field with its subject replaced by the slot."""
        text = self.text(name)
        if not text or not subject:
            return SLOT
        if SLOT in text:
            if text.count(SLOT) == 1 and subject not in text:
                return text
            self.problems.append(f"{self._where}{name} must not hold {{}} and the subject: {shown(text)}")
            return SLOT
        places = [found.start() for found in re.finditer(re.escape(subject), text)]
        if len(places) > 1:  # "Ira" is also in "Irak": a subject is a whole word
            places = [found.start() for found in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", text)]
        if len(places) != 1:
            self.problems.append(
                f"{self._where}{name} must hold the subject once, found {len(places)} times: "
                f"{shown(subject)} in {shown(text)}"
            )
            return SLOT
        return text[: places[0]] + SLOT + text[places[0] + len(subject) :]

    def check(self) -> None:
        """Refuse the row if anything was wrong with it.

        Raises:
            RequestError: With every problem.
        """
        if self.problems:
            raise RequestError("this row cannot be used:", self.problems)

    def _wrong(self, name: str, expected: str, value: object) -> None:
        found = "is missing" if value is None else f"must be {expected}, found {shown(value)}"
        self.problems.append(f"{self._where}{name} {found}")


def as_text(value: object) -> object:
    """A whole number as it is spoken; anything else as it is.

    A number with a point is not: 20.0 may be meant as "20" or "20.0", and which of them was written is lost in parsing.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    try:
        return str(value)
    except ValueError:  # more digits than Python writes
        return value
