"""ROME's known facts: what a model knows, for causal tracing."""

from __future__ import annotations

from emendo.datasets.fields import Fields
from emendo.requests import EditRecord, EditRequest


def read_known_fact(row: Fields, label: str) -> list[EditRecord]:
    """A row of ``known_1000.json``.

    These are no edits: the target is the true answer. The prompt is the one that ROME asked, which often goes on
    after the end of `template`.
    """
    subject = row.text("subject")
    prompt = row.cut("prompt", subject)
    attribute = row.text("attribute")
    relation = row.optional_text("relation_id")
    id = row.label("known_id", label)
    row.check()
    return [EditRecord(EditRequest(prompt, subject, attribute, id), attribute, relation=relation)]
