"""What has been found, for everybody who looks, with a count of changes so that a page draws anew only what moved."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

from emendo.ledger import History, Record
from emendo.ledger.record import MAKES_EDIT
from emendo.ledger.words import what_happened

MOST_COMMANDS = 50


class Board:
    """Named values; any thread may put and read them."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._values: dict[str, Any] = {"commands": []}
        self._versions: dict[str, int] = {}

    def put(self, name: str, value: Any) -> None:
        """Show a value in place of what was there."""
        with self._lock:
            self._values[name] = value
            self._versions[name] = self._versions.get(name, 0) + 1

    def put_other(self, name: str, value: Any) -> None:
        """The same, unless it is there already."""
        with self._lock:
            if self._values.get(name) != value:
                self.put(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        """What is there."""
        with self._lock:
            return self._values.get(name, default)

    def remember(self, what: str, command: str) -> None:
        """Add the command of an action; the newest comes first, each stands once."""
        with self._lock:
            rows = [row for row in self._values["commands"] if row["command"] != command]
            self.put("commands", [{"when": now(), "what": what, "command": command}, *rows][:MOST_COMMANDS])

    def snapshot(self) -> tuple[dict[str, Any], dict[str, int]]:
        """All values, and how often each was put."""
        with self._lock:
            return dict(self._values), dict(self._versions)


def history_rows(history: History) -> list[dict[str, Any]]:
    """The records of a ledger as a page lists them, the newest first."""
    active = {edit.id for edit in history.edits()} | {entry.edit for entry in history.active}
    return [_row(record, record.id in active) for record in reversed(history.chain)]


def _row(record: Record, active: bool) -> dict[str, Any]:
    gate = record.details.get("gate") or {}
    return {
        "id": record.id,
        "number": record.number,
        "when": record.when[:19].replace("T", " "),
        "who": record.who,
        "operation": record.operation,
        "what": what_happened(record),
        "message": record.message,
        "active": active,
        "forced": bool(gate.get("forced")),
        "confirmed": (gate.get("confirmed") or {}).get("typed", ""),
        "facts": [f"{one.text} → {one.target}" for one in (record.requests if record.operation in MAKES_EDIT else ())],
    }


def shortened(text: str, most: int = 60) -> str:
    """A text on one line of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def now() -> str:
    """The time in UTC, as records write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
