"""A warning before a sequence of edits destroys a model.

Each edit of a sequence can look harmless while the model is being lost: what fails is the sum. The monitor looks, after
every update, at signals that are cheap beside planning one: how far the weights have moved in all, what that costs on
preserved keys, how much earlier edits were disturbed, and how a few dozen plain prompts are continued. Its limits lie
below what a collapsing run reaches before its perplexity and its neighbors go (docs/lab/gate.md).

::

    monitor = CollapseMonitor(session)
    for request in requests:
        plan = session.plan([request], "rome")
        session.apply(plan.update)
        for warning in monitor.observe(plan):
            print(warning)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from emendo.arguments import checked
from emendo.editing.plan import Plan, trained_layer_report
from emendo.editing.session import EditSession
from emendo.editing.sharing import FactIndex, rows_without
from emendo.editing.weight_change import WeightMeter
from emendo.errors import InputError, NumericalError
from emendo.evaluate import measure_drift, next_token_log_probs
from emendo.gate.canaries import CanarySet, read_canaries
from emendo.gate.config import GateConfig, default_config
from emendo.gate.cost_statistics import pricing
from emendo.updates.update import ModelUpdate, merge_layers

_WORDS = {
    "norm_growth": "all updates together over the norm of the weight, in the worst layer",
    "relative_cost": "cost of all updates together on preserved keys, in the worst layer",
    "interference": "change of what earlier edits had written, in the worst layer",
    "canary_kl_mean": "KL(unedited || edited) on canary prompts, mean, in nats",
    "canary_flips": "share of canary prompts with another most likely next token",
}


@dataclass(frozen=True)
class Signals:
    """What the monitor saw after an update; None where it does not apply or is not looked at.

    Attributes:
        updates: Updates in the model.
        norm_growth: ‖ΔW‖_F / ‖W‖_F of all updates together, in the layer where it is largest.
        relative_cost: tr(ΔW C ΔWᵀ) / tr(W C Wᵀ) of all updates together, in the layer where it is largest.
        interference: Change of what earlier edits had written at their keys, relative to it, in the worst layer;
            without keys that a new value took over with their facts.
        canary_kl_mean: Mean over canary prompts of KL(unedited ‖ edited) of the next token, in nats; infinite where
            the edited model gives no finite numbers.
        canary_flips: Share of canary prompts with another most likely next token.
    """

    updates: int
    norm_growth: float | None
    relative_cost: float | None
    interference: float | None
    canary_kl_mean: float | None
    canary_flips: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class CollapseWarning:
    """A signal above its limit.

    Attributes:
        signal: Name of the signal.
        measured: Its value.
        limit: What it went over.
        updates: Updates in the model at the time.
    """

    signal: str
    measured: float
    limit: float
    updates: int

    def __str__(self) -> str:
        return (
            f"after {self.updates} update(s) {self.signal} is {self.measured:.3g}, above {self.limit:.3g} "
            f"({_WORDS[self.signal]}): the model is about to lose what it knew; take updates back, or edit in one "
            "batch with a method that preserves earlier edits (--method emendo)"
        )


class CollapseMonitor:
    """Watches one session.

    Args:
        session: Holds the model.
        config: Its `monitor` section has the limits, its `canaries` section the prompts; None takes the packaged one.

    Attributes:
        history: What was seen at each call of `observe`.

    Raises:
        GateConfigError: A canary file cannot be used.
        InputError: The configuration's monitor looks at nothing.
    """

    @checked
    def __init__(self, session: EditSession, config: GateConfig | None = None) -> None:
        self._session = session
        config = config or default_config()
        self.limits = config.monitor.limits()
        if not self.limits:
            raise InputError(
                "the [monitor] section of this configuration names no limit, so nothing would be watched; "
                "`emendo gate --print-default` shows one"
            )
        self.history: list[Signals] = []
        self._meter = WeightMeter(session)
        self._facts = FactIndex(session.lm)
        self._canaries: CanarySet | None = None
        if {"canary_kl_mean", "canary_flips"} & set(self.limits):
            self._canaries = read_canaries(config.canaries.files, config.folder)
            with session.preview_base() as lm:
                self._base = next_token_log_probs(lm, self._canaries.prompts)

    @checked
    def observe(self, edit: Plan | ModelUpdate) -> list[CollapseWarning]:
        """Look at the model after an update; call it right after it was applied.

        Args:
            edit: What was applied last, a plan or its update.

        Returns:
            A warning for each signal above its limit.

        Raises:
            InputError: The update is not the last one in the session.
        """
        update = edit.update if isinstance(edit, Plan) else edit
        if self._session.applied_ids[-1:] != (update.id,):
            raise InputError(
                "this update is not the last one in the session; call session.apply(plan.update) before observe(plan)"
            )
        signals = self._signals(edit)
        self.history.append(signals)
        values = signals.to_dict()
        return [
            CollapseWarning(name, values[name], limit, signals.updates)
            for name, limit in self.limits.items()
            # Not "above": what is not a number is no sign of health either.
            if values[name] is not None and not values[name] <= limit
        ]

    def _signals(self, edit: Plan | ModelUpdate) -> Signals:
        applied = self._session.applied_updates
        settings = pricing(edit)[0] if "relative_cost" in self.limits else None
        changes = self._meter.changes(applied, settings)
        kl, flips = self._canary_shift()
        return Signals(
            updates=len(applied),
            norm_growth=_largest([change.norm_growth for change in changes]),
            relative_cost=_largest([change.relative_cost for change in changes]),
            interference=self._interference(),
            canary_kl_mean=kl,
            canary_flips=flips,
        )

    def _interference(self) -> float | None:
        """What the last update did to what those before it had written, in the worst layer.

        Not at keys that it wrote again with a value that keeps their facts (``target.shared=key``).
        """
        (*before, last), ids = self._session.applied_updates, self._session.applied_ids
        earlier = {part.layer: part for part in merge_layers([part for update in before for part in update.layers])}
        if last.info.get("method", {}).get("settings", {}).get("target.shared") == "key":
            facts = self._facts.of(before, ids[:-1])
            written = self._facts.keys_of(last, ids[-1])
            for layer, part in earlier.items():
                if part.keys is not None and (rows := facts.replaced(layer, written)):
                    earlier[layer] = replace(part, keys=rows_without(part.keys, rows))
        lm = self._session.lm
        reports = [trained_layer_report(part, lm.weight(part.layer), earlier.get(part.layer)) for part in last.layers]
        return _largest([report.interference for report in reports])

    def _canary_shift(self) -> tuple[float | None, float | None]:
        if self._canaries is None:
            return None, None
        try:
            now = next_token_log_probs(self._session.lm, self._canaries.prompts)
            shift = measure_drift(self._base, now, n_resamples=1)
        except NumericalError:  # nothing finite is left to compare: all of it is lost
            return math.inf, 1.0
        return shift.mean, shift.flips


def _largest(values: list[float | None]) -> float | None:
    """The largest of those that are known; what is not a number counts as the largest."""
    known = [value for value in values if value is not None]
    return max(known, key=lambda value: math.inf if math.isnan(value) else value, default=None)
