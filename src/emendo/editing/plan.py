"""What planning an edit gives: the update, how it was found, and what it does to each layer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch

from emendo.editing.value_search import SearchTrace
from emendo.io.html_table import html_table
from emendo.methods import Method, ResolvedMethod
from emendo.models import EditableModel
from emendo.requests import AnyContext, EditRequest, is_question
from emendo.shapes import Moment, Weight
from emendo.solve import (
    BlockMoment,
    SolveStats,
    drift_over_price,
    frobenius_norm,
    output_power,
    preservation_cost,
    retained_in_all,
)
from emendo.updates.rounding import at, kept_of, rounding
from emendo.updates.update import LayerUpdate, ModelUpdate


@dataclass(frozen=True)
class LayerReport:
    """What an edit does to one layer.

    Attributes:
        layer: Index of the block.
        solves: Figures of each solve, one a batch; none for a baseline.
        update_norm: ‖ΔW‖_F.
        relative_norm: ‖ΔW‖_F / ‖W‖_F.
        relative_cost: tr(ΔW C ΔWᵀ) / tr(W C Wᵀ), W unedited: mean squared change of the layer's output on preserved
            keys, relative to the output's own mean square; None for a baseline, which collects no C.
        achieved: Part of the wanted residuals that the finished update, rounded to the model's dtype, gives at its own
            keys, each request weighed by what it wanted (its squared residual); 1 is all. None for a baseline, which
            has no keys, and where nothing was wanted.
        interference: Change of what earlier edits had written at their keys, relative to it, root mean square, also at
            keys that are written again; None where there is nothing or their keys are not known.
        kept: What rounding to the model's dtype leaves of the update: at the key where it leaves least, or of ΔW itself
            where there are no keys; 1 is all. None in float32 and finer, where it is not known, or the update is zero.
        experts: Experts of the layer; None where it is dense.
        experts_written: Those that the update changes.
        drift_over_price: What the update really changes on preserved keys over what the experts' blocks price it at,
            which `relative_cost` is (`solve.drift_over_price`).
    """

    layer: int
    solves: tuple[SolveStats, ...]
    update_norm: float
    relative_norm: float
    relative_cost: float | None
    achieved: float | None
    interference: float | None
    kept: float | None = None
    experts: int | None = None
    experts_written: int | None = None
    drift_over_price: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a dense layer says nothing of experts."""
        known = asdict(self) | {"solves": [asdict(solved) for solved in self.solves]}
        routed = ("experts", "experts_written", "drift_over_price")
        return known if self.experts is not None else {name: known[name] for name in known if name not in routed}


_SHOWN = 3
"""Facts that the short form of a plan names."""

_NAMED = 5
"""Facts that a warning names."""


@dataclass(frozen=True)
class Plan:
    """An edit that has been worked out and not yet applied.

    Attributes:
        update: The factors, with everything below recorded in its `info`.
        requests: The facts to write.
        method: The method or baseline with every value fixed.
        contexts: The prefix contexts that were used; none for a baseline.
        targets: What the target search did, one entry a request (and searched layer, where there are several);
            none for a baseline, whose training is in the update's `info`.
        layers: What the edit does to each layer.
        seconds: Wall time by stage.
        warnings: What the user should know before applying it, a sentence each: facts whose target the search
            or the training did not reach.
    """

    OBTAINED_BY: ClassVar[str] = "session.plan(requests)"

    update: ModelUpdate
    requests: tuple[EditRequest, ...]
    method: ResolvedMethod[Method]
    contexts: tuple[AnyContext, ...]
    targets: tuple[SearchTrace, ...]
    layers: tuple[LayerReport, ...]
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        facts = "; ".join(f"{request.text} → {request.target}" for request in self.requests[:_SHOWN])
        more = f" and {len(self.requests) - _SHOWN} more" if len(self.requests) > _SHOWN else ""
        count = f"{len(self.requests)} request(s)"
        return f"<Plan by {self.method.config.name}, {count}: {facts:.200}{more}; {self.update!r}>"

    def _repr_html_(self) -> str:
        facts = ((request.text, request.target) for request in self.requests)
        layers = ((layer.layer, f"{layer.update_norm:.3f}", f"{layer.relative_norm:.4f}") for layer in self.layers)
        return html_table(f"Plan by {self.method.config.name}", ("prompt", "target"), facts) + html_table(
            "Layers", ("layer", "‖ΔW‖", "‖ΔW‖/‖W‖"), layers
        )


def unreached_warning(found: Iterable[tuple[EditRequest, float, bool]], who: str, remedy: str) -> tuple[str, ...]:
    """A sentence that names the facts whose target is not what the model would say with what was found for it.

    Args:
        found: Each fact with the negative log-likelihood of its target then, in nats a token, and whether the target
            was the most likely text; a fact has several entries where several layers were searched.
        who: What looked for it.
        remedy: What to try, after "Try".

    Returns:
        The sentence, or nothing where all were reached.
    """
    missed = {
        request.fact: f"{request.text!r} → {request.target!r} ({nll:.2f} nats a token)"
        for request, nll, reached in found
        if not reached
    }
    if not missed:
        return ()
    told = "; ".join(list(missed.values())[:_NAMED])
    more = f" and {len(missed) - _NAMED} more" if len(missed) > _NAMED else ""
    return (
        f"{who} did not reach {len(missed)} target(s), which the model will probably not say: {told}{more}. "
        f"Try {remedy}.",
    )


def question_warning(lm: EditableModel, requests: Sequence[EditRequest]) -> tuple[str, ...]:
    """A sentence on texts that end in a question mark, where the model could be asked them in chat.

    Args:
        lm: The model.
        requests: The facts to write.
    """
    found = [request for request in requests if request.chat is None and is_question(request.prompt)]
    if not found or not lm.has_chat_template:
        return ()
    one = found[0]
    form = {"question": one.prompt, "subject": one.subject, "answer": one.target}
    return (
        f"{len(found)} prompt(s) end in a question mark, such as {one.text!r}: the answer is written as the text that "
        f"follows it. To ask it in chat, give it as {json.dumps(form, ensure_ascii=False)}, or --chat.",
    )


def layer_report(
    finished: LayerUpdate,
    solved: LayerUpdate,
    stats: Sequence[SolveStats],
    moment: Moment | BlockMoment,
    weight: Weight,
    earlier: LayerUpdate | None,
    *,
    dtype: torch.dtype,
    power: float | None = None,
) -> LayerReport:
    """Measure the finished update of a layer, made by a method.

    Args:
        finished: The update that will be applied.
        solved: The same before any post-step: one row for each key.
        stats: Figures of its solves.
        moment: C, the mean second moment of the layer's preserved keys.
        weight: The weight that the update is added to, in float32 or better.
        earlier: Sum of the updates already in the model.
        dtype: Of the model's weight.
        power: tr(W C Wᵀ) of the weight that the cost is relative to, which is as much work as a factorisation of C;
            None: it is worked out for `weight`.
    """
    # Factors are small and C is not: they go to its device rather than it to theirs.
    finished, solved = finished.to(weight.device), solved.to(weight.device)
    earlier = None if earlier is None else earlier.to(weight.device)
    cost = preservation_cost(finished.residuals, finished.dual_keys, moment)
    assert solved.keys is not None  # made by a solve
    achieved = retained_in_all((finished.residuals, finished.dual_keys), solved.keys, solved.residuals)
    lost = rounding(weight, finished, dtype)
    if achieved is not None:
        wanted = solved.residuals.double()
        achieved += float((at(lost, solved.keys) * wanted).sum() / wanted.square().sum())
    return replace(
        trained_layer_report(finished, weight, earlier),
        **_of_experts(finished, moment),
        kept=kept_of(finished, lost, solved.keys, dtype),
        solves=tuple(stats),
        relative_cost=cost / (output_power(weight, moment) if power is None else power),
        achieved=achieved,
    )


def _of_experts(update: LayerUpdate, moment: Moment | BlockMoment) -> dict[str, Any]:
    """What a report says of a mixture of experts; nothing of a dense layer."""
    if not isinstance(moment, BlockMoment):
        return {}
    return {
        "experts": moment.experts,
        "experts_written": moment.written(update.dual_keys),
        "drift_over_price": drift_over_price(update.residuals, update.dual_keys, moment),
    }


def trained_layer_report(
    update: LayerUpdate, weight: Weight, earlier: LayerUpdate | None, *, dtype: torch.dtype | None = None
) -> LayerReport:
    """Measure what is known of any update of a layer, such as a baseline's: no solve, no C, no keys.

    Args:
        update: The update that will be applied.
        weight: The weight that the update is added to, in float32 or better.
        earlier: Sum of the updates already in the model.
        dtype: Of the model's weight; None leaves out what rounding to it keeps.
    """
    norm = frobenius_norm(update.residuals, update.dual_keys)
    return LayerReport(
        layer=update.layer,
        solves=(),
        update_norm=norm,
        relative_norm=norm / float(torch.linalg.vector_norm(weight, dtype=torch.float64)),
        relative_cost=None,
        achieved=None,
        interference=None if earlier is None else _interference(update, earlier),
        kept=None if dtype is None else kept_of(update, rounding(weight, update, dtype), None, dtype),
    )


def _interference(update: LayerUpdate, earlier: LayerUpdate) -> float | None:
    if earlier.keys is None or not len(earlier.keys):
        return None
    before = earlier.at(earlier.keys)
    size = float(before.norm())
    return float(update.at(earlier.keys).norm()) / size if size else None
