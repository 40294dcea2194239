"""Causal tracing as plain loops over hooked forward passes, and a model that is the same on every processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from emendo.models import EditableModel
from tests.conftest import build_tokenizer, tiny_config


def arithmetic_gpt2() -> EditableModel:
    """A tiny GPT-2 whose weights come from integers: no generator draws them, so recorded numbers hold everywhere."""
    tokenizer = build_tokenizer()
    model = AutoModelForCausalLM.from_config(tiny_config("gpt2", len(tokenizer)))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            place = torch.arange(parameter.numel(), dtype=torch.int64)
            drawn = ((place * 7919 + number * 104729 + place * place * 31) % 2003).double() / 2003 - 0.5
            norm = parameter.dim() == 1 and number > 1
            parameter.copy_((drawn * (0.2 if norm else 0.8) + (1.0 if norm else 0.0)).view(parameter.shape))
    return EditableModel(model.eval(), tokenizer, name="arithmetic-gpt2")


def naive_scores(
    lm: EditableModel,
    ids: list[int],
    subject: tuple[int, int],
    noise: Tensor,
    kind: str,
    cell: tuple[int, int],
    answer: int,
    window: int,
) -> np.ndarray:
    """Log-probability of the answer in every corrupted row with one state restored, by the model's own forward pass.

    Args:
        lm: The model.
        ids: Its prompt.
        subject: First token of the subject, and one past its last.
        noise: ``[samples, subject, d_model]``.
        kind: As `emendo.tracing` names them.
        cell: Token and layer.
        answer: Token.
        window: Of MLP and attention.
    """
    t, layer = cell
    rows = torch.tensor([ids] * (len(noise) + 1))
    begin, end = subject
    severed = {"hidden-without-mlp": "mlp", "hidden-without-attention": "attention"}.get(kind)
    layers = range(lm.n_layers)
    spots = {
        "mlp": [lm.down_projection(i) for i in layers],
        "attention": [lm.attention_output(i) for i in layers],
        "hidden": list(lm.blocks),
    }
    corrupted: dict[int, Tensor] = {}
    handles: list[Any] = []

    def first(out: Any) -> Tensor:
        return out[0] if isinstance(out, tuple) else out

    def put(module: Any, value: Any) -> None:
        """Rows 1 and on have `value(rows)` at token t of the module's output."""

        def hook(_m: Any, _a: Any, out: Any) -> Any:
            new = first(out).clone()
            grid = new.view(rows.shape[0], rows.shape[1], -1)
            grid[1:, t] = value(grid)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        handles.append(module.register_forward_hook(hook))

    def corrupt(_m: Any, _a: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[1:, begin:end] += noise.to(out)
        return out

    def run() -> Tensor:
        with torch.no_grad():
            return lm.model(input_ids=rows, use_cache=False).logits

    try:
        handles.append(lm.model.get_input_embeddings().register_forward_hook(corrupt))
        if severed:
            keep = []
            for i in layers:

                def note(_m: Any, _a: Any, out: Any, i: int = i) -> None:
                    corrupted[i] = first(out).clone().view(rows.shape[0], rows.shape[1], -1)[1:, t]

                keep.append(spots[severed][i].register_forward_hook(note))
            run()
            for handle in keep:
                handle.remove()
            for i in range(layer + 1, lm.n_layers):
                put(spots[severed][i], lambda grid, i=i: corrupted[i])
        if kind.startswith("hidden"):
            put(spots["hidden"][layer], lambda grid: grid[0, t])
        else:
            for i in range(max(0, layer - window // 2), min(lm.n_layers, layer - (-window // 2))):
                put(spots[kind][i], lambda grid: grid[0, t])
        logits = run()[1:, -1]
    finally:
        for handle in handles:
            handle.remove()
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)[:, answer].double().numpy()
