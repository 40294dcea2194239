"""The target search as it was published: one request at a time, the whole model, every position, every step.

A plain transcription of the constants and the order of operations in the public code of MEMIT (δ at the output of a
whole block), ROME (δ at the output of its MLP) and PMET (a second δ at the output of its attention), on a bare
transformers model. Emendo only says which tokens a sentence has and where its subject ends; the target's tokens are
appended to them as ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from emendo.models import EditableModel
from emendo.models.alignment import align_edit, align_prompt
from emendo.requests import EditRequest

_LLAMA_LIKE = ("cohere", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2")
_LLAMA_LIKE += ("cohere2", "exaone4", "glm", "glm4", "ministral", "ministral3", "nemotron", "olmo", "olmo3", "smollm3")

_ROUTED = ("deepseek_v3", "dots1", "ernie4_5_moe", "glm4_moe", "gpt_oss", "hunyuan_v1_moe", "mixtral", "olmoe")
_ROUTED += ("phimoe", "qwen2_moe", "qwen3_moe")

MODULES = {
    **dict.fromkeys(_ROUTED, ("model.layers", "mlp.experts")),
    "granitemoe": ("model.layers", "block_sparse_moe.experts"),
    **dict.fromkeys(_LLAMA_LIKE, ("model.layers", "mlp.down_proj")),
    **dict.fromkeys(("qwen3", "stablelm"), ("model.layers", "mlp.down_proj")),
    "phi": ("model.layers", "mlp.fc2"),
    "starcoder2": ("model.layers", "mlp.c_proj"),
    "opt": ("model.decoder.layers", "fc2"),
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gpt_neo"), ("transformer.h", "mlp.c_proj")),
    **dict.fromkeys(("codegen", "gptj"), ("transformer.h", "mlp.fc_out")),
    "bloom": ("transformer.h", "mlp.dense_4h_to_h"),
    "falcon": ("transformer.h", "mlp.dense_4h_to_h"),
    "gpt_neox": ("gpt_neox.layers", "mlp.dense_4h_to_h"),
}
"""Where transformers keeps the blocks of a family, and in each block the last linear map of the MLP, or the experts."""

ATTENTION_OUT = {
    **dict.fromkeys((*_LLAMA_LIKE, *_ROUTED, "granitemoe", "qwen3", "stablelm", "starcoder2"), "self_attn.o_proj"),
    **dict.fromkeys(("bloom", "falcon"), "self_attention.dense"),
    "phi": "self_attn.dense",
    "opt": "self_attn.out_proj",
    **dict.fromkeys(("gpt2", "gpt_bigcode"), "attn.c_proj"),
    **dict.fromkeys(("codegen", "gptj"), "attn.out_proj"),
    "gpt_neo": "attn.attention.out_proj",
    "gpt_neox": "attention.dense",
}
"""In each block the last linear map of attention, whose output is attention's own."""


@dataclass(frozen=True)
class Sentences:
    """One request as sentences: all rewriting prompts, then the KL prompt, each with its subject's last token."""

    ids: list[list[int]]
    lookups: list[int]
    target_ids: list[int]


@dataclass
class SerialSearch:
    """What happened at each evaluation of the loss, and what was returned."""

    losses: list[float] = field(default_factory=list)
    nlls: list[float] = field(default_factory=list)
    kls: list[float] = field(default_factory=list)
    argmax: list[bool] = field(default_factory=list)
    deltas: list[Tensor] = field(default_factory=list)
    updates: int = 0
    target_init: Tensor = field(default_factory=lambda: torch.zeros(0))
    first_logits: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def delta(self) -> Tensor:
        """δ at the last evaluation, the one that is returned."""
        return self.deltas[-1]

    def stopped_below(self, loss_threshold: float) -> SerialSearch:
        """The same search, ended at the first loss below a threshold: what comes before does not depend on it."""
        end = next((at + 1 for at, loss in enumerate(self.losses) if loss < loss_threshold), len(self.losses))
        paths = {name: getattr(self, name)[:end] for name in ("losses", "nlls", "kls", "argmax", "deltas")}
        return replace(self, **paths, updates=end - 1)


def sentences_of(
    lm: EditableModel, request: EditRequest, contexts: Sequence[str], end_of_text: bool = False
) -> Sentences:
    """Tokens and lookup positions of a request."""
    edits = [align_edit(lm, request, context, end_of_text=end_of_text) for context in contexts]
    kl_prompt = align_prompt(lm, EditRequest("{} is a", request.subject, request.target))
    return Sentences(
        ids=[[*edit.prompt.ids, *edit.target_ids[:-1]] for edit in edits] + [list(kl_prompt.ids)],
        lookups=[edit.prompt.subject_last for edit in edits] + [kl_prompt.subject_last],
        target_ids=list(edits[0].target_ids),
    )


def serial_search(
    model: Any,
    sentences: Sentences,
    layer: int,
    *,
    site: str = "resid_post",
    steps: int = 25,
    learning_rate: float = 0.5,
    clamp_norm_factor: float = 0.75,
    kl_factor: float = 0.0625,
    weight_decay: float = 0.5,
    loss_threshold: float = 0.05,
    joint_attention: str | None = None,
    argmax_nll_weight: float = 1.0,
    kl_threshold: float = 0.0,
) -> SerialSearch:
    """Search δ for one request; the model's parameters are frozen and stay so.

    `joint_attention` names the last linear map of a block's attention, whose output then gets a δ of its own; the one
    that is returned is the other.
    """
    search = SerialSearch()
    model.requires_grad_(False)
    input_ids, attention_mask = _right_padded(sentences.ids)
    lengths = [len(ids) for ids in sentences.ids]
    rewriting = range(len(sentences.ids) - 1)
    dtype = torch.promote_types(model.dtype, torch.float32)
    width = model.get_input_embeddings().weight.shape[1]
    blocks, down_projection = MODULES[model.config.model_type]
    block = model.get_submodule(blocks)[layer]
    modules = [block if site == "resid_post" else block.get_submodule(down_projection)]
    modules += [] if joint_attention is None else [block.get_submodule(joint_attention)]
    deltas = [torch.zeros(width, dtype=dtype, requires_grad=True) for _ in modules]
    inits: list[Tensor | None] = [None for _ in modules]
    delta, nll_weight = deltas[0], 1.0
    optimizer = torch.optim.Adam(deltas, lr=learning_rate)
    kl_base = None

    def adding(part: int) -> Any:
        def add_delta(module: Any, args: Any, out: Any) -> Any:
            own = out[0] if isinstance(out, tuple) else out
            hidden = own.clone().view(*input_ids.shape, -1)  # OPT's MLP sees all rows as one
            if inits[part] is None:
                inits[part] = hidden[0, sentences.lookups[0]].detach().to(dtype, copy=True)
            for row, lookup in enumerate(sentences.lookups):
                hidden[row, lookup] += deltas[part].to(hidden.dtype)
            hidden = hidden.view(own.shape)
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        return add_delta

    hooks = [module.register_forward_hook(adding(part)) for part, module in enumerate(modules)]
    try:
        for step in range(steps):
            optimizer.zero_grad()
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits.to(dtype)
            log_probs = logits.log_softmax(dim=-1)
            if step == 0:
                search.first_logits = logits.detach()

            n_target = len(sentences.target_ids)
            nll_terms, hits = [], []
            for row in rewriting:
                positions = range(lengths[row] - n_target, lengths[row])
                pairs = list(zip(positions, sentences.target_ids, strict=True))
                nll_terms.append(-sum(log_probs[row, at, token] for at, token in pairs) / n_target)
                hits += [int(logits[row, at].argmax()) == token for at, token in pairs]
            nll = sum(nll_terms) / len(nll_terms)

            kl_log_probs = log_probs[-1, sentences.lookups[-1]][None]
            kl_base = kl_log_probs.detach().clone() if kl_base is None else kl_base
            kl = kl_div(kl_base, kl_log_probs, log_target=True, reduction="batchmean")
            pairs_of = [(own, init) for own, init in zip(deltas, inits, strict=True) if init is not None]
            search.target_init = pairs_of[0][1]
            decay = weight_decay * sum(own.norm() / init.norm() ** 2 for own, init in pairs_of)
            loss = nll_weight * nll + kl_factor * kl + decay
            nll_weight = argmax_nll_weight if all(hits) else 1.0  # from the next evaluation on

            search.losses.append(loss.item())
            search.nlls.append(nll.item())
            search.kls.append(kl.item())
            search.argmax.append(all(hits))
            search.deltas.append(delta.detach().clone())
            diverges_little = kl_threshold > 0 and kl_factor * kl <= kl_threshold
            if loss < loss_threshold or step == steps - 1 or (all(hits) and diverges_little):
                break
            loss.backward()
            optimizer.step()
            search.updates += 1
            for own, init in pairs_of:
                radius = clamp_norm_factor * init.norm()
                if own.norm() > radius:
                    with torch.no_grad():
                        own[...] = own * radius / own.norm()
    finally:
        for hook in hooks:
            hook.remove()
    return search


def _right_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    input_ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    attention_mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return input_ids, attention_mask
