"""All cells of a fact, exactly, in one pass over the layers for each token: the wave.

A cell restores one token at one layer in every corrupted run. It differs from its run only above that layer and from
that token on, so it joins the pass where it begins to differ and carries only those tokens. Cells that restore the
output of an MLP or of attention in a window join above the window's first block, in which nothing but their token
differs; those that begin together share one branch until their own window ends. An MLP is not run where its output is
given, nor in the last block where nobody reads it. Cells that cannot differ are known without running anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from emendo.models import EditableModel
from emendo.models.packed import alibi_table, packed_attention
from emendo.models.wave import WaveLayout, changing, mlp_given, wave_step
from emendo.tracing.facts import AlignedFact
from emendo.tracing.runs import Runs
from emendo.tracing.settings import Kind, TraceSettings, is_hidden, module_of

EXACT, FREE, ABSENT = 1, 2, 0
"""State of a cell: computed; known without computing, since nothing can differ; not asked for."""

_TOKENS = 8192
"""Tokens that stand in one row at once, unless given: bounds memory, not results."""

_CACHED = 1024
"""Tokens that a block of a processor gets at once: what it makes on the way stays in the cache."""

_SCORED = 64
"""Rows of logits at once, at least: the unembedding is read once for all of them."""

_LOGITS = 2**23
"""Logits at once where the vocabulary is small enough for more rows."""


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
    joins = _hidden_joins(layers) if is_hidden(kind) else _window_joins(layers, settings)
    opened = {} if is_hidden(kind) else _opened(lm, runs, kind, list(joins.at), alibi)
    for t in range(length) if settings.positions == "all" else fact.ends:
        if t < fact.begin:  # by causality nothing here is corrupted
            scores[:, t], state[t] = runs.low.cpu()[:, None], FREE
            continue
        state[t] = EXACT
        if is_hidden(kind):  # above the last block only the last position is read
            scores[:, t, -1], state[t, -1] = (runs.high if t == length - 1 else runs.low).cpu(), FREE
        step = max(1, token_budget // max(1, joins.most * (length - t)))
        for first in range(0, samples, step):
            rows = slice(first, min(samples, first + step))
            found = _Wave(lm, runs, kind, t, rows, opened, alibi).run(joins)
            for layer, row in joins.row_of.items():
                scores[rows, t, layer] = found[:, row]
    return Grid(scores, state)


@dataclass(frozen=True)
class _Joins:
    """When branches begin.

    Attributes:
        at: By layer, the branches that begin there: what each restores, or the earlier branch that it splits from.
            Those of a window's begin are last, since they join above the block.
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

    @property
    def above(self) -> bool:
        """Whether it joins above the block: a window begins there."""
        return self.restored is None and self.split_from is None


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


@torch.no_grad()
def _opened(
    lm: EditableModel, runs: Runs, kind: Kind, layers: Sequence[int], alibi: Tensor | None
) -> dict[int, Float[Tensor, "samples length d_model"]]:
    """What blocks give at a token of the corrupted runs whose own module's output is the clean one, for every token.

    A module's output at a token changes nothing in its own block but that token, so one pass holds all of them.
    """
    samples, length = len(runs.low), runs.capture.entering[0].shape[1]
    nothing = {layer: (keys[:, :, :0], values[:, :, :0]) for layer, (keys, values) in runs.past.items()}
    layout = WaveLayout(samples, 1, 0, length, nothing, lm.device, alibi)
    module, found = module_of(kind), {}
    assert module is not None
    outputs = runs.capture.mlp_out if module == "mlp" else runs.capture.attention_out
    with packed_attention(lm):
        for layer in layers:
            clean = outputs[layer][0].expand(samples, -1, -1)
            with held(lm, layer, module, lambda out, clean=clean: clean.to(out).reshape(out.shape)):  # type: ignore[misc]
                found[layer] = wave_step(lm, layer, _entering(runs, layer)[1:, None], layout)[:, 0]
    return found


def _entering(runs: Runs, layer: int) -> Float[Tensor, "rows length d_model"]:
    """The residual stream below a block."""
    return runs.capture.entering[0] if layer == 0 else runs.capture.resid[layer - 1]


class _Wave:
    """One pass over the layers with all branches of one token, for some samples."""

    def __init__(
        self,
        lm: EditableModel,
        runs: Runs,
        kind: Kind,
        t: int,
        rows: slice,
        opened: Mapping[int, Float[Tensor, "samples length d_model"]],
        alibi: Tensor | None,
    ) -> None:
        self.lm, self.runs, self.kind, self.t = lm, runs, kind, t
        # Row 0 of the activations is the clean run.
        self.rows = slice(1 + rows.start, 1 + rows.stop)
        self.opened = {layer: state[rows, t] for layer, state in opened.items()}
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
                new = joins.at.get(layer, ())
                stream = self._joined(stream, [self._begin(join, layer, stream) for join in new if not join.above])
                if stream.shape[1]:
                    stream = self._through(layer, stream, until[: stream.shape[1]])
                stream = self._joined(stream, [self._above(layer) for join in new if join.above])
            return self._scores(stream[:, :, -1])

    def _through(
        self, layer: int, stream: Float[Tensor, "samples branches width d_model"], until: Int[Tensor, " branches"]
    ) -> Float[Tensor, "samples branches width d_model"]:
        """What a block gives; on a processor for as many samples and branches at a time as its cache holds."""
        samples, branches, width, _ = stream.shape
        most = _CACHED if self.lm.block_device(layer).type == "cpu" else samples * branches * width
        out: list[Tensor] = []
        for rows in _even(samples, most // (branches * width)):
            layout, parts = self.layout.of(layer, rows), []
            for columns in _even(branches, most // width):
                part = stream[rows, columns]
                with self._held(layer, until[columns], rows, part.shape[:3]):
                    parts.append(wave_step(self.lm, layer, part, layout))
            out.append(torch.cat(parts, dim=1))
        return torch.cat(out)

    def _scores(self, last: Float[Tensor, "samples branches d_model"]) -> Float[Tensor, "samples branches"]:
        """Read off the last position, for a few branches at a time: logits of all of them are more than a cache."""
        rows = max(_SCORED, _LOGITS // self.lm.vocab_size)
        step = max(1, rows // len(last))
        parts = last.split(step, dim=1)
        return torch.cat([self.scorer(self.lm.unembed(self._finish(part))).cpu() for part in parts], dim=1)

    def _finish(self, stream: Tensor) -> Tensor:
        return self.lm.finish(stream).to(self.lm.device)

    def _joined(self, stream: Tensor, new: Sequence[Tensor]) -> Float[Tensor, "samples branches width d_model"]:
        return torch.cat([stream, *(part.to(stream.device)[:, None] for part in new)], dim=1) if new else stream

    def _begin(self, join: _Join, layer: int, stream: Tensor) -> Float[Tensor, "samples width d_model"]:
        """What a new branch has entering a layer."""
        if join.split_from is not None:
            return stream[:, join.split_from]
        assert join.restored is not None
        own = _entering(self.runs, layer)[self.rows, self.t :].clone()
        own[:, 0] = self.runs.capture.resid[join.restored][0, self.t]
        return own

    def _above(self, layer: int) -> Float[Tensor, "samples width d_model"]:
        """What a branch has above the first block of its window."""
        own = self.runs.capture.resid[layer][self.rows, self.t :].clone()
        own[:, 0] = self.opened[layer]
        return own

    def _held(
        self, layer: int, until: Int[Tensor, " branches"], rows: slice, shape: Sequence[int]
    ) -> AbstractContextManager[object]:
        """The context in which a module's output at the token is replaced, where the kind asks for it.

        Args:
            layer: Index of the block.
            until: Of the branches that go through it together.
            rows: The samples that go through it together.
            shape: Samples, branches and tokens of each.
        """
        samples, branches, width = shape
        capture, module = self.runs.capture, module_of(self.kind)
        given = torch.zeros(samples, branches, width, dtype=torch.bool)
        if layer == self.lm.n_layers - 1 and width > 1:  # the token is not the last one, and no other is read
            given[:, :, :-1] = True
            return mlp_given(self.lm, layer, given.flatten(), torch.zeros(1, self.lm.d_model))
        if module is None:
            return nullcontext()
        outputs = (capture.mlp_out if module == "mlp" else capture.attention_out)[layer]
        if is_hidden(self.kind):  # severed: what the module gave in the corrupted run
            inside = torch.ones(branches, dtype=torch.bool)
            value = outputs[self.rows][rows, self.t][:, None].expand(-1, branches, -1).flatten(0, 1)
        else:
            inside = until > layer
            value = outputs[0, self.t][None]
        if not inside.any():
            return nullcontext()
        given[:, inside, 0] = True
        if module == "mlp":
            return mlp_given(self.lm, layer, given.flatten(), value)
        return held(self.lm, layer, module, partial(_put, given.flatten(), value))


def _even(count: int, most: int) -> Iterator[slice]:
    """`count` things in as few parts of at most `most` as will do, all of one size but for one."""
    parts = -(-count // max(1, most))
    bounds = [count * part // parts for part in range(parts + 1)]
    yield from (slice(begin, end) for begin, end in pairwise(bounds))


def _put(given: Tensor, value: Tensor, out: Tensor) -> Tensor:
    """A module's output with a value at some of its tokens."""
    out = out.clone()
    out.view(-1, out.shape[-1])[given.to(out.device)] = value.to(out)
    return out


def held(
    lm: EditableModel, layer: int, module: str, change: Callable[[Tensor], Tensor]
) -> AbstractContextManager[None]:
    """A context in which the output of a layer's MLP or attention is changed."""
    return changing(lm.down_projection(layer) if module == "mlp" else lm.attention_output(layer), change)
