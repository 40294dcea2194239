"""Public functions raise the very errors that their docstrings promise, not a relative of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo import errors, solve
from emendo.requests import EditRequest
from emendo.statistics import MomentSpec, SecondMoment
from emendo.updates.update import ModelUpdate
from tests.public_functions import PUBLIC, arguments, values_of
from tests.random_updates import random_update

Values = dict[str, Any]
Change = Callable[[Values, Path], dict[str, Any]]


def given(**changed: Any) -> Change:
    return lambda values, folder: changed


def file_of(name: str, content: str, suffix: str = "jsonl") -> Change:
    def write(values: Values, folder: Path) -> dict[str, Any]:
        path = folder / f"bad.{suffix}"
        path.write_text(content, encoding="utf-8")
        return {name: str(path)}

    return write


def absent(name: str) -> Change:
    return lambda values, folder: {name: folder / "is not there"}


def of_another_model(name: str, many: bool = False) -> Change:
    def change(values: Values, folder: Path) -> dict[str, Any]:
        other: ModelUpdate = random_update(values["lm"], {1: 1}, seed=9)
        foreign = ModelUpdate(other.layers, {**other.base, "weights_sha256": "0" * 64})
        return {name: [foreign] if many else foreign}

    return change


CHAT = EditRequest("{} is in", "Paris", "Rome")

LONG = MomentSpec(tokens=64, length=10**6)
NARROW = SecondMoment(torch.eye(3, dtype=torch.float64), 3)

ROWS: dict[str, tuple[str, str, Change]] = {
    "a layer that is not there": ("EditableModel.check_layers", "LayerError", given(layers=[99])),
    "moments of such a layer": ("collect_moments", "LayerError", given(layers=[99])),
    "a method on such a layer": ("resolve_method", "LayerError", given(layers=[99])),
    "no such method": ("resolve_method", "MethodError", given(method="romeo")),
    "no such method by name": ("method_named", "MethodError", given(name="romeo")),
    "a setting that is none": ("apply_settings", "MethodError", given(settings={"target.step": 1})),
    "a setting of a name": ("check_named", "MethodError", given(name="emmet", settings={"target.step": 1})),
    "a file that is no method": ("read_method_file", "MethodError", absent("path")),
    "no such data format": ("format_named", "DatasetError", given(name="nothing")),
    "a file of no format": ("load_records", "DatasetError", file_of("source", '[{"a": 1}]', "json")),
    "a file that is not there": ("read_records", "DatasetError", absent("source")),
    "rows of no format": ("recognise", "DatasetError", given(rows=[{"a": 1}])),
    "text of no rows": ("parse_records", "DatasetError", given(text="{")),
    "no pin of a data set": ("parse_source", "DatasetError", given(source="hf:a")),
    "a row without a subject": ("record_from_dict", "RequestError", given(row={"prompt": "{} is", "target": "x"})),
    "a request without a subject": (
        "EditRequest.from_dict",
        "RequestError",
        given(row={"prompt": "x", "subject": "", "target": "y"}),
    ),
    "two targets of one fact": (
        "check_requests",
        "ConflictError",
        given(requests=[CHAT, EditRequest("{} is in", "Paris", "Oslo")]),
    ),
    "no requests": ("check_requests", "RequestError", given(requests=[])),
    "no such text": ("open_corpus", "CorpusError", given(source="/is/not/there.txt")),
    "no mixture": ("parse_mixture", "CorpusError", given(source="0.5*a+b")),
    "sequences of no length": (
        "MomentSpec.check_length",
        "CorpusError",
        given(self=MomentSpec(tokens=64, length=10**6)),
    ),
    "an update's file": ("ModelUpdate.load", "UpdateFileError", file_of("path", "x", "safetensors")),
    "an update's file, stored": ("StoredUpdate.load", "UpdateFileError", file_of("path", "x", "safetensors")),
    "an update of another model": ("EditSession.apply", "BaseMismatchError", of_another_model("update")),
    "a look at such an update": ("run_gate", "BaseMismatchError", of_another_model("edit")),
    "an adapter of it": ("write_adapter", "BaseMismatchError", of_another_model("updates", many=True)),
    "a checkpoint of it": ("write_checkpoint", "BaseMismatchError", of_another_model("updates", many=True)),
    "an adapter of nothing": ("write_adapter", "ExportError", given(updates=[])),
    "a checkpoint of nothing": ("write_checkpoint", "ExportError", given(updates=[])),
    "no such base": ("write_gguf_model", "ExportError", absent("base")),
    "a name of a repository": ("push_folder", "ExportError", given(repo="no name")),
    "a place that is taken": (
        "check_free",
        "OutputError",
        lambda values, folder: {"folder": _made(folder / "taken")},
    ),
    "a gate's file": ("emendo.gate.config.read_config", "GateConfigError", absent("file")),
    "canaries": ("read_canaries", "GateConfigError", given(files=["/is/not/there.jsonl"])),
    "an experiment's file": ("read_config", "ExperimentError", absent("path")),
    "a mode": ("check_mode", "ExperimentError", given(mode="single", batch_size=2)),
    "an experiment's folder": ("read_experiment", "ReportError", absent("folder")),
    "a trace's folder": ("read_trace", "TraceError", absent("path")),
    "no such record": ("LedgerStore.record", "LedgerError", given(id="0" * 64)),
    "no such record to take out": ("EditLedger.revert", "LedgerError", given(id="0" * 64)),
    "a ledger that is there": (
        "EditLedger.create",
        "LedgerError",
        lambda values, folder: {"folder": folder / "ledger"},
    ),
    "a moment's file": ("read_moment", "MomentsError", absent("path")),
    "a moment of nothing": (
        "prepare",
        "MomentsError",
        given(moment=torch.full((24, 24), float("nan"), dtype=torch.float64)),
    ),
    "a singular moment": (
        "prepare",
        "InfeasibleError",
        given(moment=torch.zeros(24, 24, dtype=torch.float64), preservation=solve.Preservation(dead_ridge=0.0)),
    ),
    "moments of two widths": (
        "SecondMoment.merge",
        "MomentsError",
        given(other=SecondMoment(torch.eye(3, dtype=torch.float64), 3)),
    ),
    "no such model": ("load", "ModelNotFoundError", given(name="/is/not/there")),
    "no model": ("wrap", "UnsupportedModelError", given(model=torch.nn.Linear(2, 2))),
    "a server that is not there": ("withdraw", "ServerError", given(server="http://127.0.0.1:9", timeout=1.0)),
    "a name that is taken": ("register_method", "PluginError", lambda values, folder: {"config": values["config"]}),
}


def _made(path: Path) -> Path:
    path.touch()
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Values, Path]:
    folder = tmp_path_factory.mktemp("world")
    return values_of(folder), folder


def test_rows_are_promises() -> None:
    for name, error, _ in ROWS.values():
        function = inspect.unwrap(getattr(PUBLIC[name], "__func__", PUBLIC[name]))
        assert re.search(rf"^ *(\w+, )*{error}\b", inspect.getdoc(function) or "", re.MULTILINE), (name, error)


@pytest.mark.parametrize("row", ROWS)
def test_what_is_promised_is_raised(row: str, world: tuple[Values, Path]) -> None:
    values, folder = world
    name, error, change = ROWS[row]
    known = {**arguments(name, values), **change(values, folder)}
    with pytest.raises(getattr(errors, error)):
        PUBLIC[name](**known)
