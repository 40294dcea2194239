"""Which model a ledger is for."""

from __future__ import annotations

from collections.abc import Mapping

from emendo.errors import BaseMismatchError
from emendo.ledger.edits import History
from emendo.session import EditSession


def base_of(session: EditSession) -> dict[str, str]:
    """Identity of a session's model: name, family, dtype, and the digests of weights and tokenizer."""
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
    for what in ("model_type", "dtype", "weights_sha256", "tokenizer_sha256"):
        if what in found and found[what] != expected[what]:
            raise BaseMismatchError(
                f"this ledger is for {expected['name']!r} with {what} {expected[what][:12]}, and this is "
                f"{found.get('name')!r} with {what} {found[what][:12]}; load that model (--model {model} --dtype "
                f"{expected['dtype']}), or make a ledger for this one (emendo init FOLDER --model MODEL)"
            )
