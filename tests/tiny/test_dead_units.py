"""Units of a ReLU that never fire: C is singular for ever, and every method plans all the same, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from emendo.editing.session import EditSession
from emendo.errors import InfeasibleError
from emendo.ledger import EditLedger
from emendo.methods import METHODS
from emendo.models import EditableModel
from emendo.requests import EditRequest
from emendo.solve import Preservation, prepare, solve
from emendo.statistics import MomentStore
from tests.conftest import ROWS, build_tiny, build_tokenizer, model_type_of, tiny_config
from tests.pairs import pairs
from tests.tiny.conftest import Command

REQUEST = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
OTHER = EditRequest("{} is located in", "Japan", "Europe")
SETTINGS = {"target.steps": 2, "contexts.scheme": "none"}
ACTIVATIONS = {
    "opt": {"activation_function": "relu"},
    "gpt2": {"activation_function": "relu"},
    "llama": {"hidden_act": "relu"},
    "gpt_neox": {"hidden_act": "relu2"},
}


def build_relu(family: str, *, dead: bool = True) -> EditableModel:
    """A tiny model with a ReLU, some of whose units can never fire."""
    tokenizer = build_tokenizer(bos=True)
    settings = {**ROWS[family], **ACTIVATIONS[family]}
    config = AutoConfig.for_model(model_type_of(family), vocab_size=len(tokenizer), **settings)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    lm = EditableModel(model, tokenizer, name=f"tiny-{family}-relu")
    for module in model.modules():
        bias = getattr(module, "bias", None)
        if dead and bias is not None and bias.shape == (lm.d_in(0),):
            bias.data[::3] = -1e4
        if dead and type(module).__name__ == "LlamaMLP":
            module.gate_proj.weight.data[::3] = 0
    return lm


PRICED = [m.name for m in METHODS.values() if m.preservation.weight != 0 and m.preservation.null_space == "off"]


@pytest.mark.parametrize(("method", "family"), pairs(PRICED, sorted(ACTIVATIONS)))
def test_every_method_plans_on_a_model_with_dead_units(method: str, family: str, store: MomentStore) -> None:
    session = EditSession(build_relu(family), store=store)
    resolved = session.resolve(method)
    assert resolved.config.preservation.dead_ridge == 1e-4
    assert "ReLU" in resolved.origins["preservation.dead_ridge"]
    plan = session.plan([REQUEST], method, settings=SETTINGS)
    if not resolved.config.preservation.ridge:
        ridges = plan.update.info["added_ridge"]
        assert set(ridges) == {str(layer) for layer in resolved.config.written_layers}
    if resolved.config.memorization.s == 0:
        assert all(solved.constraint_error < 1e-9 for report in plan.layers for solved in report.solves)


def test_the_ridge_scales_with_c_and_is_recorded(tmp_path: Path) -> None:
    session = EditSession(build_relu("opt"), store=MomentStore(tmp_path))
    plan = session.plan([REQUEST], "emmet", settings=SETTINGS)
    ((layer, ridge),) = plan.update.info["added_ridge"].items()
    moments, _ = session.second_moments([int(layer)], session.resolve("emmet").config.moments)
    assert ridge == pytest.approx(1e-4 * float(moments[int(layer)].diagonal().mean()), rel=1e-12)
    again = session.plan([REQUEST], "emmet", settings=SETTINGS)
    assert again.update.id == plan.update.id
    given = session.plan([REQUEST], "emmet", settings={**SETTINGS, "preservation.ridge": ridge})
    assert given.update.id == plan.update.id, "what is added is an ordinary ridge"
    assert "added_ridge" not in given.update.info


def test_a_model_without_dead_units_is_edited_bit_for_bit_as_before(tmp_path: Path) -> None:
    session = EditSession(build_tiny("opt"), store=MomentStore(tmp_path))  # with GELU
    assert session.resolve("emmet").config.preservation.dead_ridge == 0
    plain = session.plan([REQUEST], "emmet", settings=SETTINGS)
    allowed = session.plan([REQUEST], "emmet", settings={**SETTINGS, "preservation.dead_ridge": 1e-4})
    assert "added_ridge" not in allowed.update.info
    for one, other in zip(plain.update.layers, allowed.update.layers, strict=True):
        assert torch.equal(one.residuals, other.residuals)
        assert torch.equal(one.dual_keys, other.dual_keys)


def test_a_refusal_names_a_remedy_that_works(tmp_path: Path) -> None:
    session = EditSession(build_relu("opt"), store=MomentStore(tmp_path))
    with pytest.raises(InfeasibleError, match="never fire on preserved text") as caught:
        session.plan([REQUEST], "emmet", settings={**SETTINGS, "preservation.dead_ridge": 0})
    assert "more tokens" not in str(caught.value)
    remedies = [part.split("`")[0] for part in str(caught.value).split("--set ")[1:]]
    assert len(remedies) == 2
    for remedy in remedies:
        name, _, value = remedy.partition("=")
        assert session.plan([REQUEST], "emmet", settings={**SETTINGS, name: value}).update.layers


def test_edits_with_a_history_and_a_ledger_that_takes_one_out(tmp_path: Path) -> None:
    session = EditSession(build_relu("opt"), store=MomentStore(tmp_path / "moments"))
    ledger = EditLedger.create(tmp_path / "ledger", session)
    for request in (REQUEST, OTHER):
        ledger.edit(session, [request], "emendo", settings=SETTINGS)
    replayed = EditLedger(tmp_path / "ledger")
    first, second = [entry.edit for entry in ledger.state()]
    ledger.revert(first, session, how="algebraic")  # in the metric that the edits were solved in
    assert [entry.edit for entry in replayed.state()] != [first, second]
    (left,) = ledger.updates()
    written = [part.delta() @ part.keys[0] for part in left.layers if part.keys is not None]
    assert written
    assert all(change.isfinite().all() and change.norm() > 0 for change in written)


def test_the_plan_and_the_report_say_it(emendo: Command, home: Path, tmp_path: Path) -> None:
    lm = build_relu("opt")
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    fact = ["--prompt", REQUEST.prompt, "--subject", REQUEST.subject, "--target", REQUEST.target]
    command = ["edit", "--model", str(tmp_path / "model"), *fact, "--method", "emmet", "--set", "target.steps=2"]
    code, out, _ = emendo(*command, "--plan-only", "--json")
    method = json.loads(out)["method"]
    assert (code, method["settings"]["preservation.dead_ridge"]) == (0, 1e-4)
    assert "ReLU" in method["origins"]["preservation.dead_ridge"]
    code, out, _ = emendo(*command, "--out", "result")
    assert code == 0
    assert "C is singular" in " ".join(out.split())
    assert "C is singular" in Path("result/report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_directions_that_nothing_uses_cost_what_a_small_ridge_says(scale: float) -> None:
    """Coordinates that are zero, and combinations of others: a unit that fired once together with another."""
    generator = torch.Generator().manual_seed(0)
    live = torch.randn(100, 6, generator=generator, dtype=torch.float64) * scale**0.5
    keys = torch.cat([live, live[:, :1] * 2, torch.zeros(100, 1, dtype=torch.float64)], dim=1)
    moment = keys.T @ keys / 100
    preservation = Preservation(dead_ridge=1e-4)
    metric = prepare(moment, preservation)
    assert metric.asked == preservation
    assert metric.added_ridge == pytest.approx(1e-4 * float(moment.diagonal().mean()), rel=1e-9)
    assert metric.with_history(None).asked == preservation
    edited = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    dual = solve(metric, edited, s=0.0).dual_keys
    torch.testing.assert_close(edited @ dual.T, torch.eye(2, dtype=torch.float64), atol=1e-9, rtol=0)
    with pytest.raises(InfeasibleError):
        prepare(moment, Preservation())


def test_the_family_tests_have_opt_as_it_is() -> None:
    assert tiny_config("opt_post_norm", 300).activation_function == "relu"
