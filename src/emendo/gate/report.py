"""What a gate found: each check with its number and its limit, and whether the edit is let in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from emendo.arguments import checked
from emendo.editing.plan import Plan
from emendo.editing.weight_change import LayerChange
from emendo.errors import GateError
from emendo.gate.topics import TokenMove, TopicShift, moved_most
from emendo.io.html_table import html_table
from emendo.updates.update import ModelUpdate

Outcome = Literal["pass", "fail", "not measured, pass", "not measured, fail"]


@dataclass(frozen=True)
class Check:
    """One check of one edit.

    Attributes:
        name: As in the configuration.
        measured: The number; None where it could not be measured.
        interval: 95 % Wilson interval of a share; None for other numbers.
        judged: What was compared with the limit: `measured`, or an end of the interval.
        limit: The last value that passes.
        at_least: Whether the limit is the smallest value that passes; else the largest.
        passed: Whether the edit holds it.
        n: Prompts, requests, tokens or layers behind the number.
        words: The finding in a sentence, or why there is no number.
        details: What it is made of: prompts that failed, the most changed ones, or the layers.
    """

    name: str
    measured: float | None
    interval: tuple[float, float] | None
    judged: float | None
    limit: float
    at_least: bool
    passed: bool
    n: int
    words: str
    details: tuple[Mapping[str, Any], ...] = ()

    @property
    def margin(self) -> float | None:
        """How far the number is inside its limit; below 0, how far outside. None where it was not measured."""
        if self.judged is None:
            return None
        return self.judged - self.limit if self.at_least else self.limit - self.judged

    @property
    def outcome(self) -> Outcome:
        """Passed or failed, and whether that is a measurement."""
        if self.measured is None:
            return "not measured, pass" if self.passed else "not measured, fail"
        return "pass" if self.passed else "fail"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        row = asdict(self) | {"margin": self.margin, "outcome": self.outcome}
        row["interval"] = None if self.interval is None else list(self.interval)
        row["details"] = [dict(detail) for detail in self.details]
        return row


@dataclass(frozen=True)
class GateReport:
    """What a gate found about an edit.

    Attributes:
        checks: Every declared check, in a fixed order.
        not_declared: Checks that the configuration does not make.
        updates: Identities of the judged updates.
        reference: ``"base"`` or ``"current"``: what the edit was compared with.
        layers: How far all updates together have moved each layer.
        kept: By layer, what rounding to the model's dtype leaves of the judged updates; empty for float32.
        rounding: One line where that is a visible loss, with the remedy; empty otherwise.
        topics: What the edit did to each kind of canary text; empty where none was read.
        canaries: SHA-256 of every canary file, by name.
        config: The configuration, as JSON values.
        forced: Whether somebody let a failing edit in.
        seconds: Wall time.
        tokens: The tokens of these texts after which most moved.
    """

    checks: tuple[Check, ...]
    not_declared: tuple[str, ...]
    updates: tuple[str, ...]
    reference: str
    layers: tuple[LayerChange, ...]
    kept: Mapping[int, float]
    rounding: str
    topics: tuple[TopicShift, ...]
    canaries: Mapping[str, str]
    config: Mapping[str, Any]
    forced: bool
    seconds: float
    tokens: tuple[TokenMove, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every declared check passes."""
        return all(check.passed for check in self.checks)

    @property
    def admitted(self) -> bool:
        """Whether the edit may be written: it passes, or it was forced."""
        return self.passed or self.forced

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that fail."""
        return tuple(check for check in self.checks if not check.passed)

    def _repr_html_(self) -> str:
        rows = (
            (
                check.name,
                check.outcome,
                None if check.measured is None else f"{check.measured:.4g}",
                f"{'≥' if check.at_least else '≤'} {check.limit:.4g}",
            )
            for check in self.checks
        )
        outcome = "passed" if self.passed else "overridden" if self.forced else "failed"
        return html_table(f"Gate: {outcome}", ("check", "outcome", "measured", "limit"), rows)

    @property
    def said(self) -> tuple[int, int] | None:
        """Requests that are said, and of how many; None where that was not measured."""
        for check in self.checks:
            if check.name == "efficacy" and check.measured is not None:
                generated = self.config["checks"]["efficacy"]["success"] == "generated"
                return (round(check.measured * check.n), check.n) if generated else None
        return None

    @property
    def misses(self) -> tuple[Mapping[str, Any], ...]:
        """The first requests that are not said: prompt, target and what is said; empty where that was not measured."""
        found = (check.details for check in self.checks if check.name == "efficacy")
        return () if self.said is None else next(found)

    @property
    def neighbors(self) -> tuple[int, int] | None:
        """Neighbors that keep their right answer, and of how many; None where that was not measured."""
        for check in self.checks:
            if check.name == "neighborhood_lost" and check.measured is not None:
                return check.n - round(check.measured * check.n), check.n
        return None

    @property
    def lost(self) -> tuple[Mapping[str, Any], ...]:
        """The first neighbors that are lost and whose answers are known in words, as `misses`."""
        found = (check.details for check in self.checks if check.name == "neighborhood_lost")
        return tuple(detail for detail in next(found, ()) if "says" in detail)

    def summary(self) -> str:
        """Which checks fail and by how much, one a line; or that none does, and which facts are still not said."""
        if self.passed:
            unmeasured = [check.name for check in self.checks if check.measured is None]
            left = f"; not measured: {', '.join(unmeasured)}" if unmeasured else ""
            measured = f"{len(self.checks) - len(unmeasured)} measured" if unmeasured else f"{len(self.checks)}"
            names = ", ".join(repr(miss["prompt"]) for miss in self.misses)
            return f"all {measured} checks of the gate pass{f'; not said: {names}' if names else ''}{left}"
        lines = [f"{len(self.failures)} of {len(self.checks)} checks of the gate fail:"]
        lines += [f"  {check.name}: {check.words}" for check in self.failures]
        return "\n".join([*lines, f"What was judged is what is left: {self.rounding}"] if self.rounding else lines)

    @property
    def moved_most(self) -> str:
        """One line: which kind of text moved most, by how much and where, and after what; empty where none was read."""
        return moved_most(self.topics, self.tokens) if self.topics else ""

    def override(self) -> GateReport:
        """The same report of a failing edit that somebody lets in all the same; of a passing one, itself."""
        return self if self.passed else replace(self, forced=True)

    def require(self) -> None:
        """Raise where the edit may not be written.

        Raises:
            GateError: A check fails and the edit was not forced; says which and by how much.
        """
        if not self.admitted:
            raise GateError(f"{self.summary()}\nNothing was written. To let it in all the same: report.override()")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the same whenever the same edit is measured: no times."""
        return {
            "format": "emendo.gate",
            "version": 1,
            "passed": self.passed,
            "forced": self.forced,
            "reference": self.reference,
            "updates": list(self.updates),
            "checks": [check.to_dict() for check in self.checks],
            "not_declared": list(self.not_declared),
            "layers": [layer.to_dict() for layer in self.layers],
            "kept": {str(layer): share for layer, share in self.kept.items()},
            "rounding": self.rounding,
            "texts": [topic.to_dict() for topic in self.topics],
            "tokens": [asdict(token) for token in self.tokens],
            "moved_most": self.moved_most,
            "canaries": dict(self.canaries),
            "config": dict(self.config),
        }


@checked
def with_report(plan: Plan, report: GateReport) -> Plan:
    """The plan with the report in its update's `info`, under ``"gate"``; the update's identity stays the same."""
    return replace(plan, update=_recorded(plan.update, report))


def _recorded(update: ModelUpdate, report: GateReport) -> ModelUpdate:
    return replace(update, info={**update.info, "gate": report.to_dict()})
