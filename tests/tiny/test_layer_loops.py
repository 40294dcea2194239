"""Every distribution against a naive loop that reads and writes one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from emendo.editing.plan import Plan
from emendo.editing.value_search import FoundValues, search_values
from emendo.models import EditableModel
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.naive_loop import Naive, apart, close
from tests.pairs import pairs
from tests.quick_plans import REQUESTS, planned
from tests.reference import emmet_delta, memit_delta

LAYERS = (0, 1, 3)
FAMILIES = ("llama", "gpt2_square", "gptj", "granite")
NORMED = ("gemma2", "gemma3_text", "olmo2")


@dataclass
class Loop:
    """The naive side: targets of the unedited model, then one layer after another."""

    lm: EditableModel
    plan: Plan
    store: MomentStore
    read: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.naive = Naive(self.lm, self.plan.contexts)
        self.config = self.plan.method.config
        self.site = self.config.target.site
        layers = self.config.written_layers
        self.moments = {layer: self.naive.moment(layer, self.plan, self.store) for layer in layers}

    def searched(self, layer: int) -> FoundValues:
        return search_values(self.lm, REQUESTS, self.plan.contexts, layer, self.config.target)

    def check(self, layer: int, Z: Tensor, aim: int, share: float | Tensor) -> None:
        """Compare the plan's update of a layer with R Kᵀ (...)⁻¹ for R = share of what is missing, and write it."""
        missing = Z - self.naive.values(REQUESTS, aim, self.site)
        if self.site == "resid_post":
            missing = missing / self.lm.mlp_scale
        R = missing * share if isinstance(share, float) else missing @ share
        delta = self.delta(self.naive.mean_keys(REQUESTS, layer), R, layer)
        (part,) = [part for part in self.plan.update.layers if part.layer == layer]
        close(part.residuals.T, R)
        close(part.delta(), delta)
        self.read.append(missing)
        self.naive.add(layer, delta)

    def delta(self, K: Tensor, R: Tensor, layer: int) -> Tensor:
        if self.config.memorization.s == 0:
            return emmet_delta(K, R, self.moments[layer])
        return memit_delta(K, R, self.moments[layer], lam=self.config.preservation.weight)


def loop(family: str, store: MomentStore, method: str, **more: Any) -> Loop:
    if method == "memit":
        more.setdefault("preservation__weight", 0.5)  # so that layers move each other's keys
    more.setdefault("target__steps", 4)  # so that much is missing at every layer
    plan = planned(build_tiny(family, dtype=torch.float64), store, REQUESTS, method, LAYERS, **more)
    return Loop(build_tiny(family, dtype=torch.float64), plan, store)


SPLIT = [("llama", "memit"), ("gptj", "emmet")], [("gpt2_square", "memit"), ("granite", "emmet")]
"""Cases of the quick tests: what a distribution does hangs neither on the family nor on the method."""


def cases(quick: list[tuple[str, str]]) -> list[Any]:
    """Every family with every method; all but a few are slow."""
    return [
        pytest.param(family, method, marks=() if (family, method) in quick else pytest.mark.slow)
        for family in FAMILIES
        for method in ("memit", "emmet")
    ]


@pytest.mark.parametrize(("family", "method"), cases(SPLIT[0]))
def test_sqrt(family: str, method: str, store: MomentStore) -> None:
    it = loop(family, store, method, distribution="sqrt")
    Z = it.searched(3).value.double().T
    for position, layer in enumerate(LAYERS):
        it.check(layer, Z, 3, (len(LAYERS) - position) ** -0.5)


@pytest.mark.parametrize(("family", "method"), cases(SPLIT[1]))
def test_optimal(family: str, method: str, store: MomentStore) -> None:
    """Shares from the keys of the unedited model, each taken of what is missing when its layer's turn comes."""
    it = loop(family, store, method, distribution="optimal")
    Z, s, weight = it.searched(3).value.double().T, it.config.memorization.s, it.config.preservation.weight
    D = []
    for layer in LAYERS:
        K = it.naive.mean_keys(REQUESTS, layer)
        D.append(K.T @ torch.linalg.inv(weight * it.moments[layer]) @ K + s * torch.eye(len(REQUESTS), dtype=K.dtype))
    for position, layer in enumerate(LAYERS):
        share = torch.linalg.inv(sum(D[position:])) @ D[position]
        it.check(layer, Z, 3, share)
        if position == 0:
            assert apart(share, torch.eye(len(REQUESTS)) / len(LAYERS)) > 0.1, "far from an even split"


@pytest.mark.parametrize(("family", "method"), cases(SPLIT[0]))
def test_ends(family: str, method: str, store: MomentStore) -> None:
    """Two searches in the unedited model; the last layer sees what the first one did; nothing is divided."""
    it = loop(family, store, method, distribution="ends")
    assert [part.layer for part in it.plan.update.layers] == [0, 3]
    assert len(it.plan.targets) == 2 * len(REQUESTS)
    aims = {layer: it.searched(layer).value.double().T for layer in (0, 3)}
    untouched = aims[3] - it.naive.values(REQUESTS, 3)
    for layer in (0, 3):
        it.check(layer, aims[layer], layer, 1.0)
    assert apart(it.read[1], untouched) > 1e-2, "what is missing at the end is read anew"


@pytest.mark.parametrize(("family", "method"), pairs([*FAMILIES, *NORMED], ["memit", "emmet"]))
def test_replay(family: str, method: str, store: MomentStore) -> None:
    """Later layers aim at what they hold in a pass with δ at the first layer."""
    it = loop(family, store, method, distribution="replay")
    assert it.site == ("mlp_out" if family in NORMED else "resid_post")
    targets = it.searched(0)
    aims = {0: targets.value.double().T}
    held: dict[int, list[Tensor]] = {1: [], 3: []}
    for request, delta in zip(REQUESTS, targets.delta, strict=True):
        with it.naive.pushed(request, 0, delta, it.site):
            for layer, rows in held.items():
                rows.append(it.naive.present(request, layer, it.site))
    aims |= {layer: torch.stack(rows, dim=1) for layer, rows in held.items()}
    for layer in LAYERS:
        assert apart(aims[layer], it.naive.values(REQUESTS, layer, it.site)) > 1e-2, "δ moves every aim"
    for layer in LAYERS:
        it.check(layer, aims[layer], layer, 1.0)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))
