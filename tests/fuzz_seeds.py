"""Good files of every kind, which the fuzz of the commands makes wrong; and the tiny model, loaded once."""

from __future__ import annotations

import copy
import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

import emendo.models
from emendo import tracing
from emendo.editing.session import EditSession
from emendo.ledger import EditLedger
from emendo.models import EditableModel, load
from emendo.models.sources import DEMO
from emendo.statistics import MomentStore
from tests.conftest import TRAINING_TEXT, build_tiny
from tests.dataset_rows import COUNTERFACT, FLAT, KNOWEDIT, KNOWN, MQUAKE, OWN, ZSRE
from tests.experiment_folders import plan, write_experiment
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, QUICK, quick_plan

TASKS = Path(__file__).parent.parent / "experiments" / "harness"

REQUESTS = [request.to_dict() for request in (EIFFEL, DARRIEUX)]
ASKED = [
    {"question": "Where is {}?", "subject": "Paris", "target": "Rome"},
    {
        "messages": [{"role": "user", "content": "Where is {}?"}],
        "subject": "Paris",
        "answer": "Rome",
        "system": "Be brief",
    },
]
FORMATS = [REQUESTS, ASKED, [COUNTERFACT], [FLAT], [ZSRE], [KNOWEDIT], [MQUAKE], [KNOWN], [OWN], {"data": REQUESTS}]

EXPERIMENT = {
    "name": "fuzz",
    "data": "../good/facts.jsonl",
    "models": ["MODEL"],
    "n": 2,
    "mode": "batch",
    "batch_sizes": [1, 2],
    "layers": [[1], None],
    "settings": {"target.steps": 2, "contexts.scheme": "fixed"},
    "methods": [{"method": "emmet", "settings": {"distribution": "single"}}, "memit"],
    "cells": [{"method": "rome", "mode": "sequential", "n": 1, "schedule": "both"}],
    "measures": {"perplexity": True, "perplexity_tokens": 64, "samples": 1},
}

GATE = """reference = "base"

[checks.norm_growth]
limit = 0.2

[checks.efficacy]
limit = 0.5
judge = "estimate"
success = "argmax"

[checks.canary_flips]
limit = 0.4
unmeasured = "pass"

[canaries]
files = ["canaries.jsonl"]

[monitor]
norm_growth = 0.1
"""

CANARIES = [
    {"id": "a", "prompt": "The capital of Italy is", "topic": "places"},
    {"id": "b", "topic": "chat", "messages": [{"role": "user", "content": "Where is it?"}]},
    {"id": "c", "topic": "text", "text": "The weather was calm that morning."},
]


def good_files(folder: Path) -> Path:
    """Write one good file of each kind.

    Returns:
        The folder of the model.
    """
    from tests.tiny_gguf import write_tiny_gguf

    folder.mkdir(parents=True)
    model = folder / "model"
    built = build_tiny("llama")
    built.model.save_pretrained(model)
    built.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    built.tokenizer.save_pretrained(model)
    lm = load(model, device="cpu")
    session = EditSession(lm, store=MomentStore(folder / "store"))
    session.second_moments([1], quick_plan(session, [EIFFEL]).method.config.moments)  # type: ignore[union-attr]
    first, second = quick_plan(session, [EIFFEL]).update, quick_plan(session, [JAPAN], "memit").update
    first.save(folder / "first.safetensors")
    second.save(folder / "second.safetensors")
    book = EditLedger.create(folder / "ledger", session)
    with_book = book.session(lm)
    for request in (EIFFEL, DARRIEUX):
        book.edit(with_book, [request], "emmet", settings=QUICK)
    with_book.rollback()
    facts = [tracing.TraceFact("The capital of {} is", "Japan")]
    settings = tracing.TraceSettings(samples=2, positions="ends")
    trace = tracing.trace(lm, facts, settings, subjects=("Italy",), any_answer=True)
    tracing.write_trace(folder / "trace.safetensors", trace)
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in REQUESTS), encoding="utf-8")
    (folder / "prompts.txt").write_text("The capital is\nIt stands in\n", encoding="utf-8")
    (folder / "canaries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CANARIES), encoding="utf-8")
    (folder / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT).replace("MODEL", str(model)), encoding="utf-8")
    (folder / "gate.toml").write_text(GATE, encoding="utf-8")
    write_experiment(folder / "results", [plan("emmet", 4), plan("memit", 4)])
    write_tiny_gguf(folder / "tiny.gguf")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    shutil.copytree(TASKS, folder / "tasks")
    rows = [{"question": "Where is it", "choices": ["a", "b", "c", "d"], "answer": 1, "subject": "x"}] * 3
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return model


def sentencepiece_model() -> bytes:
    """A small file of SentencePiece."""
    import sentencepiece

    out = io.BytesIO()
    options = {"vocab_size": 395, "hard_vocab_limit": False, "byte_fallback": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT), model_writer=out, model_type="bpe", **options
    )
    return out.getvalue()


def never_serve() -> None:
    """From now on the server of `emendo ui` ends as soon as it has begun."""
    import emendo.ui.serve

    emendo.ui.serve.serve = lambda *_, **__: None  # type: ignore[assignment]


def keep_model_loaded(folder: Path) -> None:
    """From now on `load` of the good model gives a copy of one that is in memory; every other name is loaded."""
    read = load
    held = read(folder, device="cpu")

    def quick(name: str | Path, **options: Any) -> EditableModel:
        name = folder if str(name).strip().lower() == DEMO else name  # a real model, which takes a minute
        if (
            str(name) != str(folder)
            or options.get("dtype", "auto") != "auto"
            or options.get("device", "auto") != "auto"
        ):
            return read(name, **options)
        with torch.no_grad():
            return EditableModel(copy.deepcopy(held.model), held.tokenizer, held.name)

    emendo.models.load = quick  # type: ignore[assignment]
