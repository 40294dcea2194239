"""Emendo's own rows: the fields of `EditRecord`."""

from __future__ import annotations

from emendo.datasets.fields import Fields
from emendo.requests import EditRecord, record_from_dict


def read_own(row: Fields, label: str) -> list[EditRecord]:
    """A row of the own form; an id is not made up, because reports fall back on the subject."""
    return [record_from_dict(row.row)]
