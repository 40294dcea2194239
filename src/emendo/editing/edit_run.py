"""One plan on its way: batches of requests, and what has been written so far.

`pipeline.plan_edit` says in which order: read the keys, search the values, write layer by layer, and finish each
layer's sum by the method's post-step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.editing.keys import EditActivations, EditKeys, forward_values
from emendo.editing.plan import LayerReport, layer_report
from emendo.editing.sharing import EarlierFacts, KeyTokens, group_means, rows_without
from emendo.editing.value_search import FoundValues, SearchTrace, search_values
from emendo.errors import InputError, NumericalError
from emendo.methods import MethodConfig, ResolvedMethod
from emendo.methods.settings import PostStep
from emendo.models import EditableModel
from emendo.progress import Progress
from emendo.requests import AnyContext, EditRequest
from emendo.shapes import Keys, Weight
from emendo.solve import (
    PreparedLayer,
    SolveStats,
    cap_norm,
    check_keys,
    check_system,
    key_tolerance,
    prune,
    rect,
    solve,
)
from emendo.solve.distribution import Step, distribution_steps, searched_layers
from emendo.solve.shares import remaining_splits
from emendo.updates.update import LayerUpdate, merge_layers

Remembering: TypeAlias = Callable[[int, PreparedLayer, Keys, float], PreparedLayer]
"""Gives, of a layer, its metric, the keys of earlier edits and what each counts, the metric that preserves them too."""


@dataclass(frozen=True)
class Batch:
    """Requests that are solved together.

    Attributes:
        requests: The facts.
        groups: Those that share a value, as indices into `requests`: a row of the solve each.
        positions: Where the requests stand in the plan's.
    """

    requests: list[EditRequest]
    groups: list[list[int]]
    positions: list[int]

    @classmethod
    def of(cls, requests: Sequence[EditRequest], groups: Sequence[Sequence[int]]) -> Batch:
        """A batch of some groups of a plan's requests."""
        positions = sorted(index for group in groups for index in group)
        place = {index: number for number, index in enumerate(positions)}
        own = [[place[index] for index in group] for group in groups]
        return cls([requests[index] for index in positions], own, positions)

    @property
    def names(self) -> list[str]:
        """What messages call the groups."""
        return [" + ".join(self.requests[index].label for index in group) for group in self.groups]


@dataclass(frozen=True)
class Found:
    """What a search did for one request."""

    request: EditRequest
    layer: int
    trace: SearchTrace


class EditRun:
    """One edit on its way: what is fixed, and what has been written so far."""

    def __init__(
        self,
        lm: EditableModel,
        method: ResolvedMethod[MethodConfig],
        contexts: tuple[AnyContext, ...],
        prepared: Mapping[int, PreparedLayer],
        earlier: Sequence[LayerUpdate],
        weights: Mapping[int, Weight],
        powers: Mapping[int, float] | None = None,
        remembering: Remembering | None = None,
    ) -> None:
        self.lm, self.contexts, self.config = lm, contexts, method.config
        self.remembering = remembering or (lambda _, metric, keys, weight: metric.remembering(keys, weight=weight))
        self.steps = distribution_steps(self.config.distribution, self.config.layers)
        self.written = [step.layer for step in self.steps]
        self.earlier = {update.layer: update for update in earlier if update.layer in self.written}
        self.prepared, self.powers = dict(prepared), powers
        # Asked for only where it is not known: the weight of a mixture is put together each time.
        known = {layer: weights[layer] if layer in weights else lm.weight(layer) for layer in self.written}
        self.start = {layer: _precise(weight) for layer, weight in known.items()}
        self.exact = dict(self.start)
        self.parts: list[LayerUpdate] = []
        self.stats: dict[int, list[SolveStats]] = {layer: [] for layer in self.written}
        self.found: list[Found] = []
        self.kept: list[Found] = []
        self.activations: EditActivations | None = None
        self.first_keys: dict[int, EditKeys] = {}
        self.search_values: Callable[..., FoundValues] | None = None
        # Factorised with the metric when they are first needed, after the search: a history is as large as C.
        self.to_remember = list(self.earlier.values()) if self.config.history.weight else []
        self._check_keys_known()

    def leave_out(self, facts: EarlierFacts, keys: Iterable[KeyTokens]) -> dict[int, list[int]]:
        """Take those rows out of the history whose keys have another value by now, or are about to get one.

        Returns:
            The rows, by layer.
        """
        keys, left_out, kept = set(keys), {}, []
        for update in self.to_remember:
            if rows := facts.replaced(update.layer, keys):
                assert update.keys is not None  # checked at the start
                left_out[update.layer] = rows
                update = replace(update, keys=rows_without(update.keys, rows))
            kept.append(update)
        self.to_remember = kept
        return left_out

    def read_keys(self, batch: Batch) -> None:
        """Read the keys that nothing has been written to yet, and refuse what the solve would refuse after the search.

        Raises:
            InfeasibleError: Equality was asked of keys that cannot hold it; names the requests.
        """
        s = self.config.memorization.strength(len(batch.groups))
        needed = s == 0 or any(step.share is None for step in self.steps)
        self.activations = EditActivations(
            self.lm, batch.requests, self.contexts, self.config.target.site, self.config.keys
        )
        self.first_keys = self._keys(batch, self.written if needed else self.written[:1], self.written[0])
        tolerance = key_tolerance(self.lm.dtype)
        for layer, keys in self.first_keys.items():
            # The keys of upper layers change with what is written below them, the lowest layer's do not.
            check = check_system if layer == self.written[0] else check_keys
            check(self.prepared[layer], keys.mean, s=s, labels=batch.names, tolerance=tolerance)

    def search(
        self,
        batch: Batch,
        norms: Mapping[int, Float[Tensor, " n"]],
        kept: Sequence[EditRequest],
        progress: Progress,
    ) -> dict[int, Float[Tensor, "n d_model"]]:
        """The values that the steps aim at, by layer."""
        config = self.config
        aims: dict[int, Tensor] = {}
        for layer in searched_layers(config.distribution, config.layers):
            search = self.search_values or search_values
            targets = search(self.lm, batch.requests, self.contexts, layer, config.target, progress, kept)
            if config.target.norm_anchor:
                targets = targets.anchored(norms[layer], batch.groups)
            aims[layer] = targets.value
            self.found += _told(batch.requests, layer, targets.traces)
            self.kept += _told(kept, layer, targets.kept)
        later = [step.aim for step in self.steps if step.aim not in aims]
        if later:
            aims |= forward_values(self.lm, batch.requests, targets.layer, targets.delta, config.target.site, later)
        return aims

    def write(self, batch: Batch, aims: Mapping[int, Float[Tensor, "n d_model"]], progress: Progress) -> None:
        """Write one batch, whose keys have been read, into the model, layer by layer."""
        config = self.config
        self._remember()
        s = config.memorization.strength(len(batch.groups))
        splits, first = self._splits(s), self.first_keys
        written = []
        progress.start("solve", len(self.steps))
        try:
            for step, split in zip(self.steps, splits, strict=True):
                keys = (first or self._keys(batch, [step.layer], step.layer))[step.layer]
                first = {}  # what is written changes the keys of every layer above
                residuals = split(self._missing(batch, step, aims[step.aim]))
                solution = solve(
                    self.prepared[step.layer],
                    keys.mean,
                    s=s,
                    constraint_keys=keys.plain if config.keys.constraint == "plain" else None,
                    labels=batch.names,
                    tolerance=key_tolerance(self.lm.dtype),
                )
                written.append(
                    LayerUpdate(
                        layer=step.layer,
                        module=self.lm.module_name(step.layer),
                        residuals=residuals.float().cpu(),
                        dual_keys=solution.dual_keys.float().cpu(),
                        keys=(keys.plain if config.keys.constraint == "plain" else keys.mean).float().cpu(),
                    )
                )
                self._add(written[-1])
                self.stats[step.layer].append(solution.stats)
                progress.advance()
        finally:
            progress.finish()
        self.parts += written
        if config.batching == "one_by_one" and config.history.weight:
            self.to_remember += written

    def finish(self, update: LayerUpdate) -> LayerUpdate:
        """The layer's sum after the method's post-step."""
        return _post_step(update, self.config.post, self.start[update.layer], self.earlier.get(update.layer))

    def report(self, update: LayerUpdate, solved: LayerUpdate) -> LayerReport:
        """What the finished update does to its layer."""
        layer = update.layer
        return layer_report(
            update,
            solved,
            self.stats[layer],
            self.prepared[layer].moment,
            self.start[layer],
            self.earlier.get(layer),
            dtype=self.lm.edited_map(layer).dtype,
            power=None if self.powers is None else self.powers[layer],
        )

    def _splits(self, s: float) -> list[Any]:
        """For each step, the function from what is missing to what its layer takes."""
        if all(step.share is not None for step in self.steps):
            return [lambda missing, share=step.share: missing * share for step in self.steps]
        metrics = [self.prepared[layer] for layer in self.written]
        return remaining_splits(metrics, [self.first_keys[layer].mean for layer in self.written], s)

    def _keys(self, batch: Batch, layers: Sequence[int], written: int) -> dict[int, EditKeys]:
        """Keys of every group at some layers, before layer `written` is."""
        assert self.activations is not None  # made when the batch began
        found = self.activations.keys(layers, resume=written)
        return {
            layer: EditKeys(group_means(keys.mean, batch.groups), group_means(keys.plain, batch.groups))
            for layer, keys in found.items()
        }

    def _missing(self, batch: Batch, step: Step, aim: Float[Tensor, "n d_model"]) -> Float[Tensor, "groups d_model"]:
        """What the down-projection has yet to add for the model to hold `aim`, before the step's layer is written."""
        assert self.activations is not None
        present = self.activations.values(step.aim, resume=step.layer)
        missing = group_means(aim - present, batch.groups)
        return missing / self.lm.mlp_scale if self.config.target.site == "resid_post" else missing

    def _add(self, part: LayerUpdate) -> None:
        """Bring an update into the model, summed before rounding to the model's dtype."""
        if not (part.residuals.isfinite().all() and part.dual_keys.isfinite().all()):
            raise NumericalError(
                f"the update of layer {part.layer} is not finite; expected finite factors. Load the model with "
                "--dtype float32, or use more tokens for the second moment (--set moments.multiple=20)"
            )
        exact = self.exact[part.layer]
        self.exact[part.layer] = exact + part.to(exact.device).delta().to(exact)
        self.lm.write(part.layer, self.exact[part.layer])

    def _check_keys_known(self) -> None:
        for update in self.to_remember:
            if update.keys is None:
                raise InputError(
                    f"history.weight={self.config.history.weight:g} preserves earlier edits by their keys, and an "
                    f"update already in the model has none for layer {update.layer}; roll it back first, or leave "
                    "history out (--set history.weight=0)"
                )

    def _remember(self) -> None:
        """Keys written before the present batch become preserved keys."""
        for update in self.to_remember:
            assert update.keys is not None  # checked at the start, and made by a solve since
            metric, weight = self.prepared[update.layer], self.config.history.weight
            self.prepared[update.layer] = self.remembering(update.layer, metric, update.keys, weight)
        # What this edit writes itself nobody else can know.
        self.remembering = lambda _, metric, keys, weight: metric.remembering(keys, weight=weight)
        self.to_remember = []


def _post_step(update: LayerUpdate, post: PostStep, weight: Weight, earlier: LayerUpdate | None) -> LayerUpdate:
    """Shape a finished update; its keys stay those that were written."""
    residuals, dual_keys = update.residuals, update.dual_keys
    if post.kind == "none":
        return update
    if post.kind == "rect":
        residuals, dual_keys = rect(update.delta(), weight.float().cpu(), keep=post.keep)
    elif post.kind == "cap":
        residuals, dual_keys = cap_norm(residuals, dual_keys, weight, ratio=post.max_ratio)
    else:
        total = merge_layers([update] if earlier is None else [earlier, update])[0]
        base = weight if earlier is None else weight - earlier.delta().to(weight)
        residuals, dual_keys = prune(total.residuals, total.dual_keys, base, log_base=post.log_base)
        if torch.equal(residuals, total.residuals.to(residuals)):
            return update  # no singular value is above W₀'s largest
        if earlier is not None:
            residuals = torch.cat([residuals, -earlier.residuals.to(residuals)])
            dual_keys = torch.cat([dual_keys, earlier.dual_keys.to(dual_keys)])
    shaped = LayerUpdate(update.layer, update.module, residuals.float().cpu(), dual_keys.float().cpu(), update.keys)
    return shaped.compacted()  # taking earlier updates back doubles their rows each time


def _told(requests: Sequence[EditRequest], layer: int, traces: Sequence[SearchTrace]) -> list[Found]:
    # Who gives values without a search has nothing to tell.
    return [Found(request, layer, trace) for request, trace in zip(requests, traces, strict=bool(traces))]


def _precise(weight: Weight) -> Weight:
    return weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
