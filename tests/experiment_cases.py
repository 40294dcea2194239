"""A small experiment on a tiny model, for tests that run it in this process and for those that kill another one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emendo.experiments import Cell, Experiment, ExperimentConfig, Measures
from emendo.models import load
from emendo.statistics import MomentStore

NAMES = [
    "Anna Berg",
    "Carl Dorn",
    "Eva Falk",
    "Georg Hahn",
    "Ida Jung",
    "Karl Lang",
    "Maria Nord",
    "Otto Pohl",
    "Rita Stein",
    "Tom Unger",
]
CITIES = ("Paris", "Rome", "Tokyo", "Bordeaux")
QUICK: dict[str, Any] = {"target.steps": 2, "contexts.scheme": "fixed", "moments.multiple": 4}
CHEAP: dict[str, Any] = {"perplexity_tokens": 64, "samples": 1, "new_tokens": 2}


def write_records(path: Path, count: int = len(NAMES)) -> str:
    """A JSONL file of records, each with a paraphrase and two neighbours."""
    rows = [
        {
            "id": f"fact-{number}",
            "prompt": "{} was born in the city of",
            "subject": name,
            "target": CITIES[number % 4],
            "target_true": CITIES[(number + 1) % 4],
            "paraphrase_prompts": [f"{name} comes from"],
            "neighborhood_prompts": ["Danielle Darrieux was born in", "The capital of France is"],
        }
        for number, name in enumerate(NAMES[:count])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_zsre(path: Path, count: int = len(NAMES)) -> str:
    """A JSONL file in the fields of zsRE; every third row has no rephrasing."""
    rows = [
        {
            "src": f"What is the birthplace of {name}?",
            "subject": name,
            "answers": [CITIES[number % 4]],
            "alt": CITIES[(number + 1) % 4],
            "rephrase": f"Where was {name} born?" if number % 3 else None,
            "loc": "nq question: what is the capital of France",
            "loc_ans": "Paris",
        }
        for number, name in enumerate(NAMES[:count])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_cases(path: Path, count: int = 4) -> str:
    """A JSONL file of cases of two facts with a question that needs both."""
    rows = []
    for number in range(count):
        first, second = NAMES[2 * number : 2 * number + 2]
        question = {"kind": "multi_hop", "prompt": f"The city of {first}'s sister is", "answers": ["Rome", "Roma"]}
        fact = {"prompt": "{} was born in the city of", "target": "Rome", "target_true": "Paris", "case": str(number)}
        rows += [{**fact, "id": f"{number}.1", "subject": first, "probes": [question]}]
        rows += [{**fact, "id": f"{number}.2", "subject": second}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def cell(data: str, method: str = "emmet", mode: str = "batch", batch_size: int = 2, n: int = 4, **more: Any) -> Cell:
    """A quick cell."""
    schedule = more.pop("schedule", "immediate" if mode in ("single", "batch") else "both")
    settings = QUICK | more.pop("settings", {})
    measures = more.pop("measures", Measures(**CHEAP))
    return Cell(
        model=more.pop("model", "tiny"),
        data=data,
        method=method,
        mode=mode,  # type: ignore[arg-type]
        batch_size=batch_size,
        n=n,
        schedule=schedule,
        settings=settings,
        measures=measures,
        **more,
    )


def grid(model: str, data: str) -> dict[str, Any]:
    """An experiment with every mode that there is, as its file has it."""
    return {
        "name": "small",
        "data": data,
        "n": 4,
        "models": [model],
        "batch_sizes": [1, 3],
        "settings": QUICK,
        "measures": CHEAP,
        "methods": ["emmet"],
        "cells": [
            {"method": "memit-history", "mode": "sequential-batched", "batch_size": 2},
            {"method": "rome", "mode": "sequential"},
        ],
    }


def run_file(config: str, folder: str, store: str) -> None:
    """Run an experiment to its end: what a process does that is killed from outside."""
    read = ExperimentConfig.model_validate_json(Path(config).read_text())
    run = Experiment(
        read.name,
        read.model_dump(mode="json"),
        read.expand(),
        Path(folder),
        lambda name: load(name, device="cpu"),
        store=MomentStore(Path(store)),
    )
    for _ in run.run():
        pass


def summaries(folder: Path, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What the folder holds, by cell."""
    return [json.loads((folder / "cells" / one.id / "summary.json").read_text()) for one in cells]
