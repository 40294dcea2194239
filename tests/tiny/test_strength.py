"""λ by a share: what it writes is what was asked, on every family, and numbers that were given or published stand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from emendo.editing.session import EditSession
from emendo.errors import InputError, MethodError
from emendo.methods import METHODS
from emendo.models import EditableModel
from emendo.requests import EditRequest
from emendo.solve import prepare, solve
from emendo.solve.settings import Preservation
from emendo.solve.strength import fitting_scale, mean_share
from tests.conftest import FAMILIES, build_tiny
from tests.kinds import few

REQUESTS = [
    EditRequest("{} is in the city of", "The Eiffel Tower", "Rome"),
    EditRequest("{} was born in", "Danielle Darrieux", "Japan"),
    EditRequest("The capital of {} is", "Italy", "Tokyo"),
]
QUICK = {"target.steps": 2, "contexts.scheme": "fixed", "moments.multiple": 12}


def test_a_key_alone_gets_the_share_that_the_rule_says() -> None:
    torch.manual_seed(0)
    keys, samples = torch.randn(3, 8, dtype=torch.float64), torch.randn(40, 8, dtype=torch.float64)
    moment = samples.T @ samples / 40
    leverages = prepare(moment, Preservation(weight=1.0)).leverage(keys)
    scale = fitting_scale([leverages], 2.0, 0.9)
    metric = prepare(moment, Preservation(weight=scale))
    alone = [solve(metric, key[None], s=2.0).stats.memorized for key in keys]
    assert sum(alone) / 3 == pytest.approx(mean_share([leverages], 2.0, scale), abs=1e-12)
    assert mean_share([leverages], 2.0, scale) >= 0.9 > mean_share([leverages], 2.0, 4 * scale)


def test_a_zero_key_has_no_share() -> None:
    with pytest.raises(InputError, match=r"no λ writes 0\.9.*smallest leverage.* 0.*preservation\.weight"):
        fitting_scale([torch.zeros(2, dtype=torch.float64)], 1.0, 0.9)


@pytest.mark.parametrize("method", ["memit", "pmet", "encore", "alphaedit"])
def test_published_methods_write_their_share_on_a_model_without_a_preset(
    method: str, tiny_llama: EditableModel
) -> None:
    settings = {**QUICK, **({"preservation.threshold": 1e9} if method == "alphaedit" else {})}
    plan = EditSession(tiny_llama).plan(REQUESTS[:1], method, settings=settings)
    values = plan.method.config.settings()
    published = METHODS[method].preservation
    assert values["memorization.share"] is None
    if published.weight:
        assert values["preservation.ridge"] / values["preservation.weight"] == published.ridge / published.weight
    solved = [stats.memorized for layer in plan.layers for stats in layer.solves]
    assert 0.94 <= sum(solved) / len(solved) < 0.99  # keys of upper layers move a little as lower ones are written
    assert "in place of" in plan.method.origins["preservation.weight" if published.weight else "preservation.ridge"]


@pytest.mark.parametrize("family", few(FAMILIES))
def test_every_family_gets_its_share(family: str) -> None:
    plan = EditSession(build_tiny(family)).plan(REQUESTS[:1], "memit", settings=QUICK)
    assert plan.layers[0].solves[0].memorized > 0.8
    assert not any("writes" in warning for warning in plan.warnings)


def test_a_given_number_stands_and_is_told_where_it_writes_little(tiny_llama: EditableModel) -> None:
    plan = EditSession(tiny_llama).plan(REQUESTS, "memit", settings={**QUICK, "preservation.weight": 1e6})
    assert plan.method.config.settings()["preservation.weight"] == 1e6
    assert plan.method.origins["memorization.share"] == "off, as λ was given"
    (warning,) = [one for one in plan.warnings if "writes" in one]
    assert "preservation.weight=1e+06" in warning
    assert "--set memorization.share=0.95" in warning


def test_a_chosen_number_is_planned_again_as_it_was(tiny_llama: EditableModel) -> None:
    first = EditSession(tiny_llama).plan(REQUESTS, "memit", settings=QUICK)
    again = EditSession(tiny_llama).plan(REQUESTS, first.method.config)
    for one, other in zip(first.update.layers, again.update.layers, strict=True):
        assert torch.equal(one.dual_keys, other.dual_keys)
        assert torch.equal(one.residuals, other.residuals)


def test_a_share_may_be_asked_of_any_least_squares_and_of_no_equality(tiny_llama: EditableModel) -> None:
    session = EditSession(tiny_llama)
    little = session.plan(REQUESTS[:1], "memit", settings={**QUICK, "memorization.share": 0.5})
    assert 0.45 <= little.layers[0].solves[0].memorized < 0.85
    with pytest.raises(MethodError, match=r"memorization\.share changes nothing.*memorization\.s=1"):
        session.plan(REQUESTS, "emmet", settings={"memorization.share": 0.5})
    own = replace(METHODS["memit"], name="mine", memorization=replace(METHODS["memit"].memorization, share=None))
    assert session.plan(REQUESTS, own, settings=QUICK).method.config.settings()["preservation.weight"] == 15000


def test_facts_in_sequence_keep_one_metric_while_the_number_stays(tiny_llama: EditableModel) -> None:
    session = EditSession(tiny_llama)
    metrics = []
    for request in REQUESTS:
        plan = session.plan([request], "memit-history", settings=QUICK)
        session.apply(plan)
        metrics.append(session.preservation(plan.method.config)[plan.update.layers[0].layer])
    values = [metric.preservation.weight for metric in metrics]
    for one, other, before, after in zip(metrics, metrics[1:], values, values[1:], strict=False):
        assert (one is other) == (before == after)
    session.rollback()
