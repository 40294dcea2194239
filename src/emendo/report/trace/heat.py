"""The heat maps of a trace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emendo.report.heat import Heat, shown_token, values_of
from emendo.tracing import Average, FactTrace, Trace

KIND_NAMES = {
    "hidden": "state after a block",
    "mlp": "output of the MLP",
    "attention": "output of attention",
    "hidden-without-mlp": "state after a block, MLPs above severed",
    "hidden-without-attention": "state after a block, attention above severed",
}


def fact_heats(fact: FactTrace, kinds: Sequence[str]) -> list[Heat]:
    """The grids of a fact."""
    rows = tuple((shown_token(text), fact.begin <= t < fact.end) for t, text in enumerate(fact.tokens))
    return [Heat(KIND_NAMES[kind], rows, values_of(fact.effects(kind))) for kind in kinds]


def average_heats(trace: Trace, averages: Sequence[Average]) -> list[Heat]:
    """The averages of each kind: a row for each class of positions that a fact has, with the number of facts."""
    heats = []
    for kind in trace.kinds:
        own = [average for average in averages if average.kind == kind and average.position != "before"]
        rows = tuple((f"{average.position} (n {average.n})", "subject" in average.position) for average in own)
        heats.append(Heat(KIND_NAMES[kind], rows, values_of(np.array([average.mean for average in own]))))
    return heats
