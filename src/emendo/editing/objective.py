"""The loss of the target search, for many requests at once.

For request i with contexts c and target tokens t::

    loss_i = mean_c mean_t −log p(target_t | context_c(prompt), δ_i)          make the target likely
           + word_end_weight · mean_c max(0, log(enough) − log e_c(δ_i))            and end its last word
           + kl_weight · KL(p(· | subject, δ_i) ‖ p(· | subject))             keep what the subject is
           + weight_decay · Σ_parts ‖δ_i‖ / ‖init_i‖²                         stay small

    e_c(δ) = Σ_{t ends the word} p(t | context_c(prompt) target, δ)

δ has one part or two: what is added to the residual stream or to the MLP's output, and (PMET) what is added to the
attention's output beside it. It enters after the block where that is the same thing and cheapest, and inside it where
it is not: when the MLP's output is normed before it joins the stream, or when attention has a part of its own.

Source: public code of MEMIT (arXiv 2210.07229) and PMET (arXiv 2308.08742).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from emendo.methods.settings import Site
from emendo.models import EditableModel, adding
from emendo.models.alignment import AlignedEdit, align_prompt, target_tokens
from emendo.models.suffix import Prefill, SuffixLayout, prefill, replay, select_rows
from emendo.models.word_end import ends_in_word, word_end_tokens
from emendo.requests import SLOT, AnyContext, Chat, Context, EditRequest, asks_in_chat


@dataclass(frozen=True)
class Terms:
    """Weights of the loss terms.

    Args:
        kl: Of the divergence on the subject's own prompt.
        decay: Of ‖δ‖/‖init‖².
        word_end: Of the target's last word going on.
        enough: Probability of its end from which that term is 0.
    """

    kl: float = 0.0625
    decay: float = 0.5
    word_end: float = 0.0
    enough: float = 1.0


@dataclass(frozen=True)
class InjectionSite:
    """Where δ enters the model.

    Args:
        layer: The block.
        site: What δ is measured against: the block's output or the MLP's.
        joint_attention: δ has a second part, added to the attention's output.
        inside: It enters inside the block, which is then run again in every step.
        scale: Factor from δ to what is added after the block.
    """

    layer: int
    site: Site
    joint_attention: bool
    inside: bool
    scale: float

    @classmethod
    def at(cls, lm: EditableModel, layer: int, site: Site, joint_attention: bool = False) -> InjectionSite:
        """The cheapest exact way in for this family."""
        inside = joint_attention or (site == "mlp_out" and lm.spec.mlp_normed)
        return cls(layer, site, joint_attention, inside, lm.mlp_scale if site == "mlp_out" else 1.0)

    def init(self, constant: Prefill) -> Float[Tensor, "tokens parts d_model"]:
        """The vectors that δ is added to, at every packed token."""
        own = constant.resid if self.site == "resid_post" else constant.mlp_out
        parts = [own, constant.attention_out] if self.joint_attention else [own]
        return torch.stack(parts, dim=1)

    def replay(
        self,
        lm: EditableModel,
        constant: Float[Tensor, "tokens d_model"],
        layout: SuffixLayout,
        subjects: Int[Tensor, " rows"],
        delta: Float[Tensor, "rows parts d_model"],
    ) -> Float[Tensor, "tokens d_model"]:
        """Final hidden states with δ added at the rows' subject tokens; differentiable in δ."""
        delta = delta.to(constant.dtype)
        if not self.inside:
            shifted = constant.index_add(0, subjects, self.scale * delta[:, 0])
            return replay(lm, shifted, layout, self.layer)
        added = [torch.zeros_like(constant).index_add(0, subjects, part) for part in delta.unbind(1)]
        attention = added[1] if self.joint_attention else None
        with adding(lm, self.layer, mlp=added[0], attention=attention):
            return replay(lm, constant, layout, self.layer - 1)


@dataclass(frozen=True)
class Losses:
    """Loss terms of each request at the current δ; `total` carries the graph.

    Attributes:
        total: What is minimised, nats, ``[n]``.
        nll: Mean negative log-likelihood of the target tokens over contexts, nats, ``[n]``.
        kl: Divergence on the subject's own prompt, nats, ``[n]``.
        argmax: Whether every target token is the argmax in every context, ``[n]``.
        fact_nll: `nll` of each fact by itself, ``[facts]``: several of a request that stands for a group.
        fact_argmax: `argmax` of each fact by itself, ``[facts]``.
        ended: Whether the argmax after the target ends its last word in every context, ``[n]``; true where not asked.
        final: Hidden states after the final norm that the losses were read from, ``[tokens, d_model]``.
    """

    total: Float[Tensor, " n"]
    nll: Float[Tensor, " n"]
    kl: Float[Tensor, " n"]
    argmax: Bool[Tensor, " n"]
    fact_nll: Float[Tensor, " facts"]
    fact_argmax: Bool[Tensor, " facts"]
    ended: Bool[Tensor, " n"]
    final: Float[Tensor, "tokens d_model"]


@dataclass(frozen=True)
class ValueProblem:
    """Everything about a batch of requests that δ cannot change, ready to be replayed.

    Rows come request by request: its contexts, then its KL prompt.

    Attributes:
        entry: Where δ enters.
        constant: Residual stream without δ where the replay starts, packed suffix tokens ``[tokens, d_model]``.
        layout: Where the packed tokens stand.
        subjects: Packed token of each row's subject end, where δ is added, ``[rows]``.
        owner: Request of each row, ``[rows]``.
        scored: Packed tokens that predict target tokens, ``[scores]``.
        labels: The target token each of them should predict, ``[scores]``.
        score_owner: Request of each scored token, ``[scores]``.
        score_weight: Share of each scored token in its request's NLL, ``[scores]``.
        score_fact: Fact of each scored token, ``[scores]``.
        fact_owner: Request of each fact, ascending, ``[facts]``; several where a group of them is one request.
        ends: Packed last token of each target whose word is to end there, ``[ends]``.
        end_owner: Request of each of them, ``[ends]``.
        end_weight: Its share in the request's mean, ``[ends]``.
        ending: The tokens that end a word, as ids, ``[ending]``.
        kl_tokens: Packed token of each request's KL prompt, ``[n]``.
        base_logp: Next-token log-probabilities there at δ = 0, ``[n, vocab]``.
        final: Final hidden states without δ from the ordinary forward pass, ``[tokens, d_model]``.
    """

    entry: InjectionSite
    constant: Float[Tensor, "tokens d_model"]
    layout: SuffixLayout
    subjects: Int[Tensor, " rows"]
    owner: Int[Tensor, " rows"]
    scored: Int[Tensor, " scores"]
    labels: Int[Tensor, " scores"]
    score_owner: Int[Tensor, " scores"]
    score_weight: Float[Tensor, " scores"]
    score_fact: Int[Tensor, " scores"]
    fact_owner: Int[Tensor, " facts"]
    ends: Int[Tensor, " ends"]
    end_owner: Int[Tensor, " ends"]
    end_weight: Float[Tensor, " ends"]
    ending: Int[Tensor, " ending"]
    kl_tokens: Int[Tensor, " n"]
    base_logp: Float[Tensor, "n vocab"]
    final: Float[Tensor, "tokens d_model"]

    @property
    def n(self) -> int:
        """Number of requests."""
        return len(self.kl_tokens)

    def losses(
        self,
        lm: EditableModel,
        delta: Float[Tensor, "n parts d_model"],
        init_norm: Float[Tensor, "n parts"],
        terms: Terms,
        nll_weight: Float[Tensor, " n"] | None = None,
    ) -> Losses:
        """Loss terms at `delta`; call inside `packed_attention`.

        Args:
            lm: The model.
            delta: δ.
            init_norm: ‖init‖ of every part.
            terms: Weights of the terms.
            nll_weight: Weight of each request's NLL in its total; 1 unless given.
        """
        final = self.entry.replay(lm, self.constant, self.layout, self.subjects, delta[self.owner])
        logits = lm.unembed_in_search(final[torch.cat([self.scored, self.kl_tokens, self.ends])])
        target_logits, kl_logits, end_logits = logits.split([len(self.scored), self.n, len(self.ends)])
        chosen = target_logits.gather(1, self.labels[:, None])[:, 0]
        token_nll = target_logits.logsumexp(dim=1) - chosen
        nll = delta.new_zeros(self.n).index_add(0, self.score_owner, (token_nll * self.score_weight).to(delta.dtype))
        logp = kl_logits.log_softmax(dim=1)
        kl = (logp.exp() * (logp - self.base_logp)).sum(dim=1).to(delta.dtype)
        decay = (delta.norm(dim=2) / init_norm.square()).sum(dim=1)
        with torch.no_grad():
            none = delta.new_zeros(len(self.fact_owner))
            sizes = torch.bincount(self.fact_owner, minlength=self.n)
            weighted = token_nll * self.score_weight * sizes[self.score_owner]
            fact_nll = none.index_add(0, self.score_fact, weighted.to(delta.dtype))
            wrong = (target_logits.argmax(dim=1) != self.labels).to(delta.dtype)
            fact_missed = none.index_add(0, self.score_fact, wrong)
            missed = delta.new_zeros(self.n).index_add(0, self.fact_owner, fact_missed)
            runs_on = ~torch.isin(end_logits.argmax(dim=1), self.ending)
            unended = delta.new_zeros(self.n).index_add(0, self.end_owner, runs_on.to(delta.dtype))
        total = (nll if nll_weight is None else nll_weight * nll) + terms.kl * kl + terms.decay * decay
        if len(self.ends):
            going_on = end_logits.logsumexp(dim=1) - end_logits[:, self.ending].logsumexp(dim=1)
            missing = (going_on + math.log(terms.enough)).clamp_min(0)
            shares = (missing * self.end_weight).to(delta.dtype)
            total = total + terms.word_end * delta.new_zeros(self.n).index_add(0, self.end_owner, shares)
        reached = missed == 0, fact_nll, fact_missed == 0, unended == 0
        return Losses(total, nll.detach(), kl.detach(), *reached, final.detach())

    def keep(self, requests: Sequence[int]) -> ValueProblem:
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
        facts = torch.nonzero(renumber[self.fact_owner] >= 0).flatten()
        fact_number = torch.full((len(self.fact_owner),), -1, device=device)
        fact_number[facts] = torch.arange(len(facts), device=device)
        ends = torch.nonzero(renumber[self.end_owner] >= 0).flatten()
        return ValueProblem(
            entry=self.entry,
            constant=self.constant[tokens],
            layout=layout,
            subjects=token_number[self.subjects[rows]],
            owner=renumber[self.owner[rows]],
            scored=token_number[self.scored[scores]],
            labels=self.labels[scores],
            score_owner=renumber[self.score_owner[scores]],
            score_weight=self.score_weight[scores],
            score_fact=fact_number[self.score_fact[scores]],
            fact_owner=renumber[self.fact_owner[facts]],
            ends=token_number[self.ends[ends]],
            end_owner=renumber[self.end_owner[ends]],
            end_weight=self.end_weight[ends],
            ending=self.ending,
            kl_tokens=token_number[self.kl_tokens[kept]],
            base_logp=self.base_logp[kept],
            final=self.final[tokens],
        )


def value_problem(
    lm: EditableModel,
    groups: Sequence[Sequence[EditRequest]],
    contexts: Sequence[AnyContext],
    entry: InjectionSite,
    *,
    end_of_text: bool = False,
    word_end: bool = False,
) -> tuple[ValueProblem, Float[Tensor, "n parts d_model"]]:
    """Align requests in all contexts and run the constant part once.

    Args:
        lm: The model.
        groups: The facts to write; the requests of a group share δ.
        contexts: Templates with one ``{}`` for the whole prompt, or `Context`; the first is the plain prompt.
        entry: Where δ enters.
        end_of_text: The model's end-of-text token is the last token of every target.
        word_end: A target that ends in a word is to end it there.

    Returns:
        The problem, in which a group counts as one request, and what δ is added to: the group's mean over plain
        prompts, at the subject's end.
    """
    sequences: list[tuple[int, ...]] = []
    starts: list[int] = []
    owner: list[int] = []
    labels: list[int] = []
    score_owner: list[int] = []
    score_weight: list[float] = []
    score_fact: list[int] = []
    fact_owner: list[int] = []
    score_at: list[tuple[int, int]] = []  # row, step
    end_at: list[tuple[int, int]] = []
    end_owner: list[int] = []
    end_weight: list[float] = []
    kl_rows: list[int] = []
    plain_rows: list[int] = []
    for number, group in enumerate(groups):
        for request in group:
            plain_rows.append(len(sequences))
            fact_owner.append(number)
            target_ids: dict[bool, tuple[int, ...]] = {}  # in raw text and in chat
            for context in contexts:
                if (in_chat := asks_in_chat(request, context)) not in target_ids:
                    target_ids[in_chat] = target_tokens(lm, request, context, end_of_text=end_of_text)
                edit = AlignedEdit(align_prompt(lm, request, context), target_ids[in_chat])
                row, length, n_tokens = len(sequences), len(edit.ids), len(edit.target_ids)
                score_at += [(row, at - edit.prompt.subject_last) for at in range(length - n_tokens, length)]
                labels += edit.target_ids
                score_owner += [number] * n_tokens
                score_fact += [len(fact_owner) - 1] * n_tokens
                score_weight += [1 / (len(group) * len(contexts) * n_tokens)] * n_tokens
                sequences.append(edit.ids)
                if word_end and not end_of_text and ends_in_word(request):
                    sequences[row] += edit.target_ids[-1:]
                    end_at.append((row, length - edit.prompt.subject_last))
                    end_owner.append(number)
                    end_weight.append(1 / (len(group) * len(contexts)))
                starts.append(edit.prompt.subject_last)
                owner.append(number)
        essence = align_prompt(lm, *_essence(group[0], contexts))
        # The words after the subject cannot influence its last token, so they are not run.
        kl_rows.append(len(sequences))
        sequences.append(essence.ids[: essence.subject_last + 1])
        starts.append(essence.subject_last)
        owner.append(number)
    constant = prefill(lm, lm.batch(sequences), starts, entry.layer)
    device, precision = constant.final.device, torch.promote_types(constant.final.dtype, torch.float32)
    lengths = torch.tensor([len(ids) - at for ids, at in zip(sequences, starts, strict=True)])
    begins = (lengths.cumsum(0) - lengths).to(device)
    where = torch.tensor(score_at, device=device)
    end = torch.tensor(end_at, dtype=torch.long, device=device).reshape(-1, 2)
    ending = torch.nonzero(word_end_tokens(lm)).flatten() if end_at else end[:, 0]
    kl_tokens = begins[torch.tensor(kl_rows, device=device)]
    problem = ValueProblem(
        entry=entry,
        constant=constant.entering if entry.inside else constant.resid,
        layout=constant.layout,
        subjects=begins,
        owner=torch.tensor(owner, device=device),
        scored=begins[where[:, 0]] + where[:, 1],
        labels=torch.tensor(labels, device=device),
        score_owner=torch.tensor(score_owner, device=device),
        score_weight=torch.tensor(score_weight, dtype=precision, device=device),
        score_fact=torch.tensor(score_fact, device=device),
        fact_owner=torch.tensor(fact_owner, device=device),
        ends=begins[end[:, 0]] + end[:, 1],
        end_owner=torch.tensor(end_owner, dtype=torch.long, device=device),
        end_weight=torch.tensor(end_weight, dtype=precision, device=device),
        ending=ending,
        kl_tokens=kl_tokens,
        base_logp=lm.unembed_in_search(constant.final[kl_tokens]).log_softmax(dim=1).detach(),
        final=constant.final,
    )
    plain = entry.init(constant)[begins[torch.tensor(plain_rows, device=device)]].to(precision)
    sizes = torch.tensor([len(group) for group in groups], device=device)
    member = torch.repeat_interleave(torch.arange(len(groups), device=device), sizes)
    init = plain.new_zeros(len(groups), *plain.shape[1:]).index_add(0, member, plain) / sizes.to(plain)[:, None, None]
    return problem, init


def _essence(request: EditRequest, contexts: Sequence[AnyContext]) -> tuple[EditRequest, AnyContext]:
    """The prompt of the divergence, and its context: text, or a message where the plain prompt is one."""
    plain = contexts[0] if isinstance(contexts[0], Context) else SLOT
    chat = None if request.chat is None else Chat()
    return EditRequest(f"{SLOT} is a", request.subject, request.target, chat=chat), plain
