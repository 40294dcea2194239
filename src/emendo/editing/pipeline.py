"""The readable core: from requests to an update, leaving the model as it was.

Requests with one key are one edit with one value (`editing.sharing`). For each batch of edits (all at once, or one
by one for ROME):

1. read the keys K, and refuse those that the method cannot hold before anything is searched;
2. search the target values v* (`editing.value_search`) at the layers that the distribution aims at;
3. for each step of the distribution, ascending: read the keys K of the step's layer and what is still missing at the
   layer that it aims at, take the layer's share R of it (`solve.distribution`), solve for the dual keys Q (`solve`),
   and write ΔW = RᵀQ so that the next layer sees it;
4. where the method keeps a history, make the written keys part of what the next batch preserves.

All of it happens in an isolated model with its own weights in those layers (`models.isolation`). Then the post-step
shapes each layer's sum, and the factors are returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from emendo.editing.contexts import prefix_contexts
from emendo.editing.edit_run import Batch, EditRun, Found, Remembering
from emendo.editing.keys import current_values
from emendo.editing.plan import Plan, question_warning, unreached_warning
from emendo.editing.sharing import EarlierFacts, key_tokens, refuse_contradictions, share_groups
from emendo.editing.strength import little_written_warning
from emendo.editing.value_cache import ValueCache
from emendo.editing.value_search import SearchTrace
from emendo.methods import MethodConfig, ResolvedMethod
from emendo.methods.settings import KeySettings
from emendo.models import EditableModel
from emendo.progress import Progress, Silent
from emendo.requests import SLOT, AnyContext, EditRequest, check_requests, context_record
from emendo.shapes import Weight
from emendo.solve import PreparedLayer
from emendo.solve.distribution import searched_layers
from emendo.updates.predecessors import UNEDITED, Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate, merge_layers


def plan_edit(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    method: ResolvedMethod[MethodConfig],
    prepared: Mapping[int, PreparedLayer],
    *,
    seed: int = 0,
    contexts_of: Callable[[str], tuple[AnyContext, ...]] | None = None,
    base: Mapping[str, str] | None = None,
    preceding: Predecessors = UNEDITED,
    earlier: Sequence[LayerUpdate] = (),
    facts: EarlierFacts | None = None,
    weights: Mapping[int, Weight] | None = None,
    powers: Mapping[int, float] | None = None,
    anchors: Mapping[int, Float[Tensor, " n"]] | None = None,
    remembering: Remembering | None = None,
    targets: ValueCache | None = None,
    record: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Work out an update; nothing is written to the model, and others may run it meanwhile.

    Args:
        lm: The model, in the state that the update is to be added to.
        requests: The facts to write.
        method: How, with every value fixed for this model.
        prepared: The factorised preservation metric of each written layer, without history.
        seed: Of the sampled contexts.
        contexts_of: Gives the contexts of a scheme, where they are known already; None samples them.
        base: Identity of the base model, stored with the update.
        preceding: The updates already applied to the model, as the update names them.
        earlier: Sum of the updates already applied, one entry a layer: the method's history.
        facts: What those updates have written, by key. Where requests with one key share a value
            (``target.shared=key``), it is searched for the earlier facts under their keys too, and the earlier keys,
            whose value it replaces, are no part of the history any more.
        weights: Present weights in float32 or better, where more is known of them than the model's dtype holds.
        powers: tr(W₀ C W₀ᵀ) of the unedited weights, which the reports are relative to; None: that of the present ones.
        anchors: Norms that a method with `target.norm_anchor` gives to the target values, by searched layer; None:
            those that the model has now.
        remembering: Gives the metric of a layer with the keys of the updates already applied; None: makes it.
        targets: Remembered searches on the unedited model, which the model must hold then. They are used where the
            whole plan searches on it: a joint batch, or a single request. Searches of many batches, one after another,
            are remembered with what was written before each.
        record: More JSON values to store with the update.
        progress: Told about the stages.

    Raises:
        RequestError: No request, or repeated or contradicting ones.
        InfeasibleError: Equality was asked of keys that cannot hold it, which is known before the search; names the
            requests.
        InputError: The method needs the keys of earlier updates and they are not known.
        NumericalError: Something is not finite.
    """
    check_requests(requests)
    progress, watch, config = progress or Silent(), _Watch(), method.config
    with watch("contexts"):
        scheme = config.contexts.scheme
        contexts = prefix_contexts(lm, scheme, seed) if contexts_of is None else contexts_of(scheme)
    if config.target.norm_anchor and anchors is None:
        anchors = reference_norms(lm, requests, config)
    groups = share_groups(lm, requests, config.target.shared)
    refuse_contradictions(lm, requests, groups)
    parts = [groups] if config.batching == "joint" else [[group] for group in groups]
    batches = [Batch.of(requests, part) for part in parts]
    # Many batches are one stage, in requests; a single one shows its own stages.
    inner = progress if len(batches) == 1 else Silent()
    if len(batches) > 1:
        progress.start("edits", len(requests))
    facts = facts if facts is not None and config.target.shared == "key" else EarlierFacts()
    with lm.isolated(config.written_layers) as own:
        run = EditRun(own, method, contexts, prepared, earlier, weights or {}, powers, remembering)
        left_out = run.leave_out(facts, {key_tokens(lm, request) for request in requests} if facts.facts else ())
        # The second of many batches is searched on the model that holds the first.
        if targets is not None and targets.serves(requests):
            if len(batches) == 1:
                run.search_values = targets.find
            elif targets.folder is not None:
                run.search_values = partial(targets.find_after, run.parts)
        for batch in batches:
            norms = {layer: found[batch.positions] for layer, found in (anchors or {}).items()}
            with watch("keys and solve"):
                run.read_keys(batch)
            with watch("targets"):
                aims = run.search(batch, norms, facts.kept(lm, batch.requests), inner)
            with watch("keys and solve"):
                run.write(batch, aims, inner)
            if len(batches) > 1:
                progress.advance(len(batch.requests))
    if len(batches) > 1:
        progress.finish()
    place = {request: position for position, request in enumerate(requests)}
    if config.batching == "one_by_one":  # a group is written where its first request stands
        run.found.sort(key=lambda found: place[found.request])
    with watch("measures"):
        solved = merge_layers(run.parts)
        layers = tuple(run.finish(update) for update in solved)
        reports = tuple(run.report(update, before) for update, before in zip(layers, solved, strict=True))
    info = {
        "requests": [request.to_dict() for request in requests],
        "method": method.to_dict(),
        "seed": seed,
        "contexts": context_record(contexts),
        "targets": [_trace_to_dict(found.layer, found.trace) for found in run.found],
        "layers": [report.to_dict() for report in reports],
        **_shared_record(groups, run.kept, left_out),
        **(record or {}),
    }
    update = ModelUpdate(layers, dict(base or {}), preceding, info)
    traces = tuple(found.trace for found in run.found)
    search = config.target
    warnings = unreached_warning(
        [(found.request, found.trace.nll, found.trace.argmax) for found in (*run.found, *run.kept)],
        "The search",
        f"more steps (--set target.steps={2 * search.steps}) or a larger clamp (--set target.max_norm_ratio="
        f"{2 * search.max_norm_ratio:g})",
    )
    warnings += little_written_warning(config, [solved for report in reports for solved in report.solves])
    warnings += question_warning(lm, requests)
    return Plan(update, tuple(requests), method, contexts, traces, reports, watch.seconds, warnings)


def reference_norms(
    lm: EditableModel, requests: Sequence[EditRequest], config: MethodConfig
) -> dict[int, Float[Tensor, " n"]]:
    """‖v₀‖ of every request at the layers where its target is searched, in the model's present state.

    Args:
        lm: The model; for the norm anchor, unedited.
        requests: The facts, in their plain prompts.
        config: The method.

    Source: NAS (arXiv 2602.02543).
    """
    plain = KeySettings(residual="plain")
    return {
        layer: current_values(lm, requests, [SLOT], layer, config.target.site, plain).norm(dim=1)
        for layer in searched_layers(config.distribution, config.layers)
    }


def _shared_record(
    groups: Sequence[Sequence[int]], kept: Sequence[Found], left_out: Mapping[int, Sequence[int]]
) -> dict[str, Any]:
    """What an update records of requests that share a value; nothing where each has its own."""
    record: dict[str, Any] = {}
    if any(len(group) > 1 for group in groups):
        record["groups"] = [list(group) for group in groups]
    if kept:
        record["kept"] = [{**found.request.to_dict(), **_trace_to_dict(found.layer, found.trace)} for found in kept]
    if left_out:
        record["left_out"] = {str(layer): list(rows) for layer, rows in left_out.items()}
    return record


def _trace_to_dict(layer: int, trace: SearchTrace) -> dict[str, Any]:
    """A trace without its loss path, which is long and can be had from the plan."""
    row = asdict(trace)
    row["evaluations"] = len(row.pop("losses"))
    return {"layer": layer, **row}


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
