"""The logit lens on a prompt: what each layer would answer, without the edits and with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.arguments import checked
from emendo.attribution.answer import Asked, check_fits, placed
from emendo.attribution.edits import EditSet
from emendo.models import EditableModel
from emendo.models.factored import factored


@dataclass(frozen=True)
class Lens:
    """An answer's first token, read off the residual stream after every layer.

    Attributes:
        before: Its probability without the edits, ``[layers]``.
        after: With them.
        top_before: The most likely token at each layer, without the edits.
        top_after: With them.
    """

    before: Float[Tensor, " layers"]
    after: Float[Tensor, " layers"]
    top_before: tuple[str, ...]
    top_after: tuple[str, ...]


@checked
@torch.no_grad()
def lens(lm: EditableModel, edits: EditSet, asked: Asked) -> Lens:
    """Read the position from which an answer is predicted through the final norm and the unembedding, layer by layer.

    The lower layers of many models do not write in the unembedding's coordinates: read them as a hint.

    Args:
        lm: The model without the edits; it is left as it was.
        edits: The edits.
        asked: Prompt and answer.

    Source: logit lens, nostalgebraist 2020.
    """
    check_fits(lm, edits)
    strengths = torch.tensor([0.0, 1.0], device=lm.device)[:, None].expand(-1, len(edits.owner))
    streams: list[Tensor] = []

    def keep(_module: Any, _args: Any, out: Any) -> None:
        stream = out[0] if isinstance(out, tuple) else out
        streams.append(stream[:, asked.first].to(lm.device))

    with lm.isolated() as own, factored(own, placed(lm, edits), strengths):
        handles = [block.register_forward_hook(keep) for block in own.blocks]
        try:
            ids = torch.tensor([asked.ids] * 2, device=lm.device)
            own.decoder(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        logs = torch.stack([own.unembed(own.finish(stream)).log_softmax(dim=-1) for stream in streams])
    shares = logs[..., asked.answer[0]].double().exp().cpu()
    top = logs.argmax(dim=-1).tolist()
    return Lens(
        shares[:, 0],
        shares[:, 1],
        tuple(lm.decode([row[0]]) for row in top),
        tuple(lm.decode([row[1]]) for row in top),
    )
