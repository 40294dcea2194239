"""Ledgers: a folder with every edit of a model, each of which can be taken out again.

`EditLedger` is imported when first used: looking at records (`LedgerStore`, `History`) needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emendo.ledger.edits import History, StoredEdit
from emendo.ledger.record import Active, Record
from emendo.ledger.store import LedgerStore

if TYPE_CHECKING:
    from emendo.ledger.ledger import EditLedger
    from emendo.ledger.verify import Verification

__all__ = ["Active", "EditLedger", "History", "LedgerStore", "Record", "StoredEdit", "Verification"]


def __getattr__(name: str) -> Any:
    if name == "EditLedger":
        from emendo.ledger.ledger import EditLedger

        return EditLedger
    if name == "Verification":
        from emendo.ledger.verify import Verification

        return Verification
    raise AttributeError(f"module 'emendo.ledger' has no attribute {name!r}")
