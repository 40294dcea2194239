"""A record from the plain values of its own form; `emendo.datasets` reads files of them and of other forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from emendo.arguments import checked
from emendo.arguments.words import shown
from emendo.errors import RequestError
from emendo.requests.asked import with_conversation
from emendo.requests.chat import Chat
from emendo.requests.hints import SLOT, unknown_field
from emendo.requests.problems import is_text, is_visible, request_problems
from emendo.requests.records import FIELDS, PROMPT_LISTS, EditRecord, EditRequest, Probe

_FIELDS = frozenset(FIELDS)
_REQUEST_FIELDS = ("prompt", "subject", "target", "id", "join")
_PROBE_FIELDS = ("kind", "prompt", "answers", "group", "chat")
_TRUTH = {"true": True, "false": False}
"""Words of YAML whose plain values all stay text."""
_GUESSES = (*PROMPT_LISTS, "probes")


@checked
def record_from_dict(row: Mapping[str, Any]) -> EditRecord:
    """One row as a record.

    Raises:
        RequestError: With every problem of the row.
    """
    row, doubled = _with_target(row)
    asked_as = "question" if "question" in row else "prompt"
    row, chat, badly_asked = with_conversation(row)
    request, problems = _read_request(row, chat, named=not badly_asked)
    problems = [re.sub("^prompt", asked_as, problem) for problem in problems] + doubled + badly_asked
    if not row.keys() <= _FIELDS:
        problems += [unknown_field(name, FIELDS) for name in row if name not in _FIELDS]
    for name in ("target_true", "relation"):
        if row.get(name) is not None and not is_visible(row[name]):
            problems.append(f"{name} must be a non-empty string, found {shown(row[name])}")
    lists: dict[str, tuple[str, ...]] = {}
    for name in PROMPT_LISTS:
        prompts = row.get(name, ())
        if prompts != () and not (isinstance(prompts, list) and all(map(is_visible, prompts))):
            problems.append(f"{name} must be a list of non-empty strings, found {shown(prompts)}")
        else:
            lists[name] = tuple(prompts)
    case = row.get("case", "")
    if not isinstance(case, str) or not is_text(case):
        problems.append(f"case must be a string, found {shown(case)}")
    guessed = row.get("guessed", [])
    if not isinstance(guessed, list) or not all(name in _GUESSES for name in guessed):
        problems.append(f"guessed must be a list of fields among {', '.join(_GUESSES)}, found {shown(guessed)}")
        guessed = []
    probes, bad_probes = _read_probes(row["probes"]) if "probes" in row else ((), [])
    if request is None or problems or bad_probes:
        raise RequestError("this row is not an edit record:", problems + bad_probes)
    return EditRecord(
        request=request,
        target_true=row.get("target_true"),
        **lists,
        relation=row.get("relation"),
        case=case,
        probes=probes,
        guessed=tuple(guessed),
    )


def _with_target(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """A row whose target may be called ``target_new``, as in ROME's and MEMIT's requests, also as ``{"str": ...}``.

    That of a question may be called ``answer``.
    """
    if "answer" in row and "question" in row:
        if "target" in row or "target_new" in row:
            return row, ["answer and target are both given; give one"]
        row = {("target" if name == "answer" else name): value for name, value in row.items()}
    if "target_new" not in row:
        return row, []
    given = row["target_new"]
    rest = {name: value for name, value in row.items() if name != "target_new"}
    if "target" in row:
        return rest, [f"target and target_new are both given, as {shown(row['target'])} and {shown(given)}; give one"]
    text = given["str"] if isinstance(given, Mapping) and given.keys() in ({"str"}, {"str", "id"}) else given
    return {**rest, "target": text}, []


def _read_request(row: Mapping[str, Any], chat: Chat | None, *, named: bool) -> tuple[EditRequest | None, list[str]]:
    """The request of a row, or everything that is wrong with its fields.

    Args:
        row: Its fields.
        chat: The turns around its prompt, if it is asked in chat.
        named: Whether what is missing is to be named; it is not where its conversation could not be read.
    """
    missing = [f"{name} is missing" for name in ("prompt", "subject", "target") if name not in row]
    if missing:
        if not named:
            missing = [told for told in missing if told.startswith("subject")]
        # A stand-in for what is missing, so that the fields that are there are judged too; a subject that no prompt
        # holds, so that none is suggested.
        given = {"prompt": SLOT, "subject": "\0", "target": "-", **row}
        return None, missing + request_problems(**{name: given[name] for name in _REQUEST_FIELDS if name in given})
    try:
        return EditRequest(**{name: row[name] for name in _REQUEST_FIELDS if name in row}, chat=chat), []
    except RequestError as error:
        return None, list(error.problems)


def _read_probes(rows: object) -> tuple[tuple[Probe, ...], list[str]]:
    """The probes of a row, and what is wrong with those that are none."""
    if not isinstance(rows, list):
        return (), [f"probes must be a list of objects, found {shown(rows)}"]
    probes: list[Probe] = []
    problems: list[str] = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            problems.append(f"probe {number} must be an object, found {shown(row)}")
            continue
        found = [f"{name} is missing" for name in ("kind", "prompt", "answers") if name not in row]
        found += [unknown_field(name, _PROBE_FIELDS) for name in row if name not in _PROBE_FIELDS]
        if not found:
            answers, chat = row["answers"], row.get("chat", False)
            chat = _TRUTH.get(chat, chat) if isinstance(chat, str) else chat
            try:
                answers = tuple(answers) if isinstance(answers, list) else answers
                probes.append(Probe(row["kind"], row["prompt"], answers, row.get("group", ""), chat))
            except RequestError as error:
                found = list(error.problems)
        problems += [f"probe {number}: {problem}" for problem in found]
    return tuple(probes), problems
