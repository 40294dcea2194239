"""A given setting that would change nothing is an error, and only such a one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from emendo.errors import MethodError
from emendo.methods import resolve_method
from emendo.models import EditableModel
from emendo.solve import Preservation, prepare, solve
from emendo.solve.shares import remaining_shares
from tests.reference import moment_with_condition


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("memit", {"post.keep": 0.5}, r"post\.keep .*post\.kind is not rect.*--set post\.kind=rect"),
        ("rect", {"post.log_base": 2}, r"--set post\.kind=prune"),
        ("prune", {"post.max_ratio": 0.2}, r"--set post\.kind=cap"),
        ("memit", {"preservation.threshold": 0.1}, r"--set preservation\.null_space=absolute"),
        ("emmet", {"memorization.equality_alone": "true"}, r"--set memorization\.s=1"),
        ("memit", {"contexts.scheme": "none", "keys.average": "flat"}, r"--set contexts\.scheme=memit"),
        ("emmet", {"preservation.weight": 7}, r"preservation\.ridge and history\.weight"),
        ("rome", {"preservation.weight": 7}, r"preservation\.ridge and history\.weight"),
        ("emendo", {"preservation.weight": 7, "history.weight": 0}, r"preservation\.ridge and history\.weight"),
        ("emmet", {"preservation.weight": 7, "post.keep": 0.5}, r"preservation\.weight changes.*post\.keep changes"),
    ],
)
def test_a_given_setting_that_changes_nothing(
    method: str, settings: dict[str, Any], words: str, tiny_llama: EditableModel
) -> None:
    with pytest.raises(MethodError, match=words):
        resolve_method(method, tiny_llama, settings=settings)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("rect", {"post.keep": 0.5}),
        ("memit", {"post.kind": "cap", "post.max_ratio": 0.2}),
        ("alphaedit", {"preservation.threshold": 0.1}),
        ("emmet-published", {"memorization.equality_alone": "false"}),
        ("emmet", {"keys.average": "flat"}),
        ("memit", {"preservation.weight": 7}),
        ("emendo", {"preservation.weight": 7}),
        ("emmet", {"preservation.weight": 7, "preservation.ridge": 1}),
        ("emmet", {"preservation.weight": 0, "preservation.ridge": 1, "moments.multiple": 1}),
    ],
)
def test_given_settings_that_change_something(method: str, settings: dict[str, Any], tiny_llama: EditableModel) -> None:
    resolved = resolve_method(method, tiny_llama, settings=settings)
    assert all(resolved.origins[name] == "given (--set)" for name in settings)


@pytest.mark.parametrize("null_space", ["off", "energy"])
@pytest.mark.parametrize("distribution", ["even", "optimal"])
def test_the_scale_of_c_cancels_under_equality(null_space: str, distribution: str) -> None:
    """What the refusal of preservation.weight rests on: dual keys and shares are those of another weight."""
    C = [moment_with_condition(8, 100.0, seed) for seed in (1, 2)]
    K = [randn(3, 8, seed=seed) for seed in (3, 4)]
    found = []
    for weight in (1.0, 7.0):
        preservation = Preservation(weight=weight, null_space=null_space, threshold=0.9)  # type: ignore[arg-type]
        metrics = [prepare(moment, preservation) for moment in C]
        shares = remaining_shares(metrics, K, 0.0) if distribution == "optimal" else []
        found.append(
            [*(solve(metric, keys, s=0.0).dual_keys for metric, keys in zip(metrics, K, strict=True)), *shares]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
