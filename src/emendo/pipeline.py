"""The readable core: from requests to an update, leaving the model as it was.

For each batch of requests (all at once, or one by one for ROME):

1. search the target values v* at the last edited layer (`activations.targets`);
2. for each edited layer, ascending: read the keys K there and what is still missing at the last layer, take the
   layer's share R of it (`distribution`), solve for the dual keys Q (`solve`), and write ΔW = RᵀQ so that the next
   layer sees it;
3. put every weight back, and return the factors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.activations.keys import current_values, extract_keys
from emendo.activations.targets import TargetTrace, find_targets
from emendo.distribution import share
from emendo.errors import NumericalError
from emendo.methods import MethodConfig, ResolvedMethod
from emendo.models import ModelAdapter
from emendo.progress import Progress, Silent
from emendo.requests import EditRequest, check_requests
from emendo.shapes import Weight
from emendo.solve import PreparedLayer, SolveStats, frobenius_norm, key_tolerance, preservation_cost, solve
from emendo.text import prefix_contexts
from emendo.update import LayerUpdate, ModelUpdate, merge_layers


@dataclass(frozen=True)
class LayerReport:
    """What an edit does to one layer.

    Attributes:
        layer: Index of the block.
        solves: Figures of each solve, one a batch.
        update_norm: ‖ΔW‖_F.
        relative_norm: ‖ΔW‖_F / ‖W‖_F.
        relative_cost: tr(ΔW C ΔWᵀ) / tr(W C Wᵀ): mean squared change of the layer's output on preserved keys,
            relative to the output's own mean square.
    """

    layer: int
    solves: tuple[SolveStats, ...]
    update_norm: float
    relative_norm: float
    relative_cost: float


@dataclass(frozen=True)
class Plan:
    """An edit that has been worked out and not yet applied.

    Attributes:
        update: The factors, with everything below recorded in its `info`.
        requests: The facts to write.
        method: The method with every value fixed.
        contexts: The prefix contexts that were used.
        targets: What the target search did, one entry a request.
        layers: What the edit does to each layer.
        seconds: Wall time by stage.
    """

    update: ModelUpdate
    requests: tuple[EditRequest, ...]
    method: ResolvedMethod
    contexts: tuple[str, ...]
    targets: tuple[TargetTrace, ...]
    layers: tuple[LayerReport, ...]
    seconds: dict[str, float]


def plan_edit(
    adapter: ModelAdapter,
    requests: Sequence[EditRequest],
    method: ResolvedMethod,
    prepared: Mapping[int, PreparedLayer],
    *,
    seed: int = 0,
    base: Mapping[str, str] | None = None,
    preceding: Sequence[str] = (),
    weights: Mapping[int, Weight] | None = None,
    record: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Work out an update; the model is left unchanged, also after any error.

    Args:
        adapter: The model, in the state that the update is to be added to.
        requests: The facts to write.
        method: How, with every value fixed for this model.
        prepared: The factorised preservation metric of each edited layer.
        seed: Of the sampled contexts.
        base: Identity of the base model, stored with the update.
        preceding: Identities of updates already applied to the model, stored with the update.
        weights: Present weights in float32 or better, where more is known of them than the model's dtype holds.
        record: More JSON values to store with the update.
        progress: Told about the stages.

    Raises:
        RequestError: No request, or repeated or contradicting ones.
        InfeasibleError: Equality was asked of keys that cannot hold it; names the requests.
        NumericalError: Something is not finite.
    """
    check_requests(requests)
    progress, watch, config = progress or Silent(), _Watch(), method.config
    with watch("contexts"):
        contexts = prefix_contexts(adapter, config.contexts.scheme, seed)
    batches = [list(requests)] if config.batching == "joint" else [[request] for request in requests]
    parts: list[LayerUpdate] = []
    traces: list[TargetTrace] = []
    stats: dict[int, list[SolveStats]] = {layer: [] for layer in config.layers}
    exact = {layer: (weights or {}).get(layer, adapter.weight(layer)) for layer in config.layers}
    exact = {
        layer: weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True) for layer, weight in exact.items()
    }
    # Many batches are one stage, in requests; a single one shows its own stages.
    inner = progress if len(batches) == 1 else Silent()
    if len(batches) > 1:
        progress.start("edits", len(requests))
    with adapter.preserved(config.layers):
        for batch in batches:
            with watch("targets"):
                targets = find_targets(adapter, batch, contexts, config.layers[-1], config.target, inner)
            traces += targets.traces
            with watch("keys and solve"):
                for part, solved in _write_batch(
                    adapter, batch, contexts, config, targets.value, prepared, exact, inner
                ):
                    parts.append(part)
                    stats[part.layer].append(solved)
            if len(batches) > 1:
                progress.advance(len(batch))
    if len(batches) > 1:
        progress.finish()
    layers = merge_layers(parts)
    with watch("measures"):
        reports = tuple(_report(adapter, update, prepared[update.layer], stats[update.layer]) for update in layers)
    info = {
        "requests": [request.to_dict() for request in requests],
        "method": method.to_dict(),
        "seed": seed,
        "contexts": list(contexts),
        "targets": [_trace_to_dict(trace) for trace in traces],
        "layers": [asdict(report) | {"solves": [asdict(solved) for solved in report.solves]} for report in reports],
        **(record or {}),
    }
    update = ModelUpdate(layers, dict(base or {}), tuple(preceding), info)
    return Plan(update, tuple(requests), method, contexts, tuple(traces), reports, watch.seconds)


def _write_batch(
    adapter: ModelAdapter,
    batch: Sequence[EditRequest],
    contexts: Sequence[str],
    config: MethodConfig,
    target: Float[Tensor, "n d_model"],
    prepared: Mapping[int, PreparedLayer],
    exact: dict[int, Weight],
    progress: Progress,
) -> Iterator[tuple[LayerUpdate, SolveStats]]:
    """Write one batch into the model layer by layer, yielding each layer's factors.

    `exact` holds the weights before rounding to the model's dtype, and is kept up to date.
    """
    last = config.layers[-1]
    labels = [request.label for request in batch]
    progress.start("solve", len(config.layers))
    try:
        for position, layer in enumerate(config.layers):
            keys = extract_keys(adapter, batch, contexts, layer, config.keys.average)
            present = current_values(adapter, batch, contexts, last, config.target.site, config.keys)
            residuals = (target - present) * share(config.distribution, position, len(config.layers))
            solution = solve(
                prepared[layer],
                keys.mean,
                s=config.memorization.strength(len(batch)),
                constraint_keys=keys.plain if config.keys.constraint == "plain" else None,
                labels=labels,
                tolerance=key_tolerance(adapter.dtype),
            )
            part = LayerUpdate(
                layer=layer,
                module=adapter.module_name(layer),
                residuals=residuals.float().cpu(),
                dual_keys=solution.dual_keys.float().cpu(),
            )
            if not (part.residuals.isfinite().all() and part.dual_keys.isfinite().all()):
                raise NumericalError(
                    f"the update of layer {layer} is not finite; expected finite factors. Load the model with "
                    "--dtype float32, or use more tokens for the second moment (--set moments.multiple=20)"
                )
            exact[layer] += part.delta().to(exact[layer].device)
            adapter.write(layer, exact[layer])
            yield part, solution.stats
            progress.advance()
    finally:
        progress.finish()


def _report(
    adapter: ModelAdapter, update: LayerUpdate, prepared: PreparedLayer, stats: Sequence[SolveStats]
) -> LayerReport:
    weight = adapter.weight(update.layer).double()
    moment = prepared.moment.to(weight)
    norm = frobenius_norm(update.residuals, update.dual_keys)
    cost = preservation_cost(update.residuals, update.dual_keys, prepared.moment)
    return LayerReport(
        layer=update.layer,
        solves=tuple(stats),
        update_norm=norm,
        relative_norm=norm / float(weight.norm()),
        relative_cost=cost / float(((weight @ moment) * weight).sum()),
    )


def _trace_to_dict(trace: TargetTrace) -> dict[str, Any]:
    """A trace without its loss path, which is long and can be had from the plan."""
    row = asdict(trace)
    row["evaluations"] = len(row.pop("losses"))
    return row


class _Watch:
    """Adds up wall time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin
