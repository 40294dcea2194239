"""What an earlier commit wrote still opens: update files, ledgers, second moments, experiment folders.

Each folder of `tests/earlier` is named after the commit that made it, by the commands in `tests/earlier/make.sh`. The
model is in it, so that nothing depends on how this processor draws random weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from emendo.editing.session import EditSession
from emendo.models import load
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import ModelUpdate
from tests.tiny.conftest import Command

EARLIER = Path(__file__).parents[1] / "earlier"
QUICK = ["--set", "target.steps=3", "--set", "contexts.scheme=fixed", "--set", "moments.multiple=4", "--no-judge", "-q"]
FACT = ["--prompt", "{} is located in the city of", "--subject", "The Tower", "--target", "Paris"]


@pytest.fixture(params=sorted(path.name for path in EARLIER.iterdir() if path.is_dir()))
def earlier(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what a commit left, as the current folder and with its cache."""
    folder = tmp_path / request.param
    shutil.copytree(EARLIER / request.param, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EMENDO_HOME", str(folder / "home"))
    return folder


def test_an_update_goes_in_and_out(earlier: Path) -> None:
    lm = load("model", device="cpu")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    update = ModelUpdate.load("update/update.safetensors")
    session = EditSession(lm)
    session.apply(update)
    for part in update.layers:
        weight = before[part.module + ".weight"]
        torch.testing.assert_close(lm.weight(part.layer), weight + part.delta(), rtol=0, atol=1e-6)
    session.rollback()
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


@pytest.mark.parametrize("folder", ["ledger", "ledger-not-compacted"])
def test_a_ledger_is_whole_and_goes_on(emendo: Command, earlier: Path, folder: str) -> None:
    code, _, err = emendo("verify", "--ledger", folder)
    assert code == 0, err
    records = json.loads(emendo("log", "--ledger", folder, "--json")[1])["records"]
    assert [record["operation"] for record in records][:5] == ["init", "edit", "edit", "edit", "revert"]
    ids = {update.id for update in _updates(folder)}

    code, _, err = emendo("edit", "--model", "model", *FACT, "--layers", "1,2", *QUICK, "--ledger", folder)
    assert code == 0, err
    added = [update for update in _updates(folder) if update.id not in ids]
    assert len(added) == 1
    assert added[0].preceding == Predecessors.of(update.id for update in _updates(folder)[:-1])

    newest = json.loads(emendo("log", "--ledger", folder, "--json")[1])["records"][-1]["id"]
    for how in ("replay", "algebraic"):
        shutil.copytree(folder, f"{folder}-{how}")
        code, _, err = emendo("revert", newest, "--ledger", f"{folder}-{how}", "--how", how, "-q")
        assert code == 0, err
        assert {update.id for update in _updates(f"{folder}-{how}")} == ids
    assert emendo("compact", "--ledger", folder, "-q")[0] == 0
    assert emendo("verify", "--ledger", folder)[0] == 0


def test_later_edits_are_planned_again(emendo: Command, earlier: Path) -> None:
    records = json.loads(emendo("log", "--ledger", "ledger-not-compacted", "--json")[1])["records"]
    oldest = next(record["id"] for record in records if record["operation"] == "edit")
    code, _, err = emendo("revert", oldest, "--ledger", "ledger-not-compacted", "--how", "replay", "-q")
    assert code == 0, err
    (left,) = _updates("ledger-not-compacted")
    assert left.info["method"]["settings"]["n_layers"] == 2
    assert emendo("verify", "--ledger", "ledger-not-compacted")[0] == 0


def test_second_moments_are_listed_and_whole(emendo: Command, earlier: Path) -> None:
    code, text, err = emendo("moments", "verify", "--json")
    assert code == 0, err
    assert [row["layer"] for row in json.loads(text)["moments"]] == [1, 2]


def test_an_experiment_is_reported_and_found_finished(emendo: Command, earlier: Path) -> None:
    (cell,) = (earlier / "experiment" / "cells").iterdir()
    summary = (cell / "summary.json").read_bytes()
    assert emendo("report", "experiment", "-q")[0] == 0
    assert (earlier / "experiment" / "report.html").stat().st_size > 1000
    code, _, err = emendo("experiment", "experiment.yaml", "--out", "experiment", "-q", "--json")
    assert code == 0, err
    assert (cell / "summary.json").read_bytes() == summary
    assert list((earlier / "experiment" / "cells").iterdir()) == [cell]


def _updates(folder: str) -> tuple[ModelUpdate, ...]:
    from emendo.ledger import EditLedger

    return tuple(EditLedger(Path(folder)).updates())
