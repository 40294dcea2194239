"""A session: one model, the updates that are in it, and the way back.

The session keeps the original of every matrix it touches and its running sum W₀ + ΣΔ in float32 (float64 for a float64
model). Weights are always the cast of that sum, so an update costs the same after a thousand others; rolling back
copies the originals, so it is exact bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from emendo.activations.target_memory import TargetMemory
from emendo.baseline_plan import plan_baseline
from emendo.baselines import ResolvedBaseline
from emendo.errors import InfeasibleError, InputError, NumericalError
from emendo.methods import MethodConfig, ResolvedMethod
from emendo.methods.config import MomentSettings
from emendo.models import ModelAdapter, check_update
from emendo.moments import MomentStore, describe_for_method, obtain_for_method
from emendo.pipeline import plan_edit, reference_norms
from emendo.plan import Plan
from emendo.progress import Progress
from emendo.requests import EditRequest, check_requests
from emendo.shapes import Moment, Weight
from emendo.solve import PreparedLayer, output_power, prepare
from emendo.techniques import ResolvedTechnique, Technique, resolve_technique
from emendo.text import prefix_contexts
from emendo.update import LayerUpdate, ModelUpdate, merge_layers
from emendo.versions import versions


@dataclass(frozen=True)
class _Edits:
    """What is in the model: never changed in place, so that an earlier state can be returned to.

    Attributes:
        updates: In the order in which they were applied.
        ids: Their identities, which are digests of their tensors and therefore computed once.
        exact: W₀ + ΣΔ of every edited layer in float32 or better, summed in that order.
        total: ΣΔ of every edited layer as factors, with the keys of all of them.
    """

    updates: tuple[ModelUpdate, ...] = ()
    ids: tuple[str, ...] = ()
    exact: Mapping[int, Weight] = field(default_factory=dict)
    total: Mapping[int, LayerUpdate] = field(default_factory=dict)


class EditSession:
    """Plans, applies and takes back edits of one model.

    Args:
        lm: The model, from `emendo.load` or `emendo.wrap`, with no edits in it.
        seed: Of sampled contexts and self-sampled second moments.
        store: Where second moments are cached; the default is under EMENDO_HOME.
        targets: Target searches on the unedited model that are remembered; they are used while the session holds no
            edits, by plans that search on the unedited model alone. None: every plan makes its own.
        progress: Told about every long stage.

    Raises:
        InputError: Another session has edits in this model.
    """

    def __init__(
        self,
        lm: ModelAdapter,
        *,
        seed: int = 0,
        store: MomentStore | None = None,
        targets: TargetMemory | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.lm = lm
        self.seed = seed
        self.targets = targets
        self.progress = progress
        self._store = store or MomentStore()
        self._originals: dict[int, Weight] = {}
        self._edits = _Edits()
        # One C and one factor a layer: each is d_in × d_in, which is gigabytes in a large model.
        self._moments: dict[int, tuple[str, Moment]] = {}
        self._prepared: dict[int, PreparedLayer] = {}
        self._powers: dict[int, tuple[Moment, float]] = {}
        self._contexts: dict[tuple[str, int, tuple[str, ...]], tuple[str, ...]] = {}
        self._check_own()

    @property
    def applied_updates(self) -> tuple[ModelUpdate, ...]:
        """Updates that are in the model now, in the order in which they were applied."""
        return self._edits.updates

    @property
    def base(self) -> dict[str, str]:
        """Identity of the unedited model."""
        return self.lm.identity()

    def resolve(
        self,
        method: str | Technique = "emendo",
        *,
        layers: Sequence[int] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> ResolvedTechnique:
        """Every value that `plan` would use, and where it comes from; nothing is computed."""
        return resolve_technique(method, self.lm, layers=layers, settings=settings)

    def plan(
        self,
        requests: Sequence[EditRequest],
        method: str | Technique = "emendo",
        *,
        layers: Sequence[int] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Work out an edit on the model as it is now; nothing is changed, also after an error.

        Args:
            requests: The facts to write.
            method: Name or config of a method, or of a baseline (`emendo methods` lists both).
            layers: Edited layers; None takes the preset for the model, or the baseline's own.
            settings: Values by dotted name, such as ``{"target.steps": 20}``.

        Raises:
            InputError: Requests, method, settings or layers cannot be used, or another session has edits in the model;
                says which and why.
        """
        self._check_own()
        check_requests(requests)
        resolved = self.resolve(method, layers=layers, settings=settings)
        if isinstance(resolved, ResolvedBaseline):
            return self._plan_baseline(requests, resolved)
        return self._plan_method(requests, resolved)

    def apply(self, update: ModelUpdate) -> None:
        """Add an update to the model.

        Raises:
            BaseMismatchError: The update belongs to another model, or was planned on top of other updates.
            InputError: Another session has edits in this model.
            NumericalError: The weights would not be finite in the model's dtype.
        """
        self._check_own()
        check_update(self.lm, update, self._edits.ids)
        self._write(self._with(self._edits, update))

    def rollback(self) -> None:
        """Take every update out: each touched matrix gets its original bytes back."""
        if self._edits.updates:  # else there may be edits of another session, which are not ours to forget
            self._write(_Edits())

    def move_to(self, updates: Sequence[ModelUpdate]) -> None:
        """Bring the model to its base plus exactly these updates, in order; if one does not fit, nothing changes.

        Raises:
            BaseMismatchError: An update belongs to another model, or was planned on top of others than those before it.
            InputError: Another session has edits in this model.
            NumericalError: The weights would not be finite in the model's dtype.
        """
        self._check_own()
        edits = _Edits()
        for update in updates:
            check_update(self.lm, update, edits.ids)
            edits = self._with(edits, update)
        if self._edits.updates or updates:
            self._write(edits)

    def preservation(self, config: MethodConfig) -> dict[int, PreparedLayer]:
        """The factorised preservation metric of every layer that a resolved method writes, as a plan uses it."""
        return self._prepare(config)[0]

    @contextmanager
    def applied(self, update: ModelUpdate) -> Iterator[None]:
        """The update is in the model inside the context, and out of it afterwards, also after an error."""
        before = self._edits
        self.apply(update)
        try:
            yield
        finally:
            self._write(before)

    @contextmanager
    def at_base(self) -> Iterator[None]:
        """The unedited weights inside the context; the session's updates are back afterwards, also after an error."""
        before = self._edits
        if not before.updates:
            yield
            return
        self._write(_Edits())
        try:
            yield
        finally:
            self._write(before)

    def second_moments(
        self, layers: Sequence[int], settings: MomentSettings
    ) -> tuple[dict[int, Moment], dict[str, Any]]:
        """Mean second moments C of the unedited model: from the store, and collected where it has none.

        Args:
            layers: Layers whose keys they are of.
            settings: Source and size.

        Returns:
            ``C [d_in, d_in]`` of each layer in float64, on the layer's device, not to be changed; and a record of
            where they come from.

        Raises:
            CorpusError: The source cannot be read, or its text is too short.
            MomentsError: A file of the store is damaged.
        """
        record = describe_for_method(self.lm, layers, settings, seed=self.seed)
        known = {layer: found for layer in layers if (found := self._moments.get(layer)) is not None}
        if any(layer not in known or known[layer][0] != record["fingerprint"] for layer in layers):
            with self.at_base():
                moments, record = obtain_for_method(
                    self.lm, layers, settings, seed=self.seed, store=self._store, progress=self.progress
                )
            for layer, moment in moments.items():
                self._moments[layer] = record["fingerprint"], moment.to(self.lm.block_device(layer))
        return {layer: self._moments[layer][1] for layer in layers}, record

    def output_power(self, layer: int, moment: Moment) -> float:
        """tr(W₀ C W₀ᵀ) of a layer's unedited weight; the last one of a layer is remembered.

        Args:
            layer: Index of the block.
            moment: C, as `second_moments` gives it.
        """
        known = self._powers.get(layer)
        if known is None or known[0] is not moment:
            power = output_power(self._originals.get(layer, self.lm.weight(layer)), moment)
            known = self._powers[layer] = (moment, power)
        return known[1]

    def verify_rolled_back(self) -> dict[str, bool]:
        """Whether every matrix that was ever touched equals its original bit for bit, by module name."""
        return {
            self.lm.module_name(layer): _same_bits(self.lm.weight(layer), original)
            for layer, original in sorted(self._originals.items())
        }

    def _plan_method(self, requests: Sequence[EditRequest], method: ResolvedMethod) -> Plan:
        base, config = self.base, method.config
        prepared, record = self._prepare(config)
        anchors = None
        if config.target.norm_anchor:
            with self.at_base():
                anchors = reference_norms(self.lm, requests, config)
        return plan_edit(
            self.lm,
            requests,
            method,
            prepared,
            seed=self.seed,
            contexts_of=self._contexts_of,
            base=base,
            preceding=self._edits.ids,
            earlier=self._earlier,
            weights={layer: self._exact(layer) for layer in config.written_layers},
            powers={layer: self.output_power(layer, metric.moment) for layer, metric in prepared.items()},
            anchors=anchors,
            targets=None if self._edits.updates else self.targets,
            record={"moments": record, "versions": versions(), **_added_ridges(prepared)},
            progress=self.progress,
        )

    def _plan_baseline(self, requests: Sequence[EditRequest], baseline: ResolvedBaseline) -> Plan:
        return plan_baseline(
            self.lm,
            requests,
            baseline,
            seed=self.seed,
            base=self.base,
            preceding=self._edits.ids,
            earlier=self._earlier,
            weights=self._exact,
            record={"moments": None, "versions": versions()},
            progress=self.progress,
        )

    @property
    def _earlier(self) -> tuple[LayerUpdate, ...]:
        """Sum of the updates that are in the model."""
        return tuple(part for _, part in sorted(self._edits.total.items()))

    def _prepare(self, config: MethodConfig) -> tuple[dict[int, PreparedLayer], dict[str, Any]]:
        """The factorised preservation metric of every layer; the last one is kept."""
        moments, record = self.second_moments(config.written_layers, config.moments)
        if not config.preservation.ridge:  # then every direction has to be priced by C
            _check_enough_tokens(record, max(len(moment) for moment in moments.values()))
        for layer, moment in moments.items():
            known = self._prepared.get(layer)
            if known is None or known.moment is not moment or known.asked != config.preservation:
                self._prepared[layer] = prepare(moment, config.preservation)
        return {layer: self._prepared[layer] for layer in config.written_layers}, record

    def _contexts_of(self, scheme: str) -> tuple[str, ...]:
        """Prefix contexts, sampled once for each state of the model: they depend on its weights and the seed alone."""
        key = (scheme, self.seed, self._edits.ids)
        if key not in self._contexts:
            self._contexts[key] = prefix_contexts(self.lm, scheme, self.seed)
        return self._contexts[key]

    def _check_own(self) -> None:
        """Refuse a model whose edits are not those of this session."""
        if self.lm.holds_edits and not self._edits.updates:
            raise InputError(
                f"{self.lm.name!r} holds edits of another session, so its base weights are unknown here; "
                "call rollback() on that session first"
            )

    def _exact(self, layer: int, edits: _Edits | None = None) -> Weight:
        """W₀ + ΣΔ of a layer in float32 or better, before it is cast to the model's dtype; now, or after some edits."""
        edits = edits or self._edits
        if layer in edits.exact:
            return edits.exact[layer]
        original = self._originals.get(layer, self.lm.weight(layer))
        return original.to(torch.promote_types(original.dtype, torch.float32), copy=True)

    def _with(self, edits: _Edits, update: ModelUpdate) -> _Edits:
        """Some edits and one more."""
        exact, total = dict(edits.exact), dict(edits.total)
        for part in update.layers:
            before = self._exact(part.layer, edits)
            exact[part.layer] = before + part.to(before.device).delta()
            sums = [total[part.layer], part] if part.layer in total else [part]
            total[part.layer] = merge_layers(sums)[0].compacted()
        return _Edits((*edits.updates, update), (*edits.ids, update.id), exact, total)

    def _write(self, edits: _Edits) -> None:
        """Bring the model from the present edits to others; if writing fails, it is left as it was."""
        self.lm.weights_digest()  # the identity of the base, taken before anything is written
        now = self._edits.exact
        touched = sorted(layer for layer in {*now, *edits.exact} if now.get(layer) is not edits.exact.get(layer))
        for layer in touched:
            if layer in edits.exact and not edits.exact[layer].to(self.lm.dtype).isfinite().all():
                raise NumericalError(
                    f"the updates of layer {layer} give weights that are not finite in {self.lm.dtype}; nothing was "
                    "written. Expected finite factors; load the model with --dtype float32 if they are too large for it"
                )
        before = {layer: self.lm.weight(layer).clone() for layer in touched}
        for layer in touched:
            self._originals.setdefault(layer, before[layer])
        try:
            for layer in touched:
                self.lm.write(layer, edits.exact.get(layer, self._originals[layer]))
        except BaseException:
            for layer, weight in before.items():
                self.lm.write(layer, weight)
            raise
        self._edits = edits
        self.lm.holds_edits = bool(edits.updates)


def _added_ridges(prepared: Mapping[int, PreparedLayer]) -> dict[str, Any]:
    """What a record says of layers whose C was singular (`Preservation.dead_ridge`); nothing where none was."""
    found = {str(layer): metric.added_ridge for layer, metric in sorted(prepared.items()) if metric.added_ridge}
    return {"added_ridge": found} if found else {}


def _check_enough_tokens(record: Mapping[str, Any], d_in: int) -> None:
    """Refuse a C that cannot have an inverse: rounding of float32 products can make it look as if it had one."""
    tokens = record["tokens"] * len(record["corpus"].get("parts", [None]))
    if tokens < d_in:
        raise InfeasibleError(
            f"a second moment of {tokens} tokens says nothing about {d_in - tokens} of {d_in} directions of the keys, "
            "which an update would then use as if they were free; expected at least as many tokens as directions "
            "(--set moments.multiple=10), or a ridge (--set preservation.ridge=VALUE)"
        )


def _same_bits(found: Weight, expected: Weight) -> bool:
    a, b = found.contiguous(), expected.contiguous()
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
