"""`examples/plugin`: a package adds a method, a distribution, a format, a measure and a gate check, without a fork.

It is installed as pip leaves a package: the modules on the path, and its entry points in a ``.dist-info`` folder.
"""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from emendo.arguments.registry import Registry
from emendo.datasets import FORMATS, load_records
from emendo.editing.session import EditSession
from emendo.evaluate.measures import MEASURES
from emendo.experiments import Experiment, Measures
from emendo.gate import GATE_CHECKS, run_gate
from emendo.gate.config import parse_config
from emendo.methods import CATALOGUE, METHODS
from emendo.solve.distribution import DISTRIBUTIONS
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.experiment_cases import CHEAP, cell, write_records
from tests.quick_plans import EIFFEL, QUICK
from tests.tiny.conftest import Command

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
REGISTRIES: tuple[Registry[object], ...] = (CATALOGUE, DISTRIBUTIONS, FORMATS, MEASURES, GATE_CHECKS)  # type: ignore[assignment]
TRIPLE = {"head": "The Eiffel Tower", "relation": "is located in the city of", "tail": "Rome", "old_tail": "Paris"}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    site = tmp_path / "site"
    shutil.copytree(EXAMPLE / "src", site, ignore=shutil.ignore_patterns("__pycache__"))
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = site / f"emendo_example-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(site))
    for registry in REGISTRIES:  # this process has looked for packages already
        monkeypatch.setattr(registry, "_waiting", None)
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "_origins", dict(registry._origins))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "emendo_example"]:
        del sys.modules[name]


@pytest.mark.usefixtures("plugin")
def test_names_of_a_package_are_everywhere_and_nothing_is_imported_for_them() -> None:
    assert "memit-decay" in CATALOGUE
    assert CATALOGUE.origin("memit-decay") == "package 'emendo-example'"
    assert "decay" in DISTRIBUTIONS
    assert CATALOGUE.named("EMMET").name == "emmet"
    assert "emendo_example" not in sys.modules
    assert METHODS["memit-decay"].distribution == "decay"


@pytest.mark.usefixtures("plugin", "home")
def test_a_method_and_a_format_of_a_package_edit_by_command(emendo: Command, model: str, tmp_path: Path) -> None:
    code, text, err = emendo("methods", "--json")
    assert code == 0, err
    assert json.loads(text)["methods"]["memit-decay"]["axes"]["distribution"] == {"distribution": "decay"}
    file = tmp_path / "triples.jsonl"
    file.write_text(json.dumps(TRIPLE) + "\n")
    assert "triples" in emendo("data", str(file))[1]
    quick = [word for name, value in QUICK.items() for word in ("--set", f"{name}={value}")]
    arguments = [
        "edit",
        "--model",
        model,
        "--requests",
        str(file),
        "--method",
        "Memit-Decay",
        "--layers",
        "1-3",
        *quick,
    ]
    code, text, err = emendo(*arguments, "--json", "--no-judge")
    assert code == 0, err
    document = json.loads(text)
    assert document["method"]["name"] == "memit-decay"
    assert [layer["layer"] for layer in document["layers"]] == [1, 2, 3]


@pytest.mark.usefixtures("plugin")
def test_its_distribution_solves_what_it_says(store: MomentStore) -> None:
    """Halves: the last layer gets half of what the layer before it left, and the values are met."""
    lm = build_tiny("llama")
    session = EditSession(lm, store=store)
    plan = session.plan([EIFFEL], "memit-decay", layers=[1, 3], settings=QUICK)
    even = session.plan([EIFFEL], "memit", layers=[1, 3], settings=QUICK)
    first, of_even = plan.update.layers[0], even.update.layers[0]
    assert [step.share for step in DISTRIBUTIONS["decay"].steps([1, 3])] == [0.5, 1.0]
    assert first.residuals.equal(of_even.residuals), "with two layers even takes a half too"
    three = [step.share for step in DISTRIBUTIONS["decay"].steps([1, 2, 3])]
    assert three == [0.5, 0.5, 1.0]


@pytest.mark.usefixtures("plugin")
def test_its_rows_are_read_and_judged(tmp_path: Path) -> None:
    file = tmp_path / "triples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (TRIPLE, {**TRIPLE, "head": "Big Ben", "tail": ""})))
    loaded = load_records(file)
    assert loaded.source["format"] == "triples"
    (record,) = loaded.records
    assert (record.request.text, record.request.target, record.target_true) == (EIFFEL.text, "Rome", "Paris")
    (rejected,) = loaded.rejected
    assert "tail" in rejected.reason


@pytest.mark.usefixtures("plugin")
def test_its_measure_is_in_summaries(tmp_path: Path, store: MomentStore) -> None:
    data = write_records(tmp_path / "records.jsonl")
    lm = build_tiny("llama")
    measures = Measures(**CHEAP, **{"answer-length": True})
    (found,) = Experiment(
        "test", {}, [cell(data, measures=measures)], tmp_path / "out", lambda _: lm, store=store
    ).run()
    assert set(found["answer-length"]) == {"before", "after"}
    assert found["answer-length"]["before"] > 0


@pytest.mark.usefixtures("plugin")
def test_its_gate_check_judges_an_edit(store: MomentStore) -> None:
    session = EditSession(build_tiny("llama"), store=store)
    plan = session.plan([EIFFEL], "memit", layers=[1, 2], settings=QUICK)
    config = parse_config("[checks.largest_layer]\nlimit = 0.9\n", "a test")
    assert config.model_dump()["checks"]["largest_layer"]["limit"] == 0.9
    report = run_gate(session, plan, [], config)
    (check,) = report.checks
    assert check.name == "largest_layer"
    assert check.measured is not None
    assert 0.5 <= check.measured < 1
    assert check.passed == (check.measured <= 0.9)
    assert "largest_layer" not in report.not_declared
    refused = run_gate(session, plan, [], parse_config("[checks.largest_layer]\nlimit = 0.1\n", "a test"))
    assert not refused.checks[0].passed
