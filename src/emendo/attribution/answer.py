"""Which single edits carry an answer: how far each fires, and what each contributes, exactly up to quadrature.

With all edits at strength t, the score f(t) of an answer runs from that of the base model (t = 0) to that of the
edited model (t = 1), and

    Aᵢ = ∫₀¹ Σ_{l,p} (g_{l,p} · r_{l,i}) (q_{l,i} · k_{l,p}) dt        Σ Aᵢ = f(1) − f(0)

where g is the gradient of f at the down-projection's output of layer l and token p. The same numbers sum by edit, by
token and by layer. One forward and one backward pass give them, with the nodes of the quadrature as rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import Count, checked
from emendo.attribution.edits import EditSet
from emendo.errors import InputError
from emendo.models import EditableModel
from emendo.models.alignment import encode_target
from emendo.models.factored import factored
from emendo.models.limits import check_length
from emendo.requests import Prompt

_ROWS = 64
"""Rows of one forward pass."""


@dataclass(frozen=True)
class Asked:
    """A prompt and an answer as tokens.

    Attributes:
        ids: Tokens of the prompt and of the answer but the last.
        answer: Tokens of the answer.
    """

    ids: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def first(self) -> int:
        """Position from which the answer's first token is predicted."""
        return len(self.ids) - len(self.answer)


@dataclass(frozen=True)
class Attribution:
    """What single edits contribute to an answer.

    Attributes:
        tokens: Texts of the tokens.
        before: Log-probability of the answer without the edits, in nats.
        after: With them.
        parts: A by layer, token and edit, ``[layers, tokens, edits]``.
        direct: The part of every edit that goes from the answer's positions straight to the final norm; None in
            families that norm the MLP's output.
        firing: Firing in the edited model, ``[layers, tokens, edits]``; NaN for a whole update.
    """

    tokens: tuple[str, ...]
    before: float
    after: float
    parts: Float[Tensor, "layers tokens edits"]
    direct: Float[Tensor, " edits"] | None
    firing: Float[Tensor, "layers tokens edits"]

    @property
    def by_edit(self) -> Float[Tensor, " edits"]:
        """Contribution of every edit, in nats."""
        return self.parts.sum(dim=(0, 1))

    @property
    def error(self) -> float:
        """How far the contributions are from adding up to the change, in nats: the quadrature's error."""
        return float(self.parts.sum()) - (self.after - self.before)


@checked
def ask(lm: EditableModel, prompt: Prompt, answer: str) -> Asked:
    """Tokens of a prompt, a text or a conversation, and its answer.

    Raises:
        RequestError: The answer is empty, or the tokenizer cannot write it.
        InputError: They are longer than the model has positions for.
    """
    prompt_ids, answer_ids = encode_target(lm, prompt, answer)
    check_length(lm, len(prompt_ids) + len(answer_ids) - 1)
    return Asked((*prompt_ids, *answer_ids[:-1]), tuple(answer_ids))


@checked
def attribute(lm: EditableModel, edits: EditSet, asked: Asked, *, nodes: Count = 16) -> Attribution:
    """Contributions of all edits to the log-probability of an answer.

    Args:
        lm: The model without the edits; it is left as it was.
        edits: The edits.
        asked: Prompt and answer.
        nodes: Points of the Gauss-Legendre quadrature; more make the sum closer to the change.

    Raises:
        InputError: The model holds edits, or has not the layers that the edits write.

    Source: integrated gradients, arXiv 1703.01365, along the strength of all edits at once.
    """
    check_fits(lm, edits)
    points, weights = np.polynomial.legendre.leggauss(nodes)
    scales = torch.tensor([*((points + 1) / 2), 0.0, 1.0], dtype=torch.float32, device=lm.device)
    weights_t = torch.tensor([*(weights / 2), 0.0, 0.0], dtype=torch.float64)
    strengths = scales[:, None].expand(-1, len(edits.owner))
    factors = placed(lm, edits)
    final: list[Tensor] = []
    with (
        lm.isolated() as own,
        torch.enable_grad(),
        factored(own, factors, strengths, differentiable=True) as written,
    ):
        handle = own.blocks[-1].register_forward_hook(lambda _m, _a, out: final.append(_first(out)))
        try:
            scores = _scores(own, asked, len(scales))
        finally:
            handle.remove()
        places = [written.outputs[layer] for layer in edits.layers]
        gradients = torch.autograd.grad(scores.sum(), [*places, final[0]])
    scores = scores.detach().double().cpu()
    parts, firing = [], []
    for layer, gradient in zip(edits.layers, gradients[:-1], strict=True):
        residuals = factors[layer][1]
        fired = written.firing[layer]
        pulled = gradient.view(*fired.shape[:2], -1).to(residuals) @ residuals.T
        parts.append(edits.by_edit(_integrated((pulled * fired).double().cpu(), weights_t)))
        firing.append(_single(edits, fired[-1].double().cpu()))
    direct = None if lm.spec.mlp_normed else _direct(lm, edits, factors, written.firing, gradients[-1], weights_t)
    return Attribution(
        tokens=tuple(lm.decode([token]) for token in asked.ids),
        before=float(scores[-2]),
        after=float(scores[-1]),
        parts=torch.stack(parts),
        direct=direct,
        firing=torch.stack(firing),
    )


@checked
@torch.no_grad()
def leave_out(
    lm: EditableModel, edits: EditSet, asked: Asked, left_out: Sequence[Sequence[int]]
) -> Float[Tensor, " sets"]:
    """Log-probability of an answer with all edits but some.

    Args:
        lm: The model without the edits.
        edits: The edits.
        asked: Prompt and answer.
        left_out: Sets of edits to leave out; an empty one leaves all in.
    """
    check_fits(lm, edits)
    if bad := [edit for some in left_out for edit in some if not 0 <= edit < len(edits.edits)]:
        raise InputError(f"found edit {bad[0]} to leave out; expected 0 to {len(edits.edits) - 1} (left_out=)")
    factors = placed(lm, edits)
    found = [torch.empty(0, dtype=torch.float64)]
    for start in range(0, len(left_out), _ROWS):
        chunk = left_out[start : start + _ROWS]
        kept = torch.ones(len(chunk), len(edits.edits), device=lm.device)
        for row, missing in zip(kept, chunk, strict=True):
            row[list(missing)] = 0.0
        with lm.isolated() as own, factored(own, factors, edits.strengths(kept)):
            found.append(_scores(own, asked, len(chunk)).double().cpu())
    return torch.cat(found)


def _scores(lm: EditableModel, asked: Asked, rows: int) -> Float[Tensor, " rows"]:
    """Log-probability of the answer in every row."""
    ids = torch.tensor([asked.ids] * rows, device=lm.device)
    out: Any = lm.decoder(input_ids=ids, use_cache=False, return_dict=True)
    hidden = out.last_hidden_state[:, asked.first :].to(lm.device)
    logs = lm.unembed(hidden).log_softmax(dim=-1)
    answer = torch.tensor(asked.answer, device=logs.device).expand(rows, -1)
    return logs.gather(-1, answer[..., None])[..., 0].sum(dim=1)


def _direct(
    lm: EditableModel,
    edits: EditSet,
    factors: dict[int, tuple[Tensor, Tensor]],
    firing: dict[int, Tensor],
    gradient: Tensor,
    weights: Tensor,
) -> Float[Tensor, " edits"]:
    """What goes from a write to the final norm at the same token, past no other block."""
    total = torch.zeros(len(edits.owner), dtype=torch.float64)
    for layer in edits.layers:
        residuals, fired = factors[layer][1], firing[layer]
        pulled = gradient.to(residuals) @ (lm.mlp_scale * residuals).T
        total += _integrated((pulled * fired).double().cpu(), weights).sum(dim=0)
    return edits.by_edit(total)


def _integrated(
    rows: Float[Tensor, "nodes tokens rows"], weights: Float[Tensor, " nodes"]
) -> Float[Tensor, "tokens rows"]:
    return (rows * weights[:, None, None]).sum(dim=0)


def _single(edits: EditSet, rows: Float[Tensor, "tokens rows"]) -> Float[Tensor, "tokens edits"]:
    """Firing of single edits; a whole update has no single number."""
    whole = torch.tensor([edit.whole for edit in edits.edits])
    return edits.by_edit(rows).masked_fill(whole, float("nan"))


def placed(lm: EditableModel, edits: EditSet) -> dict[int, tuple[Tensor, Tensor]]:
    """Factors where their layers compute, in float32 or better."""
    dtype = torch.promote_types(lm.dtype, torch.float32)
    return {
        layer: (
            torch.from_numpy(q).to(lm.block_device(layer), dtype),
            torch.from_numpy(r).to(lm.block_device(layer), dtype),
        )
        for layer, (q, r) in edits.factors.items()
    }


def _first(out: Any) -> Tensor:
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def check_fits(lm: EditableModel, edits: EditSet) -> None:
    """Refuse a model that the edits are in already, or cannot be in."""
    if lm.holds_edits:
        raise InputError(
            f"{lm.name!r} holds edits; expected the unedited model, beside which the edits are run: roll back "
            "first (session.rollback())"
        )
    for layer, (dual_keys, residuals) in edits.factors.items():
        shape = (residuals.shape[1], dual_keys.shape[1])
        if layer >= lm.n_layers or tuple(lm.weight(layer).shape) != shape:
            raise InputError(
                f"the edits write layer {layer} as {shape} [d_out, d_in], which {lm.name!r} does not have; "
                "expected updates of this model (--model)"
            )
