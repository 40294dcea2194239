"""A data format: rows of a knowledge graph, ``{"head": ..., "relation": ..., "tail": ..., "old_tail": ...}``."""

from __future__ import annotations

from emendo.datasets import DataFormat, Fields
from emendo.requests import EditRecord, EditRequest


def read_triple(row: Fields, label: str) -> list[EditRecord]:
    """One row as one record; the relation is the words between the two.

    Raises:
        RequestError: A field is missing or no text; names all of them.
    """
    head, relation, tail = row.text("head"), row.text("relation"), row.text("tail")
    old = row.optional_text("old_tail")
    row.check()
    return [EditRecord(EditRequest(f"{{}} {relation}", head, tail, label), old, relation=relation)]


TRIPLES = DataFormat(
    name="triples",
    title="triples of a knowledge graph",
    read=read_triple,
    has={"head": str, "relation": str, "tail": str},
    reads="`head` → subject, `relation` → the words after it, `tail` → target, `old_tail` → `target_true`",
    source="an example",
    licence="yours",
)
