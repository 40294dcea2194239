"""Rows of single facts: the fields of `EditRecord`, also under the names that other tools have for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from emendo.arguments.words import shown
from emendo.datasets.fields import Fields, as_text
from emendo.datasets.names import PAIRED, own_names
from emendo.errors import RequestError
from emendo.requests import FIELDS, NAMES_ELSEWHERE, PROMPT_LISTS, SLOT, EditRecord, record_from_dict

_NEEDED = ({"prompt", "subject", "target"}, {"question", "subject", "target"}, {"messages", "subject"})
"""Fields that make a row a fact: any of these sets."""


def read_own(row: Fields, label: str) -> list[EditRecord]:
    """A row of the own form; an id is not made up, because reports fall back on the subject."""
    return [own_record(row.row)]


def own_record(row: Mapping[str, Any]) -> EditRecord:
    """One fact as a record.

    Numbers that name or answer something become text, one prompt becomes a list of one, and a prompt that holds its
    subject once and no slot gets one. What is not certain is refused.

    Args:
        row: Fields in plain spelling.

    Raises:
        RequestError: With every problem of the row.
    """
    named = own_names(row)
    for name in ("target", "target_true"):
        if name in named:
            named[name] = _answer(name, named[name])
    for name in ("id", "subject", "case"):
        if name in named:
            named[name] = as_text(named[name])
    for name in PROMPT_LISTS:
        if isinstance(named.get(name), str):
            named[name] = [named[name]]
    for name in ("prompt", "question"):
        named[name] = _with_slot(named.get(name), named.get("subject"))
    _add_locality(named)
    return record_from_dict({name: value for name, value in named.items() if value is not None})


def has_own(row: Mapping[str, Any]) -> bool:
    """Whether a row in plain spelling gives a prompt or question, subject and target, under any of their names."""
    try:
        names = own_names(row).keys()
        return any(names >= needed for needed in _NEEDED)
    except RequestError:
        return True  # the names are ours; what is wrong with them is said when the row is read


def is_own(row: Mapping[str, Any]) -> bool:
    """Whether a row gives them and nothing that the own form has no place for."""
    known = {*FIELDS, *PAIRED, *PAIRED.values()}
    return has_own(row) and all(NAMES_ELSEWHERE.get(name, name) in known for name in row)


def _answer(name: str, value: object) -> object:
    """The text of an answer, also of one in a list of one or as CounterFact writes it: ``{"str": ..., "id": ...}``."""
    if isinstance(value, Mapping) and "str" in value and value.keys() <= {"str", "id"}:
        value = value["str"]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, (bool, float)):
        kind = "a truth value" if isinstance(value, bool) else "a number with a point"
        raise RequestError(
            "an answer is no text:",
            [f"{name} is {kind}, found {shown(value)}; write it in quotes, as the model should say it"],
        )
    return as_text(value)


def _with_slot(prompt: object, subject: object) -> object:
    """The prompt with a slot for its subject, where that stands in it once, as a whole word."""
    if not isinstance(prompt, str) or not isinstance(subject, str) or not subject.strip() or SLOT in prompt:
        return prompt
    places = [found.start() for found in re.finditer(re.escape(subject), prompt)]
    if len(places) != 1:
        return prompt
    before, after = prompt[: places[0]], prompt[places[0] + len(subject) :]
    if _goes_on(before[-1:], subject[0]) or _goes_on(subject[-1], after[:1]):
        return prompt
    return f"{before}{SLOT}{after}"


def _goes_on(one: str, other: str) -> bool:
    """Whether two characters side by side are of one word, in scripts that part words: cased letters and digits."""
    return all(part.isdigit() or part.islower() or part.isupper() for part in (one, other))


def _add_locality(named: dict[str, Any]) -> None:
    """A question about something else with its answer: a neighbor where that is `target_true`, else a probe."""
    for question, answer in PAIRED.items():
        if question not in named or answer not in named:
            continue
        asked, right = named.pop(question), as_text(named.pop(answer))
        if right == named.get("target_true") and not named.get("neighborhood_prompts"):
            named["neighborhood_prompts"] = [asked]
        else:
            probe = {"kind": "locality", "prompt": asked, "answers": [right], "group": question}
            named["probes"] = [*(named.get("probes") or []), probe]
