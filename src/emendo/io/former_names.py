"""Names that fields of files had in earlier versions. Whoever reads such a file asks here for today's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LAYER_FIELDS: Mapping[str, str] = {"written": "achieved", "disturbed": "interference"}
"""Of what an edit does to a layer: in update files, reports, ledger records and journals of experiments."""

MONITOR_FIELDS: Mapping[str, str] = {"disturbed": "interference"}
"""Of the ``[monitor]`` section of a gate's configuration."""

METHOD_SETTINGS: Mapping[str, str] = {"span": "n_layers"}
"""Of a method's recorded settings."""


def with_current_names(row: Mapping[str, Any], former: Mapping[str, str]) -> dict[str, Any]:
    """A row of a file with today's names for its fields.

    Args:
        row: The row, of any version.
        former: Today's name by the former one. A former name stays where the row has today's as well.
    """
    return {former[name] if name in former and former[name] not in row else name: row[name] for name in row}
