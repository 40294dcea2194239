"""A pass that starts at the block that changed gives what a whole pass gives, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from emendo.editing import keys as keys_module
from emendo.editing.keys import EditActivations
from emendo.models import EditableModel
from emendo.models.resumed import ResumedPass
from emendo.requests import EditRequest
from tests.conftest import ROWS, VARIANTS, WRAPPED, build_tiny

SEQUENCES = [[5, 6, 7, 8, 9], [10, 11, 12], [20, 21, 22, 23, 24, 25, 26]]
REQUESTS = [EditRequest("The capital of {} is", "Japan", "Rome"), EditRequest("{} was born in", "Danielle", "Paris")]
CONTEXTS = ("{}", "The weather was calm. {}")


def change(lm: EditableModel, layer: int) -> None:
    lm.write(layer, lm.weight(layer).flip(0).clone())


def blocks_run(lm: EditableModel) -> list[int]:
    """Which blocks compute from now on, by a hook on a part of each."""
    ran: list[int] = []
    for index in range(lm.n_layers):
        lm.down_projection(index).register_forward_hook(lambda *_, index=index: ran.append(index))
    return ran


@pytest.mark.parametrize("family", sorted([*ROWS, *VARIANTS, *WRAPPED]))
def test_a_resumed_pass_is_a_whole_one(family: str) -> None:
    model = build_tiny(family)
    with model.isolated([1, 2]) as lm:
        resumed = ResumedPass(lm.batch(SEQUENCES))
        first = resumed.run(lm, keys=[1], resid=[2], resume=1)
        assert torch.equal(first.resid[2], lm.run(resumed.batch, resid=[2]).resid[2])
        change(lm, 1)
        ran = blocks_run(lm)
        second = resumed.run(lm, keys=[2], mlp_out=[2], resid=[2], resume=2)
        second.stack()  # of mixtures
        assert ran[0] == 1
        whole = lm.run(resumed.batch, keys=[2], mlp_out=[2], resid=[2])
        for kind in ("keys", "mlp_out", "resid"):
            assert torch.equal(getattr(second, kind)[2], getattr(whole, kind)[2]), kind
        change(lm, 2)
        ran.clear()
        third = resumed.run(lm, resid=[2])
        assert ran[0] == 2
        assert torch.equal(third.resid[2], lm.run(resumed.batch, resid=[2]).resid[2])
        ran.clear()
        resumed.run(lm, resid=[1])  # nothing was to be kept, so this is a whole one
        assert ran[0] == 0


@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_hooks_that_a_model_has_act_once(family: str) -> None:
    """Somebody steers the model: what their hook adds is not added again to what was kept."""
    model = build_tiny(family)

    def steer(module: nn.Module, args: object, out: Tensor | tuple[Tensor, ...]) -> object:
        return (out[0] + 1, *out[1:]) if isinstance(out, tuple) else out + 1

    for block in model.blocks:
        block.register_forward_hook(steer)
    with model.isolated([2]) as lm:
        resumed = ResumedPass(lm.batch(SEQUENCES))
        resumed.run(lm, resid=[2], resume=2)
        change(lm, 2)
        assert torch.equal(resumed.run(lm, resid=[2]).resid[2], lm.run(resumed.batch, resid=[2]).resid[2])


@pytest.mark.parametrize("budget", [2**29, 0], ids=["kept", "too large to keep"])
def test_readings_between_writes_are_those_of_whole_passes(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "RESUMED_BYTES", budget)
    monkeypatch.setattr(keys_module, "REQUESTS_AT_ONCE", 1)
    with build_tiny("gpt2").isolated([0, 1, 2]) as lm:
        ran = blocks_run(lm)
        kept = EditActivations(lm, REQUESTS, CONTEXTS)
        for layer in (0, 1, 2):
            ran.clear()
            keys, values = kept.keys([layer], resume=layer)[layer], kept.values(2, resume=layer)
            if layer == 2:
                assert (0 in ran) == (budget == 0)
            fresh = EditActivations(lm, REQUESTS, CONTEXTS)
            assert torch.equal(keys.mean, fresh.keys([layer])[layer].mean)
            assert torch.equal(values, fresh.values(2))
            change(lm, layer)
