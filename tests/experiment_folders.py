"""Experiment folders as `emendo experiment` leaves them, with made-up results: for the tests of reports."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emendo.evaluate import EditScores, PromptScore, RecordScore, TargetScore

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }} {% for %}",
    "![x](http://example.org/x.png) [y](http://example.org) | pipes | `ticks` *stars* $x^2$ $",
    "مرحبا \u202e بالعالم",
    "🙂👩‍👩‍👧",
    "a\x00b\x1b[31m\x85c\u2028d",
    "\ud800 half",
    "x" * 20_000,
    "two\nlines",
    "",
]
"""Names and texts that a page, a table or a terminal could take for something else."""


def plan(method: str = "emmet", batch_size: int = 4, **values: Any) -> dict[str, Any]:
    """What an experiment asks of one cell."""
    cell = {
        "model": "demo",
        "data": "counterfact.jsonl",
        "method": method,
        "settings": {},
        "layers": [5],
        "mode": "batch",
        "batch_size": batch_size,
        "n": 24,
        "seed": 0,
        **values,
    }
    named = [cell[part] for part in ("method", "batch_size", "layers", "mode", "n", "seed")]
    cell["id"] = re.sub(r"[^a-zA-Z0-9]+", "-", f"{named} {cell['settings']}").strip("-")
    return cell


def scores(seed: int, *, n: int = 24, edited: float = 2.0) -> dict[str, Any]:
    """Scores of made-up records, by the real aggregation.

    Args:
        seed: Of the made-up likelihoods.
        n: Records.
        edited: By how many nats the new target leads on the edited prompt.
    """
    draw = np.random.default_rng(seed)

    def prompt(lead: float) -> PromptScore:
        new, true = 3.0 - lead + draw.normal(), 3.0 + draw.normal()
        return PromptScore("", *(TargetScore(max(nll, 0.01), nll < 2, 2) for nll in (new, true)))

    records = [
        RecordScore(
            str(index),
            *("new", "true", (prompt(edited),)),
            (prompt(edited * 0.7), prompt(edited * 0.7)),
            (prompt(-1.5), prompt(-1.5)),
        )
        for index in range(n)
    ]
    return EditScores.from_records(records, n_resamples=200).to_dict()


def summary(cell: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """A finished cell's summary."""
    size, seed = cell["batch_size"], cell["seed"] + 1000 * len(cell["method"]) + ord(cell["method"][0])
    strength = 3.0 - 0.25 * np.log2(size) - 0.2 * len(cell["method"]) + 0.03 * ord(cell["method"][0]) - 3.0
    growth = 1 + 0.01 * size
    return {
        "format": "emendo.cell",
        "version": 1,
        "cell": dict(cell),
        "resolved": {
            "name": cell["method"],
            "source": "",
            "settings": {"layers": cell["layers"], "target.steps": 25, **cell["settings"]},
            "origins": {"layers": "preset", "target.steps": "method", **dict.fromkeys(cell["settings"], "given")},
        },
        "scores": {
            "before": scores(7, n=cell["n"], edited=-1.5),
            "immediate": scores(seed + size + 1, n=cell["n"], edited=strength + 0.2),
            "final": scores(seed + size, n=cell["n"], edited=strength),
        },
        "generated": None,
        "shift": {"kl_mean": 0.01 * growth, "kl_p99": 0.2, "flips": 0.03, "flips_interval": [0.02, 0.05], "n": 900},
        "perplexity": {"before": 53.9, "after": 53.9 * growth, "ratio": growth},
        "entropy": {"before": 6.1, "after": 6.0 - 0.01 * size},
        "layers": [
            {
                "layer": layer,
                "relative_norm": 0.03 * growth,
                "relative_cost": 1e-4 * growth,
                "constraint_error": 1e-7 * size**2,
                "condition": 50.0 * size,
                "key_overlap": min(0.9, 0.1 + 0.05 * np.log2(size)),
            }
            for layer in cell["layers"] or [5]
        ],
        "curve": [],
        "samples": [
            {
                "kind": "edited",
                "prompt": "The Eiffel Tower is located in the city of",
                "wanted": " Rome",
                "before": " Paris, the capital of France.",
                "after": " Rome, the capital of Italy.",
            }
        ],
        "seconds": {"targets": 11.5 * size, "solve": 0.4, "scoring": 20.0},
        "peak_bytes": 2 * 2**30,
        "versions": {"emendo": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "commit": "0123456789abcdef",
        "error": None,
        **values,
    }


def curve(edits: int, step: int, *, loss: float = 0.3) -> list[dict[str, float]]:
    """Rows along a sequence of edits."""
    return [
        {
            "edits": at,
            "perplexity_ratio": 1 + 0.5 * at / edits,
            "retention": 100 * (1 - loss * at / edits),
            "relative_norm": 0.02 * (at / step) ** 0.5,
            "entropy": 6 - at / edits,
        }
        for at in range(step, edits + 1, step)
    ]


def write_experiment(
    folder: Path, plans: Sequence[Mapping[str, Any]], summaries: Mapping[str, Any] | None = None, **values: Any
) -> Path:
    """Write an experiment's folder.

    Args:
        folder: Where; made if absent.
        plans: The planned cells.
        summaries: Summary by cell id: a document, a text as it is, or None for a cell that was not run. Cells that are
            not named are finished.
        values: Further entries of experiment.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "format": "emendo.experiment",
        "version": 1,
        "name": "batch sizes",
        "config": {},
        "cells": [dict(cell) for cell in plans],
        "base": {"demo": {"name": "demo", "weights_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32}},
        **values,
    }
    (folder / "experiment.json").write_text(json.dumps(document), encoding="utf-8")
    for cell in plans:
        found = (summaries or {}).get(cell["id"], summary(cell))
        if found is not None:
            at = folder / "cells" / cell["id"] / "summary.json"
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_text(found if isinstance(found, str) else json.dumps(found), encoding="utf-8")
    return folder
