"""The loss of the target search, for many requests at once.

For request i with contexts c and target tokens t::

    loss_i = mean_c mean_t −log p(target_t | context_c(prompt), δ_i)          make the target likely
           + kl_weight · KL(p(· | subject, δ_i) ‖ p(· | subject))             keep what the subject is
           + weight_decay · ‖δ_i‖ / ‖init_i‖²                                 stay small

Source: public code of MEMIT (arXiv 2210.07229); `algorithms` section B of the design gives the constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emendo.models import ModelAdapter
from emendo.models.suffix import SuffixLayout, prefill, replay, select_rows
from emendo.requests import SLOT, EditRequest
from emendo.text import align_edit, align_prompt


@dataclass(frozen=True)
class Losses:
    """Loss terms of each request at the current δ; `total` carries the graph.

    Attributes:
        total: What is minimised, nats, ``[n]``.
        nll: Mean negative log-likelihood of the target tokens over contexts, nats, ``[n]``.
        kl: Divergence on the subject's own prompt, nats, ``[n]``.
        argmax: Whether every target token is the argmax in every context, ``[n]``.
        final: Hidden states after the final norm that the losses were read from, ``[tokens, d_model]``.
    """

    total: Float[Tensor, " n"]
    nll: Float[Tensor, " n"]
    kl: Float[Tensor, " n"]
    argmax: Bool[Tensor, " n"]
    final: Float[Tensor, "tokens d_model"]


@dataclass(frozen=True)
class TargetProblem:
    """Everything about a batch of requests that δ cannot change, ready to be replayed.

    Rows come request by request: its contexts, then its KL prompt.

    Attributes:
        constant: Residual stream at the edit layer without δ, packed suffix tokens ``[tokens, d_model]``.
        layout: Where the packed tokens stand.
        subjects: Packed token of each row's subject end, where δ is added, ``[rows]``.
        owner: Request of each row, ``[rows]``.
        scored: Packed tokens that predict target tokens, ``[scores]``.
        labels: The target token each of them should predict, ``[scores]``.
        score_owner: Request of each scored token, ``[scores]``.
        score_weight: Share of each scored token in its request's NLL, ``[scores]``.
        kl_tokens: Packed token of each request's KL prompt, ``[n]``.
        base_logp: Next-token log-probabilities there at δ = 0, ``[n, vocab]``.
        final: Final hidden states without δ from the ordinary forward pass, ``[tokens, d_model]``.
    """

    constant: Float[Tensor, "tokens d_model"]
    layout: SuffixLayout
    subjects: Int[Tensor, " rows"]
    owner: Int[Tensor, " rows"]
    scored: Int[Tensor, " scores"]
    labels: Int[Tensor, " scores"]
    score_owner: Int[Tensor, " scores"]
    score_weight: Float[Tensor, " scores"]
    kl_tokens: Int[Tensor, " n"]
    base_logp: Float[Tensor, "n vocab"]
    final: Float[Tensor, "tokens d_model"]

    @property
    def n(self) -> int:
        """Number of requests."""
        return len(self.kl_tokens)

    def losses(
        self,
        adapter: ModelAdapter,
        layer: int,
        delta: Float[Tensor, "n d_model"],
        init_norm: Float[Tensor, " n"],
        *,
        kl_weight: float,
        weight_decay: float,
    ) -> Losses:
        """Loss terms at `delta`; call inside `packed_attention`."""
        shifted = self.constant.index_add(0, self.subjects, delta[self.owner].to(self.constant.dtype))
        final = replay(adapter, shifted, self.layout, layer)
        logits = adapter.unembed(final[torch.cat([self.scored, self.kl_tokens])])
        target_logits, kl_logits = logits.split([len(self.scored), self.n])
        chosen = target_logits.gather(1, self.labels[:, None])[:, 0]
        token_nll = target_logits.logsumexp(dim=1) - chosen
        nll = delta.new_zeros(self.n).index_add(0, self.score_owner, (token_nll * self.score_weight).to(delta.dtype))
        logp = kl_logits.log_softmax(dim=1)
        kl = (logp.exp() * (logp - self.base_logp)).sum(dim=1).to(delta.dtype)
        decay = delta.norm(dim=1) / init_norm.square()
        with torch.no_grad():
            missed = delta.new_zeros(self.n).index_add(
                0, self.score_owner, (target_logits.argmax(dim=1) != self.labels).to(delta.dtype)
            )
        total = nll + kl_weight * kl + weight_decay * decay
        return Losses(total, nll.detach(), kl.detach(), missed == 0, final.detach())

    def keep(self, requests: Sequence[int]) -> TargetProblem:
        """The same problem for some of its requests, in ascending order."""
        device = self.owner.device
        kept = torch.tensor(list(requests), device=device)
        renumber = torch.full((self.n,), -1, device=device)
        renumber[kept] = torch.arange(len(requests), device=device)
        rows = torch.nonzero(renumber[self.owner] >= 0).flatten()
        layout, tokens = select_rows(self.layout, rows.tolist())
        token_number = torch.full((len(self.constant),), -1, device=device)
        token_number[tokens] = torch.arange(len(tokens), device=device)
        scores = torch.nonzero(renumber[self.score_owner] >= 0).flatten()
        return TargetProblem(
            constant=self.constant[tokens],
            layout=layout,
            subjects=token_number[self.subjects[rows]],
            owner=renumber[self.owner[rows]],
            scored=token_number[self.scored[scores]],
            labels=self.labels[scores],
            score_owner=renumber[self.score_owner[scores]],
            score_weight=self.score_weight[scores],
            kl_tokens=token_number[self.kl_tokens[kept]],
            base_logp=self.base_logp[kept],
            final=self.final[tokens],
        )


def target_problem(
    adapter: ModelAdapter, requests: Sequence[EditRequest], contexts: Sequence[str], layer: int
) -> tuple[TargetProblem, Float[Tensor, "n d_model"], Float[Tensor, "n d_model"]]:
    """Align requests in all contexts and run the constant part once.

    Args:
        adapter: The model.
        requests: The facts to write.
        contexts: Templates with one ``{}`` for the whole prompt; the first is the plain prompt.
        layer: Where δ enters.

    Returns:
        The problem, and at the plain prompt's subject end the residual stream and the MLP output of `layer`.
    """
    sequences: list[tuple[int, ...]] = []
    starts: list[int] = []
    owner: list[int] = []
    labels: list[int] = []
    score_owner: list[int] = []
    score_weight: list[float] = []
    score_at: list[tuple[int, int]] = []  # row, step
    kl_rows: list[int] = []
    for number, request in enumerate(requests):
        for context in contexts:
            edit = align_edit(adapter, request, context)
            row, length = len(sequences), len(edit.ids)
            first = length - len(edit.target_ids)
            score_at += [(row, at - edit.prompt.subject_last) for at in range(first, length)]
            labels += edit.target_ids
            score_owner += [number] * len(edit.target_ids)
            score_weight += [1 / (len(contexts) * len(edit.target_ids))] * len(edit.target_ids)
            sequences.append(edit.ids)
            starts.append(edit.prompt.subject_last)
            owner.append(number)
        essence = align_prompt(adapter, EditRequest(f"{SLOT} is a", request.subject, request.target))
        # The words after the subject cannot influence its last token, so they are not run.
        kl_rows.append(len(sequences))
        sequences.append(essence.ids[: essence.subject_last + 1])
        starts.append(essence.subject_last)
        owner.append(number)
    constant = prefill(adapter, adapter.batch(sequences), starts, layer)
    device, precision = constant.hidden.device, torch.promote_types(constant.hidden.dtype, torch.float32)
    lengths = torch.tensor([len(ids) - at for ids, at in zip(sequences, starts, strict=True)])
    begins = (lengths.cumsum(0) - lengths).to(device)
    where = torch.tensor(score_at, device=device)
    kl_tokens = begins[torch.tensor(kl_rows, device=device)]
    problem = TargetProblem(
        constant=constant.hidden,
        layout=constant.layout,
        subjects=begins,
        owner=torch.tensor(owner, device=device),
        scored=begins[where[:, 0]] + where[:, 1],
        labels=torch.tensor(labels, device=device),
        score_owner=torch.tensor(score_owner, device=device),
        score_weight=torch.tensor(score_weight, dtype=precision, device=device),
        kl_tokens=kl_tokens,
        base_logp=adapter.unembed(constant.final[kl_tokens]).log_softmax(dim=1).detach(),
        final=constant.final,
    )
    plain = begins[torch.arange(len(requests), device=device) * (len(contexts) + 1)]
    return problem, constant.hidden[plain].to(precision), constant.mlp_out[plain].to(precision)
