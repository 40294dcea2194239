"""One cell by an ordinary forward pass with hooks: what every run of the wave is compared with."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from emendo.errors import SelfCheckError
from emendo.models import EditableModel
from emendo.models.wave import changing
from emendo.tracing.corrupt import Corrupted, corrupting
from emendo.tracing.grid import held
from emendo.tracing.runs import Runs
from emendo.tracing.settings import Kind, TraceSettings, is_hidden, module_of


@torch.no_grad()
def cell_by_forward(
    lm: EditableModel, corrupted: Corrupted, runs: Runs, kind: Kind, t: int, layer: int, settings: TraceSettings
) -> Float[Tensor, " samples"]:
    """Scores of one cell, from whole forward passes over all rows.

    Args:
        lm: The model.
        corrupted: Inputs of the fact.
        runs: Its runs: the metric, and what a severed module is held at.
        kind: What is restored.
        t: Token.
        layer: Layer.
        settings: Window.

    Source: ROME, arXiv 2202.05262, section 2: clean and corrupted rows in one batch, states copied from row 0.
    """

    def restore(out: Tensor) -> Tensor:
        out = out.clone()
        rows = out.view(*corrupted.ids.shape, -1)
        rows[1:, t] = rows[0, t]
        return out

    def sever(value: Tensor, out: Tensor) -> Tensor:
        out = out.clone()
        out.view(*corrupted.ids.shape, -1)[1:, t] = value.to(out)
        return out

    module = module_of(kind)
    with ExitStack() as stack:
        lm = stack.enter_context(lm.isolated())
        stack.enter_context(corrupting(lm, corrupted))
        if is_hidden(kind):
            stack.enter_context(changing(lm.blocks[layer], restore))
            if module is not None:
                outputs = runs.capture.mlp_out if module == "mlp" else runs.capture.attention_out
                for above in range(layer + 1, lm.n_layers):
                    stack.enter_context(held(lm, above, module, partial(sever, outputs[above][1:, t])))
        else:
            assert module is not None
            for inside in settings.span(layer, lm.n_layers):
                stack.enter_context(held(lm, inside, module, restore))
        hidden = lm.decoder(input_ids=corrupted.ids, use_cache=False, return_dict=True).last_hidden_state
    return runs.scorer(lm.unembed(hidden[1:, -1].to(lm.device))).cpu()


def check_cell(
    lm: EditableModel,
    corrupted: Corrupted,
    runs: Runs,
    kind: Kind,
    t: int,
    layer: int,
    settings: TraceSettings,
    found: Float[Tensor, " samples"],
) -> float:
    """Hold one cell of the wave against an ordinary forward pass.

    Returns:
        Largest difference over the samples.

    Raises:
        SelfCheckError: They differ by more than rounding.
    """
    expected = cell_by_forward(lm, corrupted, runs, kind, t, layer, settings)
    difference = float((expected - found).abs().max())
    most = tolerance(torch.bfloat16 if lm.rounds_inputs else lm.dtype) * max(1.0, float(expected.abs().max()))
    if not difference <= most:
        raise SelfCheckError(
            f"tracing {lm.name!r} ({kind}, token {t}, layer {layer}) gives a score {difference:.2g} away from an "
            f"ordinary forward pass, more than rounding explains ({most:.2g}): a block of this model does more than "
            "Emendo knows, so nothing was traced. Please report the model; other models of the table can be traced"
        )
    return difference


def tolerance(dtype: torch.dtype) -> float:
    """Difference of a probability that rounding in a dtype explains."""
    return {torch.float64: 1e-9, torch.float32: 5e-5}.get(dtype, 0.05)
