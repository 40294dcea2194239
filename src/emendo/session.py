"""A session: one model, the updates that are in it, and the way back.

The session keeps the original of every matrix it touches. Weights are always ``cast(W₀ + ΣΔ)`` with the sum in float32
(float64 for a float64 model); rolling back copies the originals, so it is exact bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from emendo.baseline_plan import plan_baseline
from emendo.baselines import ResolvedBaseline
from emendo.errors import BaseMismatchError, InputError, NumericalError
from emendo.methods import MethodConfig, ResolvedMethod
from emendo.methods.config import MomentSettings
from emendo.models import ModelAdapter
from emendo.moments import MomentStore, obtain_for_method
from emendo.pipeline import plan_edit, reference_norms
from emendo.plan import Plan
from emendo.progress import Progress
from emendo.requests import EditRequest, check_requests
from emendo.shapes import Moment, Weight
from emendo.solve import PreparedLayer, prepare
from emendo.techniques import ResolvedTechnique, Technique, resolve_technique
from emendo.update import LayerUpdate, ModelUpdate, merge_layers
from emendo.versions import versions


class EditSession:
    """Plans, applies and takes back edits of one model.

    Args:
        lm: The model, from `emendo.load` or `emendo.wrap`, with no edits in it.
        seed: Of sampled contexts and self-sampled second moments.
        store: Where second moments are cached; the default is under EMENDO_HOME.
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
        progress: Progress | None = None,
    ) -> None:
        self.lm = lm
        self.seed = seed
        self.progress = progress
        self._store = store or MomentStore()
        self._originals: dict[int, Weight] = {}
        self._applied: list[ModelUpdate] = []
        self._prepared: dict[tuple[Any, ...], PreparedLayer] = {}
        self._check_own()

    @property
    def applied_updates(self) -> tuple[ModelUpdate, ...]:
        """Updates that are in the model now, in the order in which they were applied."""
        return tuple(self._applied)

    @property
    def base(self) -> dict[str, str]:
        """Identity of the unedited model."""
        return {
            "name": self.lm.name,
            "model_type": self.lm.spec.model_type,
            "weights_sha256": self.lm.weights_digest(),
            "tokenizer_sha256": self.lm.tokenizer_digest(),
        }

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
        self._check(update)
        self._write([*self._applied, update])

    def rollback(self) -> None:
        """Take every update out: each touched matrix gets its original bytes back."""
        if self._applied:  # else there may be edits of another session, which are not ours to forget
            self._write([])

    @contextmanager
    def applied(self, update: ModelUpdate) -> Iterator[None]:
        """The update is in the model inside the context, and out of it afterwards, also after an error."""
        before = list(self._applied)
        self.apply(update)
        try:
            yield
        finally:
            self._write(before)

    @contextmanager
    def at_base(self) -> Iterator[None]:
        """The unedited weights inside the context; the session's updates are back afterwards, also after an error."""
        before = list(self._applied)
        if not before:
            yield
            return
        self._write([])
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
            ``C [d_in, d_in]`` of each layer in float64, and a record of where they come from.

        Raises:
            CorpusError: The source cannot be read, or its text is too short.
            MomentsError: A file of the store is damaged.
        """
        with self.at_base():
            return obtain_for_method(
                self.lm, layers, settings, seed=self.seed, store=self._store, progress=self.progress
            )

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
            base=base,
            preceding=self._preceding,
            earlier=self._earlier,
            weights={layer: self._exact(layer, self._applied) for layer in config.written_layers},
            anchors=anchors,
            record={"moments": record, "versions": versions()},
            progress=self.progress,
        )

    def _plan_baseline(self, requests: Sequence[EditRequest], baseline: ResolvedBaseline) -> Plan:
        return plan_baseline(
            self.lm,
            requests,
            baseline,
            seed=self.seed,
            base=self.base,
            preceding=self._preceding,
            earlier=self._earlier,
            weights=lambda layer: self._exact(layer, self._applied),
            record={"moments": None, "versions": versions()},
            progress=self.progress,
        )

    @property
    def _preceding(self) -> list[str]:
        """Identities of the updates that are in the model."""
        return [update.id for update in self._applied]

    @property
    def _earlier(self) -> tuple[LayerUpdate, ...]:
        """Their sum."""
        return merge_layers([part for update in self._applied for part in update.layers])

    def _prepare(self, config: MethodConfig) -> tuple[dict[int, PreparedLayer], dict[str, Any]]:
        """The factorised preservation metric of every layer, made once for a moment and a preservation."""
        moments, record = self.second_moments(config.written_layers, config.moments)
        prepared = {}
        for layer in config.written_layers:
            key = (layer, record["fingerprint"], config.preservation)
            if key not in self._prepared:
                self._prepared[key] = prepare(moments[layer].to(self.lm.weight(layer).device), config.preservation)
            prepared[layer] = self._prepared[key]
        return prepared, record

    def _check_own(self) -> None:
        """Refuse a model whose edits are not those of this session."""
        if self.lm.holds_edits and not self._applied:
            raise InputError(
                f"{self.lm.name!r} holds edits of another session, so its base weights are unknown here; "
                "call rollback() on that session first"
            )

    def _check(self, update: ModelUpdate) -> None:
        found = update.base.get("weights_sha256")
        if found != self.lm.weights_digest():
            raise BaseMismatchError(
                f"this update was made for {update.base.get('name')!r} with weights {str(found)[:12]}…, and this model "
                f"is {self.lm.name!r} with weights {self.lm.weights_digest()[:12]}…; load that model, or plan again"
            )
        ids = [applied.id for applied in self._applied]
        if list(update.preceding) != ids:
            raise BaseMismatchError(
                f"this update was planned on top of {len(update.preceding)} earlier update(s) and the session holds "
                f"{len(ids)}; expected {_short(update.preceding)}, found {_short(ids)}. Apply exactly the earlier ones "
                "first (or rollback()), or plan it again"
            )
        for part in update.layers:
            self.lm.check_layers([part.layer])
            expected = tuple(self.lm.weight(part.layer).shape)
            shape = (part.residuals.shape[1], part.dual_keys.shape[1])
            if part.module != self.lm.module_name(part.layer) or shape != expected:
                raise BaseMismatchError(
                    f"the update writes {part.module} with shape {shape}; this model has "
                    f"{self.lm.module_name(part.layer)} with shape {expected}"
                )

    def _exact(self, layer: int, updates: Sequence[ModelUpdate]) -> Weight:
        """W₀ + ΣΔ of a layer in float32 or better, before it is cast to the model's dtype."""
        original = self._originals.get(layer, self.lm.weight(layer))
        weight = original.to(torch.promote_types(original.dtype, torch.float32), copy=True)
        for update in updates:
            for part in update.layers:
                if part.layer == layer:
                    weight += part.delta().to(weight.device)
        return weight

    def _write(self, updates: list[ModelUpdate]) -> None:
        """Bring the model to base plus `updates`; if writing fails, it is left as it was."""
        self.lm.weights_digest()  # the identity of the base, taken before anything is written
        touched = {part.layer for update in [*self._applied, *updates] for part in update.layers}
        for layer in sorted(touched - set(self._originals)):
            self._originals[layer] = self.lm.weight(layer).clone()
        edited = {part.layer for update in updates for part in update.layers}
        weights = {
            layer: self._exact(layer, updates) if layer in edited else self._originals[layer] for layer in touched
        }
        for layer in edited:
            if not weights[layer].to(self.lm.dtype).isfinite().all():
                raise NumericalError(
                    f"the updates of layer {layer} give weights that are not finite in {self.lm.dtype}; nothing was "
                    "written. Expected finite factors; load the model with --dtype float32 if they are too large for it"
                )
        before = {layer: self.lm.weight(layer).clone() for layer in touched}
        try:
            for layer, weight in weights.items():
                self.lm.write(layer, weight)
        except BaseException:
            for layer, weight in before.items():
                self.lm.write(layer, weight)
            raise
        self._applied = list(updates)
        self.lm.holds_edits = bool(updates)


def _short(ids: Sequence[str]) -> str:
    """Identities of updates as messages show them."""
    return "[" + ", ".join(f"{id[:12]}…" for id in ids) + "]"


def _same_bits(found: Weight, expected: Weight) -> bool:
    a, b = found.contiguous(), expected.contiguous()
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
