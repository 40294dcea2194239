"""A session: one model, the updates that are in it, and the plans for more.

Plans work on isolated modules, so the model itself is not touched by them; `held_model` is what writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from emendo.arguments import Anything, Seed, check_width, checked
from emendo.editing.baselines.plan import plan_baseline
from emendo.editing.context_memory import SAMPLED, keep_contexts, read_contexts
from emendo.editing.contexts import prefix_contexts
from emendo.editing.held_model import HeldModel
from emendo.editing.metric_cache import MetricCache
from emendo.editing.pipeline import plan_edit, reference_norms
from emendo.editing.plan import Plan
from emendo.editing.plan_memory import PlanMemory, plan_identity
from emendo.editing.sharing import FactIndex
from emendo.editing.strength import with_fitting_weight
from emendo.editing.value_cache import ValueCache
from emendo.errors import InputError
from emendo.io.environment import computing
from emendo.io.versions import versions
from emendo.methods import DEFAULT_METHOD, BaselineConfig, Method, MethodConfig, ResolvedMethod, resolve_method
from emendo.methods.settings import MomentSettings
from emendo.models import EditableModel
from emendo.parallel import Workers
from emendo.progress import Watched, chosen_progress
from emendo.requests import AnyContext, EditRecord, EditRequest, check_requests, requests_of
from emendo.shapes import Moment
from emendo.solve import BlockMoment, PreparedLayer
from emendo.solve.numerics import pinned
from emendo.statistics import MomentStore
from emendo.updates.predecessors import Predecessors
from emendo.updates.rounding import tell_of_rounding
from emendo.updates.update import LayerUpdate, ModelUpdate

Requests: TypeAlias = Annotated[
    EditRequest | EditRecord | Mapping[str, Any] | Iterable[EditRequest | EditRecord | Mapping[str, Any]], Anything()
]
"""What a plan takes as facts."""


class EditSession(HeldModel):
    """Plans, applies and takes back edits of one model.

    Args:
        lm: The model, from `emendo.load` or `emendo.wrap`, with no edits in it.
        seed: Of sampled contexts and self-sampled second moments.
        store: Where second moments are cached; the default is under EMENDO_HOME.
        targets: Target searches on the unedited model that are remembered; they are used while the session holds no
            edits, by plans that search on the unedited model alone. None: every plan makes its own.
        progress: Told about every long stage; True: bars on the terminal or in the notebook.
        workers: Who collects second moments that the store does not have; None: this process.
        plans: Whole plans of the unedited model that are remembered and kept; None: every plan is made.

    Raises:
        InputError: Another session has edits in this model, or it is an isolated one.
    """

    OBTAINED_BY = "emendo.EditSession(lm)"

    @checked
    def __init__(
        self,
        lm: EditableModel,
        *,
        seed: Seed = 0,
        store: MomentStore | None = None,
        targets: ValueCache | None = None,
        progress: Watched = None,
        workers: Workers | None = None,
        plans: PlanMemory | None = None,
    ) -> None:
        super().__init__(lm)
        self.seed = seed
        self.targets, self.plans = targets, plans
        self.progress = progress = chosen_progress(progress)
        self._metrics = MetricCache(
            lm, seed, store or MomentStore(), self.preview_base, progress=progress, workers=workers
        )
        self._contexts: dict[tuple[str, int, str, Predecessors], tuple[AnyContext, ...]] = {}
        self._facts = FactIndex(lm)

    def __repr__(self) -> str:
        count = len(self.applied_updates)
        held = f"{count} update(s) applied" if count else "no updates applied"
        return f"<EditSession on {self.lm.name}: {held}, seed {self.seed}>"

    @property
    def workers(self) -> Workers | None:
        """Who collects second moments; None: this process."""
        return self._metrics.workers

    @workers.setter
    def workers(self, workers: Workers | None) -> None:
        self._metrics.workers = workers

    @checked
    def resolve(
        self,
        method: str | Method = DEFAULT_METHOD,
        *,
        layers: Sequence[int] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> ResolvedMethod[Method]:
        """Every value that `plan` would use, and where it comes from; nothing is computed."""
        return resolve_method(method, self.lm, layers=layers, settings=settings)

    @checked
    @pinned()
    def plan(
        self,
        requests: Requests,
        method: str | Method = DEFAULT_METHOD,
        *,
        layers: Sequence[int] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Work out an edit on the model as it is now; nothing is changed, also after an error.

        Args:
            requests: The facts to write: one or several requests, records, or dictionaries with their fields.
            method: Name or config of a method or baseline (`emendo methods` lists them), or the path of a
                YAML file with settings (`emendo.methods.files`).
            layers: Edited layers; None takes the preset for the model, or the baseline's own.
            settings: Values by dotted name, such as ``{"target.steps": 20}``.

        Raises:
            InputError: Requests, method, settings or layers cannot be used, or another session has edits in the model;
                says which and why.
        """
        requests = requests_of(requests)
        check_requests(requests)
        resolved = self.resolve(method, layers=layers, settings=settings)
        if (method_of_engine := resolved.on_engine()) is not None:
            plan = self._plan_method(requests, method_of_engine)
        elif (baseline := resolved.as_baseline()) is not None:
            plan = self._plan_baseline(requests, baseline)
        else:
            raise InputError(
                f"{resolved.config.name} is a {type(resolved.config).__name__}; expected a MethodConfig or a "
                "BaselineConfig"
            )
        tell_of_rounding({report.layer: report.kept for report in plan.layers}, self.lm.dtype)
        return plan

    @checked
    @pinned()
    def prepare(
        self,
        method: str | Method = DEFAULT_METHOD,
        *,
        layers: Sequence[int] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> PreparedMethod:
        """Make everything ready that edits by a method need and that does not depend on the facts.

        Contexts are sampled on the model as it is now, once for all edits that follow, as the public code of ROME and
        MEMIT does. `plan` samples them for each state of the model.

        Args:
            method: As in `plan`; a method of the engine.
            layers: As in `plan`.
            settings: As in `plan`.

        Returns:
            What plans and applies single edits in real time.

        Raises:
            InputError: The method is a baseline, which trains anew for every edit.
        """
        resolved = self.resolve(method, layers=layers, settings=settings).on_engine()
        if resolved is None:
            raise InputError(
                f"{method!r} is a baseline, which trains the model for every edit, so there is nothing to make ready; "
                "expected a method of the engine such as 'emendo' (emendo methods), or session.plan(requests, method)"
            )
        with self.lm.access.reading():
            self._check_own()
            self.lm.contents.check()
            metrics, _ = self._metrics.metrics(resolved.config)
            for layer, metric in metrics.items():
                self._metrics.output_power(layer, metric.moment)
            contexts = self._contexts_of(self.lm, resolved.config.contexts.scheme)
        return PreparedMethod(self, resolved, contexts)

    def rollback(self) -> None:
        """Take every update out: each touched matrix gets its original bytes back.

        Raises:
            WeightsChangedError: Somebody else has changed the weights, which would be lost; they are left as they are.
        """
        with self.lm.access.turn():
            super().rollback()
            self._metrics.forget_histories()

    @checked
    def preservation(self, config: MethodConfig) -> dict[int, PreparedLayer]:
        """The factorised preservation metric of every layer that a resolved method writes, as a plan uses it."""
        return self._metrics.metrics(config)[0]

    @checked
    @pinned()
    def second_moments(
        self, layers: Sequence[int], settings: MomentSettings
    ) -> tuple[dict[int, Moment | BlockMoment], dict[str, Any]]:
        """Mean second moments C of the unedited model: from the store, and collected where it has none.

        Args:
            layers: Layers whose keys they are of.
            settings: Source and size.

        Returns:
            ``C [d_in, d_in]`` of each layer in float64, on the layer's device, not to be changed (of a mixture of
            experts its diagonal blocks); and a record of where they come from.

        Raises:
            CorpusError: The source cannot be read, or its text is too short.
            MomentsError: A file of the store is damaged.
        """
        return self._metrics.moments(layers, settings)

    @checked
    def output_power(self, layer: int, moment: Moment | BlockMoment) -> float:
        """tr(W₀ C W₀ᵀ) of a layer's unedited weight; the last one of a layer is remembered.

        Args:
            layer: Index of the block.
            moment: C, as `second_moments` gives it.
        """
        check_width("moment", moment, self.lm.d_in(layer))
        return self._metrics.output_power(layer, moment)

    @pinned()
    def _plan_ready(self, requests: Requests, ready: PreparedMethod) -> Plan:
        """A plan by a method that is ready."""
        requests = requests_of(requests)
        check_requests(requests)
        plan = self._plan_method(requests, ready.method, ready)
        tell_of_rounding({report.layer: report.kept for report in plan.layers}, self.lm.dtype)
        return plan

    def _plan_method(
        self,
        requests: Sequence[EditRequest],
        method: ResolvedMethod[MethodConfig],
        ready: PreparedMethod | None = None,
    ) -> Plan:
        with self.lm.access.reading():  # from here on nobody writes the weights
            self._check_own()
            self.lm.contents.check(None if ready is None else method.config.written_layers)
            if ready is not None:
                return self._plan_on(self.lm, requests, method, ready.contexts)
            return self._remembered(requests, method)

    def _remembered(self, requests: Sequence[EditRequest], method: ResolvedMethod[MethodConfig]) -> Plan:
        """A plan on the model as it is, from the memory of plans where it may be and is there."""
        config = method.config
        # With a chosen λ the method that a plan records is another one than was asked for.
        if self.plans is None or self._edits.updates or config.memorization.share is not None:
            return self._plan_on(self.lm, requests, method, None)
        asked = plan_identity(
            *(self.lm, requests, method),
            seed=self.seed,
            moments=self._metrics.described(config.written_layers, config.moments),
            base=self.base,
            made_by=self._made_by,
        )
        if asked is None:
            return self._plan_on(self.lm, requests, method, None)
        found = self.plans.read(asked, requests, method, lambda: self._contexts_of(self.lm, config.contexts.scheme))
        if found is None:
            found = self._plan_on(self.lm, requests, method, None)
            self.plans.keep(asked, found)
        return found

    def _plan_on(
        self,
        lm: EditableModel,
        requests: Sequence[EditRequest],
        method: ResolvedMethod[MethodConfig],
        contexts: tuple[AnyContext, ...] | None,
    ) -> Plan:
        method = self._with_lambda(lm, requests, method, contexts)
        base, config = self.base, method.config
        prepared, record = self._metrics.metrics(config)
        anchors = None
        if config.target.norm_anchor:
            with self.preview_base() as unedited:
                anchors = reference_norms(unedited, requests, config)
        return plan_edit(
            lm,
            requests,
            method,
            prepared,
            seed=self.seed,
            contexts_of=lambda scheme: self._contexts_of(lm, scheme) if contexts is None else contexts,
            base=base,
            preceding=self._edits.preceding,
            earlier=self._earlier,
            facts=self._facts.of(self._edits.updates, self._edits.ids) if config.target.shared == "key" else None,
            weights={layer: self._exact(layer) for layer in config.written_layers},
            powers={layer: self._metrics.output_power(layer, metric.moment) for layer, metric in prepared.items()},
            remembering=self._metrics.remembering,
            anchors=anchors,
            targets=None if self._edits.updates else self.targets,
            record={"moments": record, **self._made_by, **_added_ridges(prepared)},
            progress=self.progress,
        )

    def _with_lambda(
        self,
        lm: EditableModel,
        requests: Sequence[EditRequest],
        method: ResolvedMethod[MethodConfig],
        contexts: tuple[AnyContext, ...] | None,
    ) -> ResolvedMethod[MethodConfig]:
        """The method with its λ in numbers, where it is to be chosen."""
        if method.config.memorization.share is None:
            return method
        if contexts is None:
            contexts = self._contexts_of(lm, method.config.contexts.scheme)
        return with_fitting_weight(lm, requests, method, self._metrics.of_any_scale(method.config), contexts)

    def _plan_baseline(self, requests: Sequence[EditRequest], baseline: ResolvedMethod[BaselineConfig]) -> Plan:
        with self.lm.isolated() as lm:  # from here on nobody writes the weights
            self._check_own()
            self.lm.contents.check()
            return plan_baseline(
                lm,
                requests,
                baseline,
                seed=self.seed,
                base=self.base,
                preceding=self._edits.preceding,
                earlier=self._earlier,
                weights=self._exact,
                record={"moments": None, **self._made_by},
                progress=self.progress,
            )

    @property
    def _made_by(self) -> dict[str, Any]:
        """What an update records of what computed it."""
        return {"versions": versions(), "computing": computing(str(self.lm.device))}

    @property
    def _earlier(self) -> tuple[LayerUpdate, ...]:
        """Sum of the updates that are in the model."""
        return tuple(part for _, part in sorted(self._edits.total.items()))

    def _contexts_of(self, lm: EditableModel, scheme: str) -> tuple[AnyContext, ...]:
        """Prefix contexts, sampled once for each state of the model: they depend on its weights and the seed alone."""
        key = (scheme, self.seed, lm.weights_digest(), self._edits.preceding)
        if key not in self._contexts:
            # Where searches are remembered, so is what they are made with.
            kept = scheme in SAMPLED and self.targets is not None and not self._edits.updates
            found = read_contexts(lm, scheme, self.seed) if kept else None
            self._contexts[key] = found or prefix_contexts(lm, scheme, self.seed)
            if kept and not found:
                keep_contexts(lm, scheme, self.seed, self._contexts[key])
        return self._contexts[key]


class PreparedMethod:
    """A method made ready on a session: from here an edit is its search, one pass a layer and triangular solves.

    Second moments, their factors, sampled contexts and the model's identity are at hand. Before each plan and each
    write the parameters that will be written, and those that torch says were touched, are compared with what they
    should be. What somebody writes to another parameter through ``.data`` is only seen by the next
    `EditSession.plan`, `apply` or `rollback`, which compare all of them.

    Args:
        session: The session.
        method: What it plans by, every value fixed.
        contexts: Prefix contexts of every edit, the plain prompt first.
    """

    OBTAINED_BY = "session.prepare()"

    def __init__(
        self, session: EditSession, method: ResolvedMethod[MethodConfig], contexts: tuple[AnyContext, ...]
    ) -> None:
        self.session, self.method, self.contexts = session, method, contexts

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.method.config.written_layers))
        return f"<PreparedMethod {self.method.config.name} on {self.session.lm.name}, layers {layers}>"

    @checked
    def plan(self, requests: Requests) -> Plan:
        """Work out an edit on the model as it is now, as `EditSession.plan` does; nothing is changed.

        Args:
            requests: The facts to write.

        Raises:
            InputError: Requests cannot be used, or another session has edits in the model.
        """
        return self.session._plan_ready(requests, self)

    @checked
    def apply(self, update: ModelUpdate | Plan) -> None:
        """Add an update, or that of a plan, to the model, as `EditSession.apply` does.

        Raises:
            BaseMismatchError: The update belongs to another model, or was planned on top of other updates.
            WeightsChangedError: Somebody else has changed the weights.
        """
        self.session._apply(update, self.method.config.written_layers)

    @checked
    def edit(self, requests: Requests) -> Plan:
        """Plan an edit and write it.

        Args:
            requests: The facts to write.
        """
        plan = self.plan(requests)
        self.apply(plan)
        return plan


def _added_ridges(prepared: Mapping[int, PreparedLayer]) -> dict[str, Any]:
    """What a record says of layers whose C was singular (`Preservation.dead_ridge`); nothing where none was."""
    found = {str(layer): metric.added_ridge for layer, metric in sorted(prepared.items()) if metric.added_ridge}
    return {"added_ridge": found} if found else {}
