"""Files with the names that fields had in earlier versions are read, in the words of today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emendo.errors import GateConfigError
from emendo.experiments.summary import _layers
from emendo.gate import default_text
from emendo.gate.config import parse_config
from emendo.io.former_names import LAYER_FIELDS, METHOD_SETTINGS, with_current_names
from emendo.methods import ADDED_SETTINGS, METHODS
from emendo.report.tables import layer_table

EARLIER = Path(__file__).parents[1] / "earlier" / "0c35ce6"


def test_a_row_gets_the_names_of_today() -> None:
    assert with_current_names({"written": 1, "layer": 2}, LAYER_FIELDS) == {"achieved": 1, "layer": 2}
    assert with_current_names({"achieved": 1}, LAYER_FIELDS) == {"achieved": 1}
    both = {"achieved": 1, "written": 2}
    assert with_current_names(both, LAYER_FIELDS) == both, "what a file says twice is not settled here"


def test_a_journal_of_an_earlier_version_is_summarised_as_it_was() -> None:
    (cell,) = (EARLIER / "experiment" / "cells").iterdir()
    batches = [json.loads(line) for line in (cell / "batches.jsonl").read_text().splitlines()]
    assert "written" in batches[0]["layers"][0]
    then = json.loads((cell / "summary.json").read_text())["layers"]
    now = {row["layer"]: row for row in _layers(batches, None)}
    for row in then:
        for old, new in LAYER_FIELDS.items():
            assert now[row["layer"]][new] == row[old]


def test_a_report_of_an_earlier_version_has_its_table() -> None:
    document = json.loads((EARLIER / "update" / "report.json").read_text())
    header, rows = layer_table(document)
    shown = [row[header.index("achieved")] for row in rows]
    assert shown == [f"{layer['written']:.3f}" for layer in document["layers"]]


def test_a_gate_with_the_former_name_of_a_limit_is_read() -> None:
    former = default_text().replace("\ninterference = ", "\ndisturbed = ")
    assert former != default_text()
    assert parse_config(former, "mine.toml") == parse_config(default_text(), "mine.toml")
    with pytest.raises(GateConfigError) as caught:
        parse_config(former + "interference = 0.1\n", "mine.toml")
    assert "disturbed" in caught.value.problems[0]


def test_every_setting_since_then_says_what_an_edit_was_without_it() -> None:
    for path in (EARLIER / "ledger" / "records").iterdir():
        method = json.loads(path.read_text())["details"].get("method")
        if method is not None:
            then = with_current_names(method["settings"], METHOD_SETTINGS)
            assert METHODS[method["name"]].settings().keys() - then.keys() == ADDED_SETTINGS.keys()
