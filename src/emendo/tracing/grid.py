"""All cells of a fact, exactly, in one pass over the layers for each token: the wave.

A cell restores one token at one layer in every corrupted run. It differs from its run only above that layer and from
that token on, so it joins the pass where it begins to differ and carries only those tokens. Cells that restore the
output of an MLP or of attention in a window join at the window's begin; those that begin together share one branch
until their own window ends. Cells that cannot differ are known without running anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emendo.models import EditableModel
from emendo.models.packed import alibi_table, packed_attention
from emendo.models.wave import WaveLayout, changing, wave_step
from emendo.tracing.facts import AlignedFact
from emendo.tracing.runs import Runs
from emendo.tracing.settings import Kind, TraceSettings, is_hidden, module_of

EXACT, FREE, ABSENT = 1, 2, 0
"""State of a cell: computed; known without computing, since nothing can differ; not asked for."""

_TOKENS = 8192
"""Tokens that stand in one row at once, unless given: bounds memory, not results."""


@dataclass(frozen=True)
class Grid:
    """Scores of one kind over tokens and layers.

    Attributes:
        scores: Of every cell and sample, ``[samples, length, layers]``; NaN where not asked for.
        state: EXACT, FREE or ABSENT, ``[length, layers]``.
    """

    scores: Float[Tensor, "samples length layers"]
    state: Int[Tensor, "length layers"]


def trace_grid(
    lm: EditableModel,
    fact: AlignedFact,
    runs: Runs,
    kind: Kind,
    settings: TraceSettings,
    *,
    token_budget: int = _TOKENS,
) -> Grid:
    """Every cell of one kind.

    Args:
        lm: The model.
        fact: The fact.
        runs: Its clean and corrupted runs.
        kind: What is restored.
        settings: Window and positions.
        token_budget: Most tokens in one row; fewer need less memory.

    Source: ROME, arXiv 2202.05262, section 2; severing, its appendix B.
    """
    samples, length, layers = len(runs.low), len(fact.ids), lm.n_layers
    scores = torch.full((samples, length, layers), float("nan"), dtype=torch.float64)
    state = torch.full((length, layers), ABSENT, dtype=torch.int8)
    alibi = alibi_table(lm, length, runs.capture.entering[0].dtype, lm.device)
    for t in range(length) if settings.positions == "all" else fact.ends:
        if t < fact.begin:  # by causality nothing here is corrupted
            scores[:, t], state[t] = runs.low.cpu()[:, None], FREE
            continue
        state[t] = EXACT
        if is_hidden(kind):  # above the last block only the last position is read
            scores[:, t, -1], state[t, -1] = (runs.high if t == length - 1 else runs.low).cpu(), FREE
        joins = _hidden_joins(layers) if is_hidden(kind) else _window_joins(layers, settings)
        step = max(1, token_budget // max(1, joins.most * (length - t)))
        for first in range(0, samples, step):
            rows = slice(first, min(samples, first + step))
            found = _Wave(lm, runs, kind, t, rows, alibi).run(joins)
            for layer, row in joins.row_of.items():
                scores[rows, t, layer] = found[:, row]
    return Grid(scores, state)


@dataclass(frozen=True)
class _Joins:
    """When branches begin.

    Attributes:
        at: By layer, the branches that begin there: what each restores, or the earlier branch that it splits from.
        until: For each branch one past the last layer in which it restores a module's output.
        row_of: The branch that ends as each cell.
    """

    at: dict[int, list[_Join]]
    until: list[int]
    row_of: dict[int, int]

    @property
    def most(self) -> int:
        """Branches at the end."""
        return len(self.until)


@dataclass(frozen=True)
class _Join:
    restored: int | None = None
    """Layer whose output is clean at the token: a hidden cell."""
    split_from: int | None = None
    """Branch that it has been until here."""


def _hidden_joins(layers: int) -> _Joins:
    """Cell `l` begins at block `l + 1`, from the corrupted stream with one clean state."""
    at = {layer + 1: [_Join(restored=layer)] for layer in range(layers - 1)}
    return _Joins(at, [0] * (layers - 1), {layer: layer for layer in range(layers - 1)})


def _window_joins(layers: int, settings: TraceSettings) -> _Joins:
    """Cells whose windows begin together are one branch until their own window ends."""
    spans = [settings.span(layer, layers) for layer in range(layers)]
    events: list[tuple[int, int, int]] = []  # layer, begin of the window, its end
    for start in sorted({span.start for span in spans}):
        ends = sorted({span.stop for span in spans if span.start == start}, reverse=True)
        events.append((start, start, ends[0]))
        events += [(end, start, end) for end in ends[1:]]
    events.sort()
    branch = {(start, end): number for number, (_, start, end) in enumerate(events)}
    longest = {start: max(end for _, s, end in events if s == start) for _, start, _ in events}
    at: dict[int, list[_Join]] = {}
    for layer, start, end in events:
        own = end == longest[start]
        at.setdefault(layer, []).append(_Join() if own else _Join(split_from=branch[start, longest[start]]))
    until = [end for _, _, end in events]
    return _Joins(at, until, {layer: branch[span.start, span.stop] for layer, span in enumerate(spans)})


class _Wave:
    """One pass over the layers with all branches of one token, for some samples."""

    def __init__(self, lm: EditableModel, runs: Runs, kind: Kind, t: int, rows: slice, alibi: Tensor | None) -> None:
        self.lm, self.runs, self.kind, self.t = lm, runs, kind, t
        # Row 0 of the activations is the clean run.
        self.rows = slice(1 + rows.start, 1 + rows.stop)
        past = {layer: (keys[rows, :, :t], values[rows, :, :t]) for layer, (keys, values) in runs.past.items()}
        length = runs.capture.entering[0].shape[1]
        self.layout = WaveLayout(rows.stop - rows.start, 0, t, length - t, past, lm.device, alibi)
        self.scorer = type(runs.scorer)(runs.scorer.metric, runs.scorer.answer, runs.scorer.rivals[rows])

    @torch.no_grad()
    def run(self, joins: _Joins) -> Float[Tensor, "samples branches"]:
        """Scores of all branches, in the order in which they begin."""
        stream = self.runs.capture.entering[0].new_empty(self.layout.samples, 0, self.layout.width, self.lm.d_model)
        until = torch.tensor(joins.until)
        with packed_attention(self.lm):
            for layer in range(self.lm.n_layers):
                new = [self._begin(join, layer, stream) for join in joins.at.get(layer, ())]
                if new:
                    stream = torch.cat([stream, *(part.to(stream.device)[:, None] for part in new)], dim=1)
                if stream.shape[1]:
                    with self._held(layer, until[: stream.shape[1]], stream.shape[:3]):
                        stream = wave_step(self.lm, layer, stream, self.layout)
            final = self.lm.finish(stream[:, :, -1])
            return self.scorer(self.lm.unembed(final.to(self.lm.device))).cpu()

    def _begin(self, join: _Join, layer: int, stream: Tensor) -> Float[Tensor, "samples width d_model"]:
        """What a new branch has entering a layer."""
        if join.split_from is not None:
            return stream[:, join.split_from]
        capture = self.runs.capture
        entering = capture.entering[0] if layer == 0 else capture.resid[layer - 1]
        own = entering[self.rows, self.t :]
        if join.restored is not None:
            own = own.clone()
            own[:, 0] = capture.resid[join.restored][0, self.t]
        return own

    def _held(self, layer: int, until: Int[Tensor, " branches"], shape: Sequence[int]) -> ExitStack | nullcontext[None]:
        """The context in which a module's output at the token is replaced, where the kind asks for it."""
        module = module_of(self.kind)
        if module is None:
            return nullcontext()
        capture = self.runs.capture
        outputs = (capture.mlp_out if module == "mlp" else capture.attention_out)[layer]
        if is_hidden(self.kind):  # severed: what the module gave in the corrupted run
            change = _put(outputs[self.rows, self.t][:, None], shape, slice(None))
        else:
            inside = torch.nonzero(until > layer).flatten()
            change = _put(outputs[0, self.t], shape, inside.to(outputs.device))
        return held(self.lm, layer, module, change)


def _put(value: Tensor, shape: Sequence[int], branches: Tensor | slice) -> Callable[[Tensor], Tensor]:
    """The change that puts a value at the first token of some branches."""

    def change(out: Tensor) -> Tensor:
        spread = out.clone().view(*shape, out.shape[-1])
        spread[:, branches, 0] = value.to(spread)
        return spread.view(out.shape)

    return change


def held(lm: EditableModel, layer: int, module: str, change: Callable[[Tensor], Tensor]) -> ExitStack:
    """A context in which the output of a layer's MLP or attention is changed."""
    stack = ExitStack()
    place = lm.down_projection(layer) if module == "mlp" else lm.attention_output(layer)
    stack.enter_context(changing(place, change))
    return stack
