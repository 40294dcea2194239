"""Target search: the value v* = init + δ that each request's edit must produce, for all requests at once.

δ enters the residual stream at the subject's last token, at one layer. Requests are independent, or groups of requests
that share a δ (`sharing`): they are optimised in one batch, each with its own Adam state, clamp and stop, and leave
the batch when finished.
The published authors' serial loop finds the same δ up to rounding (a test holds this search to it).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.editing.objective import InjectionSite, Losses, Terms, ValueProblem, value_problem
from emendo.editing.sharing import share_groups
from emendo.errors import NumericalError, SelfCheckError
from emendo.methods.settings import TargetSettings
from emendo.models import EditableModel
from emendo.models.suffix import packed_attention
from emendo.progress import Progress, Silent
from emendo.requests import AnyContext, EditRequest

REPLAY_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 1e-1, torch.float16: 2e-2}
"""Largest relative deviation of the replay from an ordinary forward pass that rounding explains.

In float64 too, since some families compute their attention scores in float32 whatever their weights are.
"""


@dataclass(frozen=True)
class SearchTrace:
    """What the search did for one request.

    Attributes:
        losses: Total loss at each evaluation, nats, of all requests that share its v*.
        nll: Negative log-likelihood of the target at the δ that was kept, nats a token.
        kl: Divergence on the subject's prompt at that δ, nats.
        argmax: Whether all target tokens are the argmax in all contexts at that δ.
        stopped: ``"loss"``, ``"argmax"``, ``"kl"`` or ``"steps"``: the rule that ended the search.
        delta_norm: ‖δ‖, of the part that is written.
        init_norm: ‖init‖.
    """

    losses: tuple[float, ...]
    nll: float
    kl: float
    argmax: bool
    stopped: str
    delta_norm: float
    init_norm: float


@dataclass(frozen=True)
class FoundValues:
    """Target values of a batch of requests.

    Attributes:
        layer: Where δ entered.
        value: v* = init + δ, ``[n, d_model]``; equal rows where requests share it.
        delta: δ, ``[n, d_model]``.
        traces: One for each request.
        kept: One for each earlier fact that a v* holds too.
    """

    layer: int
    value: Float[Tensor, "n d_model"]
    delta: Float[Tensor, "n d_model"]
    traces: tuple[SearchTrace, ...]
    kept: tuple[SearchTrace, ...] = ()

    def anchored(self, norms: Float[Tensor, " n"], groups: Sequence[Sequence[int]]) -> FoundValues:
        """The same directions with other norms.

        Args:
            norms: ‖v*‖ of each request; requests that share a v* give it the mean of theirs.
            groups: The requests that share one, as indices (`share_groups`).
        """
        norms = norms.clone()
        for group in groups:
            norms[list(group)] = norms[list(group)].mean()
        value = self.value * (norms / self.value.norm(dim=1))[:, None]
        return replace(self, value=value, delta=self.delta + value - self.value)


def search_values(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[AnyContext],
    layer: int,
    settings: TargetSettings,
    progress: Progress | None = None,
    kept: Sequence[EditRequest] = (),
) -> FoundValues:
    """Search v* for every request.

    Args:
        lm: The model, which is left as it was.
        requests: The facts to write.
        contexts: Templates with one ``{}`` for the whole prompt; the first is the plain prompt.
        layer: The layer that δ enters.
        settings: Constants of the search.
        progress: Told about the stage "targets", in steps of every v*; the last ones at once where it stops early.
        kept: Facts of earlier edits that have a key with one of the requests, whose v* is to hold them too.

    Raises:
        NumericalError: A loss is not finite; names the requests.
        SelfCheckError: The replay of upper layers disagrees with the model's own forward pass.
    """
    # The caller may be inside no_grad() or inference_mode().
    with torch.inference_mode(False), torch.enable_grad(), lm.isolated() as own:
        return _search_values(own, requests, contexts, layer, settings, progress or Silent(), kept)


def _search_values(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[AnyContext],
    layer: int,
    settings: TargetSettings,
    progress: Progress,
    kept: Sequence[EditRequest],
) -> FoundValues:
    facts = [*requests, *kept]
    groups = share_groups(lm, facts, settings.shared)
    entry = InjectionSite.at(lm, layer, settings.site, settings.joint_attention)
    shares = [len(group) if settings.shared == "key" else 1 for group in groups]
    progress.start("targets", settings.steps * sum(shares))
    values, deltas = [], []
    traces: dict[int, SearchTrace] = {}
    try:
        for begin in range(0, len(groups), settings.batch_size):
            part = groups[begin : begin + settings.batch_size]
            problem, init = value_problem(
                lm,
                [[facts[index] for index in group] for group in part],
                contexts,
                entry,
                end_of_text=settings.end_of_text,
                word_end=settings.word_end_weight > 0,
            )
            labels = [" + ".join(facts[index].label for index in group) for group in part]
            search = _Search(lm, settings, problem, init, labels)
            delta, part_traces = search.run(progress)
            values.append((init + delta)[:, 0])
            deltas.append(delta[:, 0])
            for group, own in zip(part, part_traces, strict=True):
                traces |= zip(group, own, strict=True)
    finally:
        progress.finish()
    owner = {index: number for number, group in enumerate(groups) for index in group}
    order = torch.tensor([owner[index] for index in range(len(requests))], device=values[0].device)
    told = [traces[index] for index in range(len(facts))]
    return FoundValues(
        layer,
        torch.cat(values)[order],
        torch.cat(deltas)[order],
        tuple(told[: len(requests)]),
        tuple(told[len(requests) :]),
    )


class _Search:
    """One batch on its way; rows of every tensor are the requests (or groups) that are still searched."""

    def __init__(
        self,
        lm: EditableModel,
        settings: TargetSettings,
        problem: ValueProblem,
        init: Float[Tensor, "n parts d_model"],
        labels: Sequence[str],
    ) -> None:
        self.lm, self.settings, self.problem, self.labels = lm, settings, problem, labels
        self.terms = Terms(
            settings.kl_weight, settings.weight_decay, settings.word_end_weight, settings.word_end_enough
        )
        self.active = list(range(problem.n))
        self.init_norm = init.norm(dim=2)
        self.nll_weight = torch.ones_like(init[:, 0, 0])
        # What each fact would get by itself: parts of δ for facts that have nothing in common add up by √n.
        facts = torch.bincount(problem.fact_owner, minlength=problem.n)
        self.share = facts.tolist() if settings.shared == "key" else [1] * problem.n
        self.radius = settings.max_norm_ratio * self.init_norm * init.new_tensor(self.share).sqrt()[:, None]
        self.delta = torch.zeros_like(init)
        self.moment1 = torch.zeros_like(init)
        self.moment2 = torch.zeros_like(init)
        self.streak = [0] * problem.n
        self.history: list[list[float]] = [[] for _ in labels]
        self.found = torch.zeros_like(init)
        self.traces: list[tuple[SearchTrace, ...]] = [()] * problem.n

    def run(self, progress: Progress) -> tuple[Float[Tensor, "n parts d_model"], list[tuple[SearchTrace, ...]]]:
        """δ and, of every fact that it stands for, what the search did."""
        self._refuse_non_finite()
        with packed_attention(self.lm):
            for step in range(self.settings.steps * max(self.share)):
                self.delta.requires_grad_(True)
                with self._precision():
                    losses = self._losses()
                if step == 0:
                    self._check_replay(losses.final)
                finished = self._finished(losses, step)
                # PMET's weight follows what a step finds, so it counts from the next one on.
                self.nll_weight = torch.where(losses.argmax, self.settings.argmax_nll_weight, 1.0).to(self.nll_weight)
                if len(finished) < len(self.active):
                    (gradient,) = torch.autograd.grad(losses.total.sum(), self.delta)
                self.delta = self.delta.detach()
                progress.advance(len(self.active))
                if finished:
                    most = [self.settings.steps * self.share[self.active[row]] for row in finished]
                    progress.advance(sum(most) - len(most) * (step + 1))
                    self._retire(finished, losses)
                    if not self.active:
                        break
                    keep = [row for row in range(len(gradient)) if row not in finished]
                    gradient = gradient[keep]
                self._update(gradient, step + 1)
        return self.found, self.traces

    def _losses(self) -> Losses:
        losses = self.problem.losses(self.lm, self.delta, self.init_norm, self.terms, self.nll_weight)
        totals = losses.total.tolist()
        bad = [self.labels[self.active[row]] for row, x in enumerate(totals) if not abs(x) < float("inf")]
        if bad:
            raise NumericalError(
                f"the target search left the finite numbers for {', '.join(map(repr, bad))}; expected a finite loss. "
                "Lower --set target.learning_rate, or load the model with --dtype float32"
            )
        for row, value in enumerate(totals):
            self.history[self.active[row]].append(value)
        return losses

    def _finished(self, losses: Losses, step: int) -> dict[int, str]:
        """Rows that stop here, with the rule that stops them."""
        finished = {}
        argmax = (losses.argmax & losses.ended).tolist()
        totals, kl = losses.total.tolist(), losses.kl.tolist()
        for row, request in enumerate(self.active):
            self.streak[request] = self.streak[request] + 1 if argmax[row] else 0
            longest, share = self.settings.argmax_steps, self.share[request]
            if totals[row] < self.settings.loss_threshold:
                finished[row] = "loss"
            elif longest is not None and self.streak[request] > longest * share:
                finished[row] = "argmax"
            elif argmax[row] and 0 < self.settings.kl_threshold >= self.settings.kl_weight * kl[row]:
                finished[row] = "kl"
            elif step == self.settings.steps * share - 1:
                finished[row] = "steps"
        return finished

    def _retire(self, finished: dict[int, str], losses: Losses) -> None:
        """Keep the results of finished rows and shrink everything to the others."""
        for row, reason in finished.items():
            request = self.active[row]
            self.found[request] = self.delta[row]
            self.traces[request] = tuple(
                SearchTrace(
                    losses=tuple(self.history[request]),
                    nll=float(losses.fact_nll[fact]),
                    kl=float(losses.kl[row]),
                    argmax=bool(losses.fact_argmax[fact]),
                    stopped=reason,
                    delta_norm=float(self.delta[row, 0].norm()),
                    init_norm=float(self.init_norm[row, 0]),
                )
                for fact in (self.problem.fact_owner == row).nonzero().flatten().tolist()
            )
        keep = [row for row in range(len(self.active)) if row not in finished]
        self.active = [self.active[row] for row in keep]
        if not keep:
            return
        self.problem = self.problem.keep(keep)
        self.init_norm, self.delta, self.radius = self.init_norm[keep], self.delta[keep], self.radius[keep]
        self.moment1, self.moment2 = self.moment1[keep], self.moment2[keep]
        self.nll_weight = self.nll_weight[keep]

    def _update(self, gradient: Float[Tensor, "n parts d_model"], t: int) -> None:
        """Adam (β = 0.9, 0.999, ε = 1e-8) on every row, then the clamp of every part."""
        self.moment1 = self.moment1.lerp(gradient, 0.1)
        self.moment2 = self.moment2.lerp(gradient.square(), 0.001)
        scale = (self.moment2 / (1 - 0.999**t)).sqrt() + 1e-8
        step = self.settings.learning_rate * (self.moment1 / (1 - 0.9**t)) / scale
        delta = self.delta - step
        norm = delta.norm(dim=2)
        self.delta = torch.where((norm > self.radius)[..., None], delta * (self.radius / norm)[..., None], delta)

    @property
    def _in_bfloat16(self) -> bool:
        """Half-precision weights multiply in their own dtype; there is nothing to cast."""
        return self.settings.precision == "bfloat16" and self.lm.dtype in (torch.float32, torch.float64)

    def _precision(self) -> ExitStack:
        """Autocast on every kind of device that a block is on: in one context it holds for one kind alone."""
        blocks = range(self.lm.n_layers)
        kinds = {self.lm.device.type, *(self.lm.block_device(layer).type for layer in blocks)}
        with ExitStack() as stack:
            for kind in sorted(kinds) if self._in_bfloat16 else ():
                stack.enter_context(torch.autocast(kind, dtype=torch.bfloat16))
            return stack.pop_all()

    def _refuse_non_finite(self) -> None:
        """The model itself must be sound before anything is searched in it."""
        problem = self.problem
        bad = problem.layout.rows[~problem.final.isfinite().all(dim=1)]
        if len(bad):
            names = ", ".join(repr(self.labels[request]) for request in problem.owner[bad].unique().tolist())
            raise NumericalError(
                f"the model's own activations are not finite for {names}, before any change; expected a model with "
                "finite weights. Load it with --dtype float32, or roll back the edit that broke it"
            )

    def _check_replay(self, again: Float[Tensor, "tokens d_model"]) -> None:
        """At δ = 0 the replay must give, for every request, what the ordinary forward pass gave."""
        problem = self.problem
        again, final = again.to(self.delta.dtype), problem.final.to(self.delta.dtype)
        owner = problem.owner[problem.layout.rows]
        of_request = final.new_zeros(problem.n)
        off = of_request.index_add(0, owner, (again - final).square().sum(dim=1)).sqrt()
        size = of_request.index_add(0, owner, final.square().sum(dim=1)).sqrt()
        error = off / size.clamp_min(1e-12)
        tolerance = REPLAY_TOLERANCE[torch.bfloat16 if self._in_bfloat16 else problem.constant.dtype]
        bad = [self.labels[request] for request, good in enumerate((error <= tolerance).tolist()) if not good]
        if bad:
            raise SelfCheckError(
                f"re-running {self.lm.name!r} from layer {problem.entry.layer} deviates from its forward pass by "
                f"up to {float(error.max()):.2e} relative (expected at most {tolerance:.0e}) for "
                f"{', '.join(map(repr, bad))}; its blocks do more than Emendo knows"
            )
