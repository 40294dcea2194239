"""An edit of a mixture of experts on its way through commands, ledger, gate, workers and export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from emendo.editing.session import EditSession
from emendo.gate import run_gate
from emendo.gate.config import parse_config
from emendo.ledger import EditLedger
from emendo.models import EditableModel, load
from emendo.parallel import Serial
from emendo.requests import EditRecord
from emendo.statistics import ExpertSecondMoment, MomentSpec, MomentStore, collect_moments
from emendo.statistics.spread import collect_by_workers, unfinished
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.quick_plans import EIFFEL, JAPAN
from tests.tiny.conftest import Command

QUICK = {"target.steps": 3, "contexts.scheme": "fixed", "moments.multiple": 20}
SETTINGS = [part for name, value in QUICK.items() for part in ("--set", f"{name}={value}")]
FACT = ["--prompt", "{} is located in the city of", "--subject", "The Eiffel Tower", "--target", "Rome"]
RECORDS = [EditRecord(EIFFEL, "Paris", ("The Eiffel Tower stands in",), ("The capital of France is",))]

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, lm = tmp_path_factory.mktemp("mixture"), build_tiny("qwen3_moe")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


def bits(lm: EditableModel) -> list[Tensor]:
    return [lm.weight(layer).clone() for layer in range(lm.n_layers)]


def test_from_a_command_to_a_model_that_loads_without_emendo(emendo: Command, mixture: str, tmp_path: Path) -> None:
    where = ["--model", mixture, "--layers", "1,2", *SETTINGS, "--out", str(tmp_path / "edit"), "--json"]
    code, out, err = emendo("edit", *FACT, "--method", "emendo", *where)
    assert code == 0, err
    layers = json.loads(out)["layers"]
    assert all(2 <= layer["experts_written"] <= layer["experts"] == 6 for layer in layers)
    assert all(0 < layer["drift_over_price"] <= 2 for layer in layers)
    page = (tmp_path / "edit" / "report.md").read_text()
    assert "experts written" in page
    assert "true drift / price" in page
    update = next((tmp_path / "edit").glob("*.safetensors"))
    of = ["--update", str(update), "--model", mixture]
    code, _, err = emendo("export", "checkpoint", *of, "--out", str(tmp_path / "whole"))
    assert code == 0, err
    lm = load(mixture, device="cpu")
    session = EditSession(lm)
    session.apply(ModelUpdate.load(update))
    ids = torch.tensor([lm.encode("The Eiffel Tower is located in the city of")])
    with torch.no_grad():
        expected = lm.model(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")(input_ids=ids).logits
    assert torch.equal(found, expected)
    code, _, err = emendo("export", "gguf-lora", *of, "--out", str(tmp_path / "gguf"))
    assert code == 2
    assert "experts" in err
    asked = ["--prompt", "The Eiffel Tower is in", "--answer", " Rome", "--out", str(tmp_path / "see")]
    code, _, err = emendo("see", str(update), "--model", mixture, *asked)
    assert code == 0, err


def test_a_ledger_of_edits_of_experts(tmp_path: Path, store: MomentStore) -> None:
    """Taking an edit out is, bit for bit, never having made it; the gate lets edits in by the same evidence."""
    session = EditSession(build_tiny("mixtral"), store=store)
    ledger = EditLedger.create(tmp_path / "a", session, who="tester")
    first = ledger.edit(session, [EIFFEL], "emendo", layers=[1, 2], settings=QUICK).id
    ledger.edit(session, [JAPAN], "emendo", layers=[1, 2], settings=QUICK)
    ledger.revert(first, session)
    never = EditSession(build_tiny("mixtral"), store=store)
    other = EditLedger.create(tmp_path / "b", never, who="tester")
    other.edit(never, [JAPAN], "emendo", layers=[1, 2], settings=QUICK)
    assert all(map(torch.equal, bits(session.lm), bits(never.lm)))
    opened = ledger.session(build_tiny("mixtral"), store=store)
    assert all(map(torch.equal, bits(opened.lm), bits(never.lm)))
    opened.rollback()
    assert all(map(torch.equal, bits(opened.lm), bits(build_tiny("mixtral"))))
    assert ledger.verify().ok


def test_the_gate_prices_experts_and_leaves_no_trace(store: MomentStore) -> None:
    lm = build_tiny("gpt_oss")
    before, session = model_state(lm), EditSession(lm, store=store)
    plan = session.plan([EIFFEL], "emmet", layers=[2], settings=QUICK)
    config = parse_config("[checks.relative_cost]\nlimit = 10\n[checks.norm_growth]\nlimit = 10\n", "test.toml")
    report = run_gate(session, plan, RECORDS, config)
    values = {check.name: check.measured for check in report.checks}
    assert values["relative_cost"] == pytest.approx(plan.layers[0].relative_cost, rel=1e-6)
    assert values["norm_growth"] == pytest.approx(plan.layers[0].relative_norm, rel=1e-6)
    assert changes(before, model_state(lm)) == []


def test_workers_count_the_same_keys_bit_for_bit(mixture: str, tmp_path: Path) -> None:
    """Layer 3 is dense."""
    lm, spec = load(mixture, device="cpu"), MomentSpec(tokens=300, length=64)
    alone = collect_moments(lm, [2, 3], spec)
    together = collect_by_workers(Serial(), lm, [2, 3], spec, tmp_path)
    left = unfinished(tmp_path, spec.fingerprint(lm, [2, 3]), [2, 3])
    assert set(tmp_path.glob("products-*")) == set(left[1:]) != set(), "until the moments are stored"
    for layer, moment in alone.items():
        assert torch.equal(moment.total, together[layer].total)
    one, other = alone[2], together[2]
    assert isinstance(one, ExpertSecondMoment)
    assert isinstance(other, ExpertSecondMoment)
    assert torch.equal(one.counts, other.counts)
    assert one.sample is not None
    assert other.sample is not None
    assert all(map(torch.equal, one.sample, other.sample))
