"""Which model a ledger is for."""

from __future__ import annotations

from collections.abc import Mapping

from emendo.editing.session import EditSession
from emendo.io.printable import quoted
from emendo.ledger.edits import History
from emendo.models.base_model import check_same_base


def base_of(session: EditSession) -> dict[str, str]:
    """Identity of a session's model: what updates record, and the dtype."""
    return {**session.base, "dtype": str(session.lm.dtype).removeprefix("torch.")}


def check_base(history: History, found: Mapping[str, str]) -> None:
    """Refuse another model; its name may differ, since a folder can be moved.

    Args:
        history: Of the ledger.
        found: Identity of the model, or of the base of an update, which has no dtype.

    Raises:
        BaseMismatchError: Says in what they differ.
    """
    expected, model = history.base, history.chain[0].details["model"]
    check_same_base(
        expected,
        found,
        what="this ledger",
        remedy=f"load that model (--model {quoted(model)} --dtype {expected['dtype']}), or make a ledger for this one "
        "(emendo ledger init FOLDER --model MODEL)",
    )
