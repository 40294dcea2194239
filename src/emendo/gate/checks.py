"""The checks: what each one reads off two snapshots of the model, and how its number is compared with its limit.

A measurement gives a number, or says in words why there is none; `judge` alone decides whether it passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from emendo.evaluate import Snapshot
from emendo.evaluate.said_probes import SaidProbe
from emendo.gate.canary_checks import (
    canary_flips,
    canary_kl_mean,
    canary_kl_p99,
    canary_moved,
    flips,
    text_firing,
    text_flips,
    text_kl,
    text_perplexity,
    text_token,
)
from emendo.gate.evidence import SHOWN, Evidence, Measurement, share_of
from emendo.gate.report import Check
from emendo.gate.sections import GATE_CHECKS, CheckConfig, MovedConfig, ShareConfig, SuccessConfig

AT_LEAST = ("efficacy", "paraphrase", "questions")
"""Checks of Emendo whose limit is the smallest value that passes; of its others it is the largest."""


def is_at_least(name: str) -> bool:
    """Whether the limit of a check is the smallest value that passes."""
    return name in AT_LEAST or (name in GATE_CHECKS and GATE_CHECKS[name].at_least)


def measure(name: str, config: CheckConfig, evidence: Evidence) -> Measurement:
    """The measurement of one check.

    Args:
        name: Of the check.
        config: Its section of the configuration.
        evidence: What was seen.
    """
    if name in GATE_CHECKS:
        return GATE_CHECKS[name].measure(evidence)
    if name in ("efficacy", "paraphrase"):
        assert isinstance(config, SuccessConfig)
        return _success(name, config, evidence)
    if isinstance(config, MovedConfig):
        return canary_moved(config, evidence)
    return _MEASURES[name](evidence)


def judge(name: str, config: CheckConfig, found: Measurement, facts: int = 1) -> Check:
    """Hold a measurement against its limit.

    Args:
        name: Of the check.
        config: Its section of the configuration.
        found: The measurement.
        facts: How many facts the judged updates write together.
    """
    at_least, limit = is_at_least(name), config.limit_for(facts)
    judged = _judged(config, found, at_least)
    if judged is None:
        passed, words = config.unmeasured == "pass", f"not measured: {found.words}"
    else:
        # A number that is not one fails: every comparison with it is false.
        passed = judged >= limit if at_least else judged <= limit
        expected = f"expected at {'least' if at_least else 'most'} {limit:.4g}"
        expected += f" for {facts} facts" if limit != config.limit else ""
        # A share or ratio that fails by its fourth digit would read "off by 0" in fixed places.
        words = f"{_told(config, found, judged)}; {expected}"
        words += "" if passed else f", off by {abs(judged - limit):.3g}"
    return Check(name, found.value, found.interval, judged, limit, at_least, passed, found.n, words, found.details)


def broken(name: str, config: CheckConfig, why: str, facts: int = 1) -> Check:
    """The check of an edit that leaves the model without finite numbers: it fails, whatever the limit.

    Args:
        name: Of the check.
        config: Its section of the configuration.
        why: What went wrong.
        facts: How many facts the judged updates write together.
    """
    limit = config.limit_for(facts)
    return Check(name, None, None, None, limit, is_at_least(name), False, 0, f"the edit breaks the model: {why}")


def _judged(config: CheckConfig, found: Measurement, at_least: bool) -> float | None:
    """The number that is compared with the limit."""
    if not isinstance(config, ShareConfig) or config.judge == "estimate" or found.interval is None:
        return found.value
    low, high = found.interval
    return low if (config.judge == "worst_end") == at_least else high


def _told(config: CheckConfig, found: Measurement, judged: float) -> str:
    """The finding and its number."""
    if found.whole:
        return found.words
    if isinstance(config, ShareConfig) and judged != found.value:
        end = config.judge.replace("_", " ")
        return f"{found.value:.4g}, of its interval the {end} {judged:.4g}, {found.words}"
    return f"{judged:.4g} {found.words}"


# ---- what the edit is for --------------------------------------------------------------------------------------


def _success(name: str, config: SuccessConfig, evidence: Evidence) -> Measurement:
    """Share of requests, or of paraphrases, that give the new target."""
    if not evidence.after.records:
        return Measurement(None, 0, "there is no record of what was edited (--requests FILE)")
    of_edit = name == "efficacy"
    outcomes = _outcomes(config, evidence.after, of_edit)
    known = [(missed, hit) for missed, hit in outcomes if hit is not None]
    if not outcomes:
        return Measurement(None, 0, "no record has paraphrase_prompts (--requests FILE)")
    if not known:
        return Measurement(None, 0, 'no record names target_true, which "beats_true" compares with')
    words = f"of {len(known)} {'requests' if of_edit else 'paraphrases'} {_SUCCESS[config.success]}"
    left = len(outcomes) - len(known)
    words += f", {left} without target_true left out" if left else ""
    missed = [detail for detail, hit in known if not hit]
    return share_of(len(known) - len(missed), len(known), words, missed[:SHOWN])


_SUCCESS = {
    "argmax": 'give the new target at every token (success = "argmax")',
    "beats_true": 'prefer the new target (success = "beats_true")',
    "generated": 'say the new target (success = "generated")',
}


def _outcomes(config: SuccessConfig, after: Snapshot, of_edit: bool) -> list[tuple[dict[str, Any], bool | None]]:
    """Every prompt that should give the new target, and whether it does; None where that cannot be said."""
    if config.success == "generated":
        said = [[record.edited] if of_edit else record.paraphrase for record in after.said]
        rows = zip(after.records, said, strict=True)
        return [
            ({"prompt": prompt.prompt, "says": prompt.text, "target": record.request.target}, prompt.hit)
            for record, row in rows
            for prompt in row
        ]
    scores = [score for record in after.scored for score in (record.efficacy if of_edit else record.paraphrase)]
    if config.success == "argmax":
        return [({"prompt": score.prompt}, score.target.argmax) for score in scores]
    return [
        (
            {"prompt": score.prompt},
            None if score.target_true is None else score.target.nll < score.target_true.nll,
        )
        for score in scores
    ]


# ---- what the edit should leave alone --------------------------------------------------------------------------


def _neighborhood_flips(evidence: Evidence) -> Measurement:
    before, after = evidence.before.untouched, evidence.after.untouched
    if before is None or after is None:
        return Measurement(None, 0, _NO_NEIGHBOR)
    return flips(evidence.lm, before, after, "neighbors")


_NO_NEIGHBOR = "no record has neighborhood_prompts or localities (emendo requests expand FILE proposes some)"


def _neighborhood_lost(evidence: Evidence) -> Measurement:
    if not evidence.after.records:
        return Measurement(None, 0, "there is no record of what was edited (--requests FILE)")
    pairs = [
        (old, new)
        for was, now in zip(evidence.before.scored, evidence.after.scored, strict=True)
        for old, new in zip(was.neighborhood, now.neighborhood, strict=True)
    ]
    held = [(old, new) for old, new in pairs if old.target_true is not None and old.target_true.argmax]
    said = [(old, new) for old, new in _probes(evidence, "locality") if old.hit]
    if not held and not said:
        asked = any(was.neighborhood for was in evidence.before.scored) or _probes(evidence, "locality")
        return Measurement(
            None, 0, "no neighbor was answered rightly before (--requests FILE)" if asked else _NO_NEIGHBOR
        )
    lost: list[dict[str, Any]] = [
        {"prompt": old.prompt} for old, new in held if new.target_true is not None and not new.target_true.argmax
    ]
    lost += [
        {"prompt": new.prompt, "says": new.text, "target": new.wanted, "chat": new.chat}
        for _, new in said
        if not new.hit
    ]
    n = len(held) + len(said)
    each_once = [detail for place, detail in enumerate(lost) if detail not in lost[:place]]  # facts may share one
    return share_of(len(lost), n, f"of {n} neighbors that were answered rightly no longer are", each_once[:SHOWN])


def _probes(evidence: Evidence, kind: str) -> list[tuple[SaidProbe, SaidProbe]]:
    """The probes of a kind before and after."""
    return [
        pair
        for was, now in zip(evidence.before.said_probes, evidence.after.said_probes, strict=True)
        for pair in zip(was, now, strict=True)
        if pair[0].kind == kind
    ]


def _questions(evidence: Evidence) -> Measurement:
    asked = [new for _, new in _probes(evidence, "question")]
    if not asked:
        return Measurement(None, 0, "no record has questions (emendo requests expand FILE proposes some)")
    missed = [{"prompt": one.prompt, "says": one.text} for one in asked if not one.hit]
    words = f"of {len(asked)} questions about the facts are answered with the new target"
    return share_of(len(asked) - len(missed), len(asked), words, missed[:SHOWN])


def _perplexity_ratio(evidence: Evidence) -> Measurement:
    before, after = evidence.before.perplexity(), evidence.after.perplexity()
    ratio = after.value / before.value
    words = f"perplexity of the packaged text {before.value:.2f} → {after.value:.2f} (× {ratio:.4f})"
    return Measurement(ratio, after.predicted_tokens, words, whole=True)


# ---- how far the weights have moved ----------------------------------------------------------------------------


def _norm_growth(evidence: Evidence) -> Measurement:
    if not evidence.layers:
        return Measurement(0.0, 0, "the edit changes no weights", whole=True)
    growth = {change.layer: change.norm_growth for change in evidence.layers}
    worst = _worst(growth)
    words = f"all updates together are {100 * growth[worst]:.2g} % of the weight's norm (layer {worst})"
    details = [{"layer": layer, "norm_growth": value} for layer, value in growth.items()]
    return Measurement(growth[worst], len(growth), words, details=tuple(details), whole=True)


def _relative_cost(evidence: Evidence) -> Measurement:
    if not evidence.layers:
        return Measurement(0.0, 0, "the edit changes no weights", whole=True)
    costs = {change.layer: change.relative_cost for change in evidence.layers}
    priced = {layer: cost for layer, cost in costs.items() if cost is not None}
    if not priced:
        return Measurement(None, 0, evidence.unpriced)
    worst = _worst(priced)
    words = f"relative change of the layer's output on ordinary text {priced[worst]:.3g} (layer {worst})"
    details = [{"layer": layer, "relative_cost": cost} for layer, cost in priced.items()]
    return Measurement(priced[worst], len(priced), words, details=tuple(details), whole=True)


def _worst(values: Mapping[int, float]) -> int:
    """The layer of the largest value; NaN is never the largest of several, and would be hidden by a sound layer."""
    return max(values, key=lambda layer: math.inf if math.isnan(values[layer]) else values[layer])


_MEASURES: dict[str, Callable[[Evidence], Measurement]] = {
    "questions": _questions,
    "neighborhood_flips": _neighborhood_flips,
    "neighborhood_lost": _neighborhood_lost,
    "canary_kl_mean": canary_kl_mean,
    "canary_kl_p99": canary_kl_p99,
    "canary_flips": canary_flips,
    "text_perplexity": text_perplexity,
    "text_kl": text_kl,
    "text_flips": text_flips,
    "text_token": text_token,
    "text_firing": text_firing,
    "perplexity_ratio": _perplexity_ratio,
    "norm_growth": _norm_growth,
    "relative_cost": _relative_cost,
}
