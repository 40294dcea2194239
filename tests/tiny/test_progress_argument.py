"""What takes seconds on a real model takes `progress`, and takes it alike: somebody who is told, or True for bars."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import ClassVar

import pytest

from emendo import EditRecord, EditSession, evaluate, gate, perplexity, progress, tracing
from emendo.export import write_checkpoint
from tests.conftest import build_tiny
from tests.public_functions import PUBLIC
from tests.quick_plans import EIFFEL, quick_plan

LONG = {
    *("load", "edit", "EditSession.__init__", "Experiment.__init__", "Snapshot.__init__", "perplexity"),
    *("evaluate_records", "score_records", "score_targets", "said_records", "probe_scores", "zsre_scores", "answered"),
    *("generate_texts", "generation_scores", "entropy_of_records", "next_token_log_probs", "text_log_probs"),
    *("text_tokens", "expand_records", "run_gate", "reference_snapshot", "judge", "edit_snapshots", "write_report"),
    *("trace", "difference", "scan", "collect_moments", "obtain_moments", "obtain_for_method"),
    *("write_checkpoint", "write_gguf_model", "write_gguf_in_place", "write_in_place", "push_folder"),
}
"""Plans, ledgers and collapse monitors tell the progress of their session."""


class Told:
    """Bars that are remembered rather than drawn."""

    stages: ClassVar[list[str]] = []

    def start(self, stage: str, total: int | None = None) -> None:
        self.stages.append(stage)

    def advance(self, n: int = 1) -> None:
        assert self.stages

    def finish(self) -> None:
        pass


def test_every_long_function_takes_it_alike() -> None:
    taken = {
        name: inspect.signature(function).parameters["progress"].annotation
        for name, function in PUBLIC.items()
        if "progress" in inspect.signature(function).parameters
    }
    assert not LONG - set(taken)
    assert set(taken.values()) == {"Watched"}


def test_true_draws_the_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lm = build_tiny("llama")
    session = EditSession(lm)
    plan = quick_plan(session, [EIFFEL])
    records = [EditRecord(EIFFEL, "Paris")]
    monkeypatch.setattr(progress, "Bars", Told)
    for stage, call in {
        "scoring": lambda: evaluate.evaluate_records(lm, records, progress=True),
        "perplexity": lambda: perplexity(lm, "The capital of Japan is Tokyo. " * 8, progress=True),
        "next tokens": lambda: evaluate.next_token_log_probs(lm, ["The capital is"], progress=True),
        "what is said": lambda: evaluate.said_records(lm, records, progress=True),
        "texts": lambda: gate.run_gate(session, plan, records, progress=True),
        "tracing": lambda: tracing.trace(
            lm,
            [tracing.TraceFact("The capital of {} is", "Japan")],
            tracing.TraceSettings(samples=2),
            subjects=("Italy",),
            any_answer=True,
            progress=True,
        ),
        "writing": lambda: write_checkpoint(lm, [plan.update], tmp_path / "out", progress=True),
    }.items():
        Told.stages.clear()
        call()
        assert stage in Told.stages
