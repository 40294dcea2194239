"""Trace facts one after another: runs, grids, self-check; resumable."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emendo.arguments import checked
from emendo.errors import RequestError, TraceError
from emendo.io.versions import versions
from emendo.models import EditableModel
from emendo.progress import Watched, watching
from emendo.solve.numerics import pinned
from emendo.tracing.check import check_cell
from emendo.tracing.corrupt import Corrupted, corrupt, embedding_deviation
from emendo.tracing.facts import AlignedFact, TraceFact, align_fact, check_facts
from emendo.tracing.file import read_trace, write_trace
from emendo.tracing.grid import EXACT, Grid, trace_grid
from emendo.tracing.result import FactTrace, KindTrace, Trace
from emendo.tracing.runs import Runs, answered_token, run_both
from emendo.tracing.settings import TraceSettings

PARTS = "parts"
"""The folder of finished facts, beside the files of a trace."""

LONGEST = 256
"""Most tokens of a prompt: the cost of a full grid grows with their square."""


@checked
@pinned()
def trace(
    lm: EditableModel,
    facts: Sequence[TraceFact],
    settings: TraceSettings | None = None,
    *,
    subjects: Sequence[str] = (),
    any_answer: bool = False,
    skip: bool = False,
    most: int | None = None,
    parts: Path | None = None,
    progress: Watched = None,
) -> Trace:
    """Causal traces of facts, exact in every cell.

    One random cell of every fact is computed again by an ordinary forward pass and must agree.

    Args:
        lm: The model, in the state that is to be looked at; it is left as it was.
        facts: What to trace.
        settings: How; None takes the paper's.
        subjects: Subjects whose embeddings give the scale of the noise, and which are swapped in; added to those of
            `facts`. A single fact needs them: its own subject says nothing of a scale.
        any_answer: Trace also facts that the model answers otherwise.
        skip: Leave out facts that cannot be traced and record the reason; otherwise the first is an error.
        most: Stop after this many traced facts; None traces all.
        parts: Folder in which finished facts are kept, so that an interrupted run goes on; to be removed when the
            trace itself is kept (`forget_parts`). None keeps none.
        progress: Counts facts.

    Raises:
        RequestError: A fact cannot be traced; says which and why. Or all were left out.
        SelfCheckError: The wave disagrees with the model's own forward pass.
        TraceError: A kept part is damaged.

    Source: ROME, arXiv 2202.05262, section 2.
    """
    check_facts(facts)
    if most is not None and most < 1:
        raise RequestError(f"there is nothing to trace: expected at least 1 fact, found {most} (--n)")
    settings, progress = settings or TraceSettings(), watching(progress)
    every = list(dict.fromkeys([*(fact.subject.strip() for fact in facts), *(text.strip() for text in subjects)]))
    if settings.corruption != "swap" and len(every) < 2:
        raise RequestError(
            "the scale of the noise is measured on the embeddings of several subjects, found one; name others "
            "(subjects= in Python, --facts FILE)"
        )
    with lm.isolated() as own:
        deviation = embedding_deviation(own, every)
        tracer = _Tracer(own, settings, deviation, every, any_answer)
        made = {
            "model": tracer.identity,
            "settings": settings.to_dict(),
            "deviation": deviation,
            "deviation_subjects": len(every),
            "any_answer": any_answer,
            "layers": lm.n_layers,
            "dtype": str(lm.dtype).removeprefix("torch."),
            "versions": versions(),
        }
        found: list[FactTrace] = []
        skipped: list[tuple[str, str]] = []
        progress.start("tracing", min(len(facts), most or len(facts)))
        try:
            for fact in facts:
                if len(found) == most:
                    break
                try:
                    found.append(_kept(parts, tracer.key(fact), made, partial(tracer.trace, fact)))
                except RequestError as error:
                    if not skip:
                        raise
                    skipped.append((fact.text, str(error)))
                else:
                    progress.advance()
        finally:
            progress.finish()
    if not found:
        raise RequestError(f"none of {len(facts)} facts could be traced. The first: {skipped[0][1]}")
    return Trace(tuple(found), made, tuple(skipped))


class _Tracer:
    """One model under one setting."""

    def __init__(
        self,
        lm: EditableModel,
        settings: TraceSettings,
        deviation: float,
        subjects: Sequence[str],
        any_answer: bool,
    ) -> None:
        self.lm, self.settings, self.deviation = lm, settings, deviation
        self.subjects, self.any_answer = subjects, any_answer
        self.identity = {
            "name": lm.name,
            "model_type": lm.spec.model_type,
            "weights_sha256": lm.weights_digest(),
            "tokenizer_sha256": lm.tokenizer_digest(),
        }

    def key(self, fact: TraceFact) -> str:
        """What a fact's grids depend on."""
        parts = [
            self.identity,
            str(self.lm.dtype),
            self.settings.to_dict(),
            self.deviation,
            self.any_answer,
            [fact.prompt, fact.subject, fact.answer],
            self.subjects if self.settings.corruption == "swap" else [],
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def trace(self, fact: TraceFact) -> FactTrace:
        """All grids of one fact."""
        lm, settings = self.lm, self.settings
        aligned = align_fact(lm, fact, settings.lead)
        longest = min(LONGEST, lm.max_length)
        if len(aligned.ids) > longest:
            raise RequestError(
                f"{fact.text[:60]!r}… has {len(aligned.ids)} tokens; expected at most {longest}. Shorten the prompt "
                "or its lead (--lead)"
            )
        said = answered_token(lm, aligned, any_answer=self.any_answer)
        corrupted = corrupt(lm, aligned, settings, self.deviation, self.subjects)
        answer = said if aligned.answer is None else aligned.answer
        runs = run_both(lm, corrupted, answer, settings.metric, settings.kinds)
        grids = {kind: trace_grid(lm, aligned, runs, kind, settings) for kind in settings.kinds}
        return FactTrace(
            prompt=settings.lead + fact.prompt,
            subject=fact.subject,
            answer=lm.decode([runs.scorer.answer]),
            said=lm.decode([said]),
            tokens=tuple(lm.decode([token]) or "·" for token in aligned.ids),
            begin=aligned.begin,
            end=aligned.end,
            high=float(runs.high.mean()),
            low=runs.low.cpu().numpy(),
            grids={kind: _kind_trace(grid) for kind, grid in grids.items()},
            checked=self._check(aligned, corrupted, runs, grids),
        )

    def _check(self, fact: AlignedFact, corrupted: Corrupted, runs: Runs, grids: dict[Any, Grid]) -> float:
        """Compute one random cell again by an ordinary forward pass; the cell depends on the fact alone."""
        seed = int.from_bytes(hashlib.sha256(repr(fact.ids).encode()).digest()[:4], "big")
        random = np.random.RandomState(seed)
        kind = self.settings.kinds[random.randint(len(self.settings.kinds))]
        cells = (grids[kind].state == EXACT).nonzero().tolist()
        if not cells:
            return 0.0
        t, layer = cells[random.randint(len(cells))]
        found = grids[kind].scores[:, t, layer]
        return check_cell(self.lm, corrupted, runs, kind, t, layer, self.settings, found)


def _kind_trace(grid: Grid) -> KindTrace:
    return KindTrace(
        scores=grid.scores.mean(dim=0).numpy(),
        spread=grid.scores.std(dim=0, correction=0).numpy(),
        state=grid.state.numpy(),
    )


def _kept(parts: Path | None, key: str, made: dict[str, Any], make: Callable[[], FactTrace]) -> FactTrace:
    """A fact's trace from the folder of parts, or made and kept there."""
    if parts is None:
        return make()
    path = parts / f"{key}.safetensors"
    if path.exists():
        (fact,) = _one(path)
        return fact
    fact = make()
    write_trace(path, Trace((fact,), made))
    return fact


def forget_parts(parts: Path) -> None:
    """Remove the folder of finished facts: once what they make together is on the disk, and not before.

    Args:
        parts: As `trace` was given it.
    """
    shutil.rmtree(parts, ignore_errors=True)


def _one(path: Path) -> tuple[FactTrace]:
    found = read_trace(path).facts
    if len(found) != 1:
        raise TraceError(f"{str(path)!r} holds {len(found)} facts, expected one; delete it: the fact is traced again")
    return (found[0],)
