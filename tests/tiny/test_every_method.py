"""Every method and every baseline: one way in, one plan, one report, from the library and from the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import emendo as library
from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.errors import InputError, MethodError, RequestError
from emendo.evaluate import evaluate_records
from emendo.methods import BASELINES, METHODS, BaselineConfig, method_named
from emendo.methods.baselines import FineTuneSettings
from emendo.methods.in_context import in_context_records
from emendo.models import EditableModel
from emendo.report import judge, layer_table, markdown_report, report_document
from emendo.requests import EditRecord, EditRequest
from emendo.statistics import MomentStore
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.tiny.conftest import Command

RECORDS = [
    EditRecord(
        EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
        target_true="Paris",
        paraphrase_prompts=("The Eiffel Tower stands in",),
        neighborhood_prompts=("The capital of France is",),
    ),
    EditRecord(EditRequest("The capital of {} is", "Japan", "Bordeaux"), target_true="Tokyo"),
]
REQUESTS = [record.request for record in RECORDS]
ROWS = [
    {
        "prompt": record.request.prompt,
        "subject": record.request.subject,
        "target": record.request.target,
        "target_true": record.target_true,
        "paraphrase_prompts": record.paraphrase_prompts,
        "neighborhood_prompts": record.neighborhood_prompts,
    }
    for record in RECORDS
]
QUICK: dict[str, Any] = {"target.steps": 2, "contexts.scheme": "fixed", "moments.multiple": 4}
SHORT: dict[str, dict[str, Any]] = {
    "ft": {"fine_tune.steps": 3},
    "ft-l": {"fine_tune.steps": 3},
    "lora": {"lora.steps": 3},
    "in-context": {},
    # On the tiny model no eigenvalue of C is below the published threshold: it says so, and to use about this one.
    "alphaedit": {**QUICK, "preservation.threshold": 0.3},
}
TRAINED = ("ft", "ft-l", "lora")
EVERY = [*METHODS, *BASELINES]

pytestmark = pytest.mark.usefixtures("home")


def settings_of(name: str) -> dict[str, Any]:
    return SHORT.get(name, QUICK)


def options_of(name: str) -> list[str]:
    return [part for pair in settings_of(name).items() for part in ("--set", "{}={}".format(*pair))]


@pytest.fixture
def facts(tmp_path: Path) -> str:
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def session(store: MomentStore, tiny_llama: EditableModel) -> EditSession:
    return EditSession(tiny_llama, store=store)


def quick_plan(session: EditSession, name: str, requests: list[EditRequest] = REQUESTS, **kwargs: Any) -> Plan:
    return session.plan(requests, name, settings=settings_of(name), **kwargs)


# ---- every one, through the command --------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_every_one_edits_and_leaves_a_file_that_goes_in_and_out(
    name: str, emendo: Command, model: str, facts: str, tmp_path: Path
) -> None:
    arguments = ["edit", "--model", model, "--requests", facts, "--method", name, *options_of(name)]
    code, text, err = emendo(*arguments, "--out", str(tmp_path / "out"), "--json", "--quiet")
    assert (code, err) == (0, "")
    document = json.loads(text)
    assert document["method"]["name"] == name
    assert document["method"]["origins"].keys() == document["method"]["settings"].keys()
    assert set(document["rolled_back_bitwise"].values()) <= {True}
    assert document["judgement"]["perplexity"]["ratio"] > 0
    assert (document["training"] is not None) == (name in BASELINES)
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.startswith(f"# 2 facts ({document['base']['name']}, method {name})")
    assert "| None |" not in report, "what is off reads as --set takes it"
    for request in REQUESTS:
        assert report.count(request.target) > 0

    update = ModelUpdate.load(tmp_path / "out" / "update.safetensors")
    assert update.id == document["update"]["id"]
    assert [part.layer for part in update.layers] == document["update"]["layers"]
    session = EditSession(library.load(model))
    before = model_state(session.lm)
    session.apply(update)
    assert ("weights" in changes(before, model_state(session.lm))) == (name != "in-context")
    session.rollback()
    assert changes(before, model_state(session.lm)) == []


@pytest.mark.parametrize("name", EVERY)
def test_plan_only_says_where_every_value_comes_from(name: str, emendo: Command, model: str, facts: str) -> None:
    arguments = ["edit", "--model", model, "--requests", facts, "--method", name, *options_of(name), "--plan-only"]
    code, text, err = emendo(*arguments, "--json")
    assert code == 0, err
    method = json.loads(text)["method"]
    assert method["origins"].keys() == method["settings"].keys()
    given = {setting for setting, origin in method["origins"].items() if origin == "given (--set)"}
    assert given == settings_of(name).keys()
    for setting, value in settings_of(name).items():
        assert method["settings"][setting] == value
    if name in ("emendo", "ft", "in-context"):  # one of each kind, as a person reads it
        assert emendo(*arguments)[0] == 0


def test_plan_only_shows_the_prompts_that_are_asked(emendo: Command, model: str, facts: str) -> None:
    arguments = ["edit", "--model", model, "--requests", facts, "--plan-only", "--json", "--method"]
    asked = json.loads(emendo(*arguments, "in-context")[1])["requests"]
    lead = "Imagine that The capital of Japan is Bordeaux. "
    assert asked[1]["prompt"] == lead + "The capital of {} is"
    assert "Japan".endswith(asked[1]["subject_last_token"].strip())
    assert json.loads(emendo(*arguments, "ft")[1])["requests"][1]["prompt"] == "The capital of {} is"


def test_a_null_space_that_keeps_nothing_is_bad_input(emendo: Command, model: str, facts: str) -> None:
    quick = [part for pair in QUICK.items() for part in ("--set", "{}={}".format(*pair))]
    code, _, err = emendo("edit", "--model", model, "--requests", facts, "--method", "alphaedit", *quick, "--quiet")
    assert code == 2
    assert "--set preservation.threshold" in err


# ---- what reports say ----------------------------------------------------------------------------------------


def section(report: str, title: str) -> list[list[str]]:
    """The rows of the table under a heading of a Markdown report, header first."""
    lines = report.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [rows[0], *rows[2:]]


@pytest.mark.parametrize("method", ["blue", "memit", "rome"])
def test_the_report_has_a_target_for_every_request_and_searched_layer(
    method: str, emendo: Command, model: str, facts: str, tmp_path: Path
) -> None:
    arguments = ["edit", "--model", model, "--requests", facts, "--method", method, *options_of(method)]
    arguments += ["--layers", "0,3"] if method == "blue" else []
    code, text, err = emendo(*arguments, "--out", str(tmp_path / "out"), "--json")
    assert code == 0, err
    header, *rows = section((tmp_path / "out" / "report.md").read_text(), "Target search")
    traces = json.loads(text)["targets"]
    subjects = [request.subject for request in REQUESTS]
    if method == "blue":
        assert header[:4] == ["subject", "target", "layer", "NLL (nats)"]
        assert [(row[0], row[2]) for row in rows] == [(name, layer) for name in subjects for layer in ("0", "3")]
        # The search runs layer by layer; the table is read request by request.
        ordered = [traces[i] for i in (0, 2, 1, 3)]
        assert [trace["layer"] for trace in ordered] == [0, 3, 0, 3]
        assert [row[3] for row in rows] == [f"{trace['nll']:.3f}" for trace in ordered]
    else:
        assert header[:3] == ["subject", "target", "NLL (nats)"]
        assert [row[0] for row in rows] == subjects
        assert [row[2] for row in rows] == [f"{trace['nll']:.3f}" for trace in traces]


def test_ends_one_by_one_keeps_targets_with_their_requests(session: EditSession) -> None:
    plan = session.plan(REQUESTS, "blue", layers=[0, 3], settings={**QUICK, "batching": "one_by_one"})
    document = report_document(plan, None, {})
    _, *rows = section(markdown_report(document), "Target search")
    assert [(row[0], row[2]) for row in rows] == [
        (request.subject, layer) for request in REQUESTS for layer in ("0", "3")
    ]
    assert [row[3] for row in rows] == [f"{trace.nll:.3f}" for trace in plan.targets]


def test_kept_dimensions_are_shown_where_a_null_space_is_on(
    emendo: Command, model: str, facts: str, tmp_path: Path
) -> None:
    arguments = ["edit", "--model", model, "--requests", facts, "--out", str(tmp_path / "out")]
    code, text, err = emendo(*arguments, "--method", "alphaedit", *options_of("alphaedit"))
    assert code == 0, err
    header, *rows = section((tmp_path / "out" / "report.md").read_text(), "What the edit does to each layer")
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    kept = [layer["solves"][0]["dimensions"] for layer in document["layers"]]
    assert all(0 < dimensions < 48 for dimensions in kept)
    assert [row[header.index("dimensions kept")] for row in rows] == [f"{dimensions} of 48" for dimensions in kept]
    assert f"{kept[0]} of 48" in " ".join(text.split())
    code, text, err = emendo(*arguments, "--overwrite", "--method", "memit", *options_of("memit"))
    assert code == 0, err
    assert "dimensions" not in (tmp_path / "out" / "report.md").read_text()
    assert "achieved" in text


def test_achieved_and_interference_are_shown(session: EditSession) -> None:
    first = quick_plan(session, "memit", REQUESTS[:1])
    header, _ = layer_table(report_document(first, None, {}))
    assert "interference" not in header, "nothing earlier to disturb"
    session.apply(first.update)
    second = quick_plan(session, "memit", REQUESTS[1:])
    header, rows = layer_table(report_document(second, None, {}))
    assert [row[header.index("achieved")] for row in rows] == [f"{report.achieved:.3f}" for report in second.layers]
    interference = [report.interference for report in second.layers]
    assert all(value is not None and value > 0 for value in interference)
    assert [row[header.index("interference")] for row in rows] == [f"{value:.4f}" for value in interference]
    assert section(markdown_report(report_document(second, None, {})), "What the edit does to each layer")[1:] == [
        list(row) for row in rows
    ]


def test_a_report_of_training_says_what_it_reached(session: EditSession) -> None:
    plan = quick_plan(session, "ft")
    document = report_document(plan, None, {})
    header, *rows = layer_table(document)[0], *layer_table(document)[1]
    assert header == ("layer", "‖ΔW‖", "‖ΔW‖/‖W‖"), "no figure that a baseline does not have"
    assert len(rows) == 1
    report = markdown_report(document)
    assert "3 pass(es), 3 step(s), stopped by steps" in report
    assert [row[0] for row in section(report, "Training")[1:]] == [request.subject for request in REQUESTS]
    assert "Target search" not in report


# ---- baselines through a session -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
def test_a_baseline_is_measured_like_a_method(name: str, session: EditSession) -> None:
    base = session.lm.weight(1).clone()
    session.apply(quick_plan(session, "memit", REQUESTS[:1], layers=[1]).update)
    earlier = session.applied_updates[0].layers[0]
    plan = quick_plan(session, name, REQUESTS[1:], layers=[1])
    (part,), (report,) = plan.update.layers, plan.layers
    delta, before = part.delta().double(), earlier.delta().double()
    assert plan.update.preceding == Predecessors.of(session.applied_ids)
    assert report.update_norm == pytest.approx(float(delta.norm()), rel=1e-6)
    assert report.relative_norm == pytest.approx(float(delta.norm() / (base + before).norm()), rel=1e-6)
    keys = earlier.keys.double()
    assert report.interference == pytest.approx(float((keys @ delta.T).norm() / (keys @ before.T).norm()), rel=1e-5)
    assert (report.solves, report.relative_cost, report.achieved) == ((), None, None)
    assert plan.update.info["layers"] == [report.to_dict()]
    session.apply(plan.update)
    assert torch.equal(session.lm.weight(1), (base + earlier.delta()) + part.delta())
    session.rollback()
    assert torch.equal(session.lm.weight(1), base)


@pytest.mark.parametrize("name", [*TRAINED, "in-context"])
def test_a_baseline_plan_leaves_no_trace_and_collects_no_moments(name: str, session: EditSession) -> None:
    session._metrics.store = None  # type: ignore[assignment]  # any use of it fails
    before = model_state(session.lm)
    plan = quick_plan(session, name)
    assert changes(before, model_state(session.lm)) == []
    assert (plan.contexts, plan.targets) == ((), ())
    assert plan.update.id == quick_plan(session, name).update.id
    assert plan.update.base == session.base


def test_a_config_of_ones_own(session: EditSession) -> None:
    own = BaselineConfig(name="gentle", source="this test", own=FineTuneSettings(steps=2, max_change=1e-5))
    plan = session.plan(REQUESTS, own, layers=[1, 2])
    assert plan.method.config.name == "gentle"
    assert [part.layer for part in plan.update.layers] == [1, 2]
    assert max(float(part.delta().abs().max()) for part in plan.update.layers) == pytest.approx(1e-5)
    assert plan.method.origins["fine_tune.steps"] == "baseline gentle"
    assert plan.method.origins["layers"] == "given (--layers)"


def test_a_history_needs_keys_that_a_baseline_does_not_have(session: EditSession) -> None:
    session.apply(quick_plan(session, "ft", layers=[1]).update)
    with pytest.raises(InputError, match=r"history\.weight=1.*has none for layer 1"):
        quick_plan(session, "memit-history", layers=[1, 2])
    quick_plan(session, "memit", layers=[1, 2])


def test_in_context_changes_no_weights_and_is_judged_with_the_fact_in_front(session: EditSession) -> None:
    plan = quick_plan(session, "in-context")
    assert (plan.update.layers, plan.layers) == ((), ())
    judgement = judge(session, plan, RECORDS, shown=1, new_tokens=2)
    own = method_named("in-context").own
    plain = evaluate_records(session.lm, RECORDS)
    asked = evaluate_records(session.lm, in_context_records(RECORDS, own))
    assert judgement.before.to_dict() == plain.to_dict()
    assert judgement.after.to_dict() == asked.to_dict()
    assert plain.to_dict() != asked.to_dict()
    assert judgement.perplexity_ratio == 1
    prompts = [in_context_records(RECORDS, own)[0].request.text, RECORDS[0].request.text]
    after, before = (text.strip() for text in session.lm.generate_many(prompts, 2))
    assert (judgement.samples[0].before, judgement.samples[0].after) == (before, after)
    assert judgement.samples[0].prompt == RECORDS[0].request.text
    report = markdown_report(report_document(plan, judgement, {}))
    assert "No weights change." in report
    assert "## Training" not in report


def test_in_context_goes_in_and_out_like_any_update(session: EditSession, tmp_path: Path, store: MomentStore) -> None:
    before = model_state(session.lm)
    plan = quick_plan(session, "in-context")
    loaded = ModelUpdate.load(plan.update.save(tmp_path / "update.safetensors"))
    assert (loaded.id, loaded.info) == (plan.update.id, json.loads(json.dumps(plan.update.info)))
    session.apply(loaded)
    later = quick_plan(session, "memit")
    assert later.update.preceding == Predecessors.of([loaded.id])
    session.apply(later.update)
    session.rollback()
    assert changes(before, model_state(session.lm)) == []
    assert set(session.verify_rolled_back().values()) == {True}
    untouched = EditSession(build_tiny("llama"), store=store)
    assert untouched.verify_rolled_back() == {}


def test_in_context_on_the_terminal(emendo: Command, model: str, facts: str) -> None:
    code, text, err = emendo("edit", "--model", model, "--requests", facts, "--method", "in-context")
    assert code == 0, err
    assert "no weights changed" in text
    assert "asked with its fact in front" in " ".join(text.split())
    assert "ratio 1.0000" in text
    assert "What the edit does to the weights" not in text


NOWHERE = [
    *("--model", "./nowhere"),
    *("--prompt", "{} is in", "--subject", "The Eiffel Tower", "--target", "Rome"),
]

# ---- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"), [("lorra", "lora"), ("FTL", "ft-l"), ("incontext", "in-context"), ("memmit", "memit")]
)
def test_an_unknown_name_lists_methods_and_baselines(name: str, near: str, session: EditSession) -> None:
    with pytest.raises(MethodError, match=f"did you mean '{near}'") as raised:
        session.plan(REQUESTS, name)
    for known in EVERY:
        assert known in str(raised.value)


def test_no_name_is_both() -> None:
    assert not set(METHODS) & set(BASELINES)
    for name in EVERY:
        assert method_named(name).name == name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "ft", "--set", "fine_tune.step=3"], "did you mean 'fine_tune.steps'"),
        (["--method", "ft", "--set", "target.steps=3"], "unknown setting 'target.steps'"),
        (["--method", "ft", "--set", "layers=3"], "such as --layers 5"),
        (["--method", "memit", "--set", "target.steps=0"], "above 0"),
        (["--method", "memit", "--set", "target.step=3"], "did you mean 'target.steps'"),
        (["--method", "lora", "--set", "lora.rank=0"], "lora.rank='0'"),
        (["--method", "lore"], "did you mean 'lora'"),
    ],
)
@pytest.mark.parametrize("command", ["edit", "demo"])
def test_refused_before_a_model_is_looked_for(command: str, arguments: list[str], words: str, emendo: Command) -> None:
    code, out, err = emendo(command, *([*NOWHERE] if command == "edit" else []), *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "nowhere" not in err


def test_a_fact_that_cannot_stand_in_front_of_a_prompt(session: EditSession, emendo: Command) -> None:
    code, _, err = emendo("edit", *NOWHERE, "--method", "in-context", "--target", "a {}")
    assert code == 2
    assert "must not hold {}" in err
    with pytest.raises(RequestError, match="reword"):
        session.plan([EditRequest("{} is in", "Rome", "a {}")], "in-context")


def test_layers_for_a_baseline_without_layers(emendo: Command, model: str, facts: str) -> None:
    code, _, err = emendo(
        "edit", "--model", model, "--requests", facts, "--method", "in-context", "--layers", "1", "--quiet"
    )
    assert code == 2
    assert "leave --layers out" in err
