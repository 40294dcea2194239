"""Plans of baselines: the same `Plan` that `pipeline.plan_edit` gives, from training instead of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from emendo.editing.baselines.fit import fit_baseline
from emendo.editing.plan import Plan, question_warning, trained_layer_report, unreached_warning
from emendo.methods import BaselineConfig, ResolvedMethod
from emendo.methods.settings import TrainingSettings
from emendo.models import EditableModel
from emendo.progress import Progress
from emendo.requests import EditRecord, EditRequest
from emendo.shapes import Weight
from emendo.updates.predecessors import UNEDITED, Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate

_TOLD = ("name", "source", "deviations", "settings", "layers", "layers_from", "seed")
"""What a trace repeats of the baseline and its settings."""


def plan_baseline(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    baseline: ResolvedMethod[BaselineConfig],
    *,
    seed: int = 0,
    base: Mapping[str, str] | None = None,
    preceding: Predecessors = UNEDITED,
    earlier: Sequence[LayerUpdate] = (),
    weights: Callable[[int], Weight] | None = None,
    record: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Work out a baseline's update; nothing is written to the model, and others may run it meanwhile.

    Args:
        lm: The model, in the state that the update is to be added to.
        requests: The facts to write.
        baseline: Which one, with every value fixed for this model.
        seed: Of LoRA's initial A.
        base: Identity of the base model, stored with the update.
        preceding: The updates already applied to the model, as the update names them.
        earlier: Sum of the updates already applied, one entry a layer.
        weights: Present weight of a layer in float32 or better; None: the model's own. A function, because LoRA
            trains every layer and their copies need not be in memory together.
        record: More JSON values to store with the update.
        progress: Told about the stages.

    Returns:
        The plan. In-context editing changes no weights: its update has no layers.

    Raises:
        RequestError: No request, repeated or contradicting ones, or a fact that cannot be put in context.
        InputError: The baseline cannot run on this model, or a package is missing.
        NumericalError: Something is not finite.
    """
    begin = time.perf_counter()
    baseline.config.evaluation_prompts([EditRecord(request) for request in requests])
    chosen = baseline.layers or None  # a baseline without layers must not be given any
    layers, trace = fit_baseline(lm, requests, baseline.config, layers=chosen, seed=seed, progress=progress)
    trained = time.perf_counter()
    before = {update.layer: update for update in earlier}
    weight = weights or lm.weight
    reports = tuple(
        trained_layer_report(
            update, weight(update.layer), before.get(update.layer), dtype=lm.weight(update.layer).dtype
        )
        for update in layers
    )
    info = {
        "requests": [request.to_dict() for request in requests],
        "method": baseline.to_dict(),
        "seed": seed,
        "contexts": [],
        "targets": [],
        # What the training did; what it was told to do is in "method".
        "training": {name: value for name, value in trace.items() if name not in _TOLD},
        "layers": [report.to_dict() for report in reports],
        **(record or {}),
    }
    update = ModelUpdate(layers, dict(base or {}), preceding, info)
    seconds = {"training": trained - begin, "measures": time.perf_counter() - trained}
    warnings = _warnings(requests, baseline, trace) + question_warning(lm, requests)
    return Plan(update, tuple(requests), baseline, (), (), reports, seconds, warnings)


def _warnings(
    requests: Sequence[EditRequest], baseline: ResolvedMethod[BaselineConfig], trace: Mapping[str, Any]
) -> tuple[str, ...]:
    """The facts that training did not reach; in-context editing trains nothing."""
    own = baseline.config.own
    if not isinstance(own, TrainingSettings):
        return ()
    remedy = f"more steps (--set {own.section}.steps={2 * own.steps})"
    return unreached_warning(zip(requests, trace["nll"], trace["argmax"], strict=True), "The training", remedy)
