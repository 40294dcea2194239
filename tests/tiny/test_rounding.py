"""What a report says was written is what is in the model: measured after the cast to the model's dtype."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from emendo.editing.session import EditSession
from emendo.errors import EmendoWarning
from emendo.export import write_checkpoint
from emendo.requests import EditRequest
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.conftest import build_tiny

FACTS = [
    EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
    EditRequest("The capital of {} is", "Japan", "Paris"),
]
SETTINGS = {"target.steps": 3, "contexts.scheme": "none", "moments.multiple": 2}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rate", [3e-2, 3e-4])
@pytest.mark.filterwarnings("ignore::emendo.errors.EmendoWarning")
def test_written_is_what_is_in_the_model(dtype: torch.dtype, rate: float) -> None:
    lm = build_tiny(dtype=dtype)
    session = EditSession(lm)
    plan = session.plan(FACTS, "emmet", settings={**SETTINGS, "target.learning_rate": rate})
    (part,), (report,) = plan.update.layers, plan.layers
    assert part.keys is not None
    before = lm.weight(part.layer).double().clone()
    with session.applied(plan.update):
        delta = lm.weight(part.layer).double() - before
    given, wanted = part.keys.double() @ delta.T, part.residuals.double()
    assert report.written == pytest.approx(float((given * wanted).sum() / wanted.square().sum()), abs=1e-4)
    asked = part.at(part.keys)
    shares = (given * asked).sum(dim=1) / asked.square().sum(dim=1)
    assert report.kept == (None if dtype == torch.float32 else pytest.approx(float(shares.min()), abs=1e-4))
    assert plan.update.info["layers"][0]["written"] == report.written


@pytest.mark.parametrize("method", ["emmet", "ft-l"])
def test_an_edit_that_rounding_eats_is_told_with_the_remedy(method: str) -> None:
    lm = build_tiny(dtype=torch.bfloat16)
    trained = {"fine_tune.steps": 1, "fine_tune.learning_rate": 1e-5}
    small = {**SETTINGS, "target.learning_rate": 1e-5} if method == "emmet" else trained
    with pytest.warns(EmendoWarning, match="rounding to bfloat16 loses part of this edit.*--dtype float32"):
        plan = EditSession(lm).plan(FACTS, method, settings=small)
    assert min(report.kept or 0 for report in plan.layers) < 0.5


def test_a_checkpoint_in_a_coarser_dtype_tells_what_it_loses(tmp_path: Path) -> None:
    lm = build_tiny()
    part = LayerUpdate(1, lm.module_name(1), torch.ones(1, 32), torch.ones(1, 48) * 1e-6)
    update = ModelUpdate((part,), lm.identity())
    with pytest.warns(EmendoWarning, match="rounding to bfloat16 loses part"):
        write_checkpoint(lm, [update], tmp_path / "coarse", dtype="bfloat16")


def test_an_edit_that_rounding_leaves_is_not_spoken_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", EmendoWarning)
        plan = EditSession(build_tiny()).plan(FACTS, "emmet", settings=SETTINGS)
    assert plan.layers[0].kept is None  # nothing finer to go to
