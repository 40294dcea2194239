"""KnowEdit: flat facts with portability and locality probes in named groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from emendo.datasets.fields import Fields
from emendo.requests import EditRecord, EditRequest, Probe


def read_knowedit(row: Fields, label: str) -> list[EditRecord]:
    """A row of wiki_recent, wiki_counterfact or ZsRE of KnowEdit.

    A probe without an answer or a prompt is left out and counted. Where a ground truth is several lists of spellings,
    any spelling of any of them counts.

    Source: KnowEdit (arXiv 2401.01286); its portability probes are those of RippleEdits (arXiv 2307.12976).
    """
    subject = row.text("subject")
    prompt = row.cut("prompt", subject)
    target = row.text("target_new")
    true = next(_strings(row.row.get("ground_truth")), None)
    rephrasing = row.optional_text("rephrase_prompt") or row.optional_text("rephrase")
    probes = [probe for kind in ("portability", "locality") for probe in _probes(row, kind)]
    row.check()
    paraphrases = (rephrasing,) if rephrasing else ()
    return [EditRecord(EditRequest(prompt, subject, target, label), true, paraphrases, probes=tuple(probes))]


def _probes(row: Fields, kind: str) -> Iterator[Probe]:
    if kind not in row.row:
        return
    for group, entries in row.inside(kind).row.items():
        if isinstance(entries, Mapping):  # a group of one, as a column of a table may hold it
            entries = [entries]
        if not isinstance(entries, list):
            row.problems.append(f"{kind}.{group:.60} must be a list of probes, found {type(entries).__name__}")
            continue
        for entry in entries:
            given: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
            question = next(_strings(given.get("prompt")), None)
            yield from row.probe(kind, question, _strings(given.get("ground_truth")), str(group))


def _strings(value: object, depth: int = 3) -> Iterator[str]:
    """Every string that is not blank, from a string or lists of strings in lists."""
    if isinstance(value, str) and value.strip():
        yield value
    elif isinstance(value, list) and depth:
        for entry in value:
            yield from _strings(entry, depth - 1)
