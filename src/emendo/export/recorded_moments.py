"""Which second moments updates were solved with, as their own records say."""

from __future__ import annotations

from collections.abc import Sequence

from emendo.errors import ExportError
from emendo.methods.settings import MomentSettings
from emendo.updates.update import ModelUpdate


def recorded_moments(updates: Sequence[ModelUpdate]) -> tuple[list[int], MomentSettings, int]:
    """The layers that updates write, and settings and seed of the second moments of the last of them.

    Raises:
        ExportError: An update says nothing of second moments, as those of baselines do not.
    """
    layers = sorted({part.layer for update in updates for part in update.layers})
    info = updates[-1].info if updates else {}
    try:
        settings = info["method"]["settings"]
        found = MomentSettings(
            source=settings["moments.source"],
            multiple=settings["moments.multiple"],
            exclude_first=settings["moments.exclude_first"],
        )
        return layers, found, int(info["seed"])
    except (KeyError, TypeError) as error:
        raise ExportError(
            "this update does not say which second moments it was solved with, and rounding in place needs them; "
            "expected one of a method that uses them, such as emmet or memit (--method)"
        ) from error
