"""Whole grids of demo facts, every cell, against a loop over hooked forward passes that shares no code with the wave.

pytest -m slow tests/model/test_demo_tracing.py -s      prints the largest difference of each fact; takes minutes
"""

from __future__ import annotations

import numpy as np
import pytest

from emendo.models import EditableModel
from emendo.tracing import TraceFact, TraceSettings, embedding_deviation, packaged_subjects
from emendo.tracing.corrupt import corrupt
from emendo.tracing.facts import align_fact
from emendo.tracing.grid import trace_grid
from emendo.tracing.runs import answered_token, run_both
from tests.tracing_cases import naive_scores

FACTS = [  # the subject opens the text, stands behind one token, behind two
    TraceFact("{} became famous as a", "Pablo Picasso"),
    TraceFact("The {} was developed by", "Xbox"),
    TraceFact("The film {} was directed by", "Jurassic Park"),
]


@pytest.mark.slow
@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.subject)
def test_every_cell_of_a_demo_fact_is_that_of_a_naive_loop(demo_model: EditableModel, fact: TraceFact) -> None:
    lm, settings = demo_model, TraceSettings()
    aligned = align_fact(lm, fact)
    corrupted = corrupt(lm, aligned, settings, embedding_deviation(lm, packaged_subjects()))
    assert corrupted.noise is not None
    answer = answered_token(lm, aligned)
    runs = run_both(lm, corrupted, answer, settings.metric, settings.kinds)
    ids, span = list(aligned.ids), (aligned.begin, aligned.end)
    worst = {}
    for kind in settings.kinds:
        grid = trace_grid(lm, aligned, runs, kind, settings)
        naive = np.empty(grid.scores.shape)
        for t in range(len(ids)):
            for layer in range(lm.n_layers):
                cell = (t, layer)
                naive[:, t, layer] = naive_scores(lm, ids, span, corrupted.noise, kind, cell, answer, settings.window)
        worst[kind] = float(np.abs(np.exp(naive) - grid.scores.numpy()).max())
    cells = len(settings.kinds) * len(ids) * lm.n_layers
    print(f"{fact.text}: {cells} cells, {worst}")
    assert max(worst.values()) <= 1e-5
