"""A few hundred of the inputs of `tests/fuzz_commands.py`: no traceback, no other exit code, no hang."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import emendo.models
import emendo.ui.serve
from tests.fuzz_commands import CODES, MOST_BYTES, Fuzz, peak

INPUTS = 200

SLOW = (
    *("reports", "edits", "gguf", "folders", "stores", "tokenizers", "repeated", "pushes", "pages", "page", "harness"),
    "exports",
)


def test_mutated_inputs_end_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(emendo.models, "load", emendo.models.load)  # the fuzz puts others in their place
    monkeypatch.setattr(emendo.ui.serve, "serve", emendo.ui.serve.serve)
    fuzz, before = Fuzz(tmp_path, seed=1), peak()
    # What takes seconds each runs with the whole fuzz only.
    fuzz.cases = tuple(case for case in fuzz.cases if case[0] not in SLOW)
    bad = [found for number in range(INPUTS) if (found := fuzz.run(number)) is not None]
    os.chdir(tmp_path)
    assert not bad, bad[0].what
    assert set(fuzz.codes) <= set(CODES)
    assert peak() - before < MOST_BYTES
