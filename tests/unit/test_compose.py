"""Adding, scaling and folding updates: exact sums, the best rank, measured errors, and refusals in words."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from emendo.errors import BaseMismatchError, ConflictError, InputError, NumericalError, UndoError
from emendo.solve import Preservation, prepare
from emendo.updates.fold import break_even_rank, fold
from emendo.updates.merge import merge, scale, survival
from emendo.updates.predecessors import Predecessors
from emendo.updates.removal import without
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.unit.sequences import BASE, D_IN, D_OUT, made, random, world


def part(layer: int, R: Tensor, Q: Tensor, K: Tensor | None = None) -> LayerUpdate:
    return LayerUpdate(layer, f"layers.{layer}.down", R, Q, K)


def drawn(n: int, seed: int, layer: int = 0, d_out: int = D_OUT, d_in: int = D_IN, keys: bool = True) -> LayerUpdate:
    g = torch.Generator().manual_seed(seed)
    R, Q, K = (random(g, n, d).float() for d in (d_out, d_in, d_in))
    return part(layer, R, Q, K if keys else None)


def update(*parts: LayerUpdate, subject: str = "A", target: str = "x", **changes: Any) -> ModelUpdate:
    info = {"requests": [{"id": "", "prompt": "{} is", "subject": subject, "target": target}]}
    return ModelUpdate(tuple(parts), **{"base": dict(BASE), "info": info, **changes})


def delta(found: ModelUpdate, layer: int = 0) -> Tensor:
    return next(one.residuals.double().T @ one.dual_keys.double() for one in found.layers if one.layer == layer)


# ---- merge -------------------------------------------------------------------------------------------------


def test_a_merge_is_the_sum_with_everything_that_was_written() -> None:
    one, two = update(drawn(2, 0), drawn(1, 1, layer=3)), update(drawn(3, 2), subject="B")
    merged = merge([one, two])
    torch.testing.assert_close(delta(merged), delta(one) + delta(two), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(delta(merged, 3), delta(one, 3), rtol=0, atol=0)
    assert [len(layer.keys) for layer in merged.layers if layer.keys is not None] == [5, 1]
    assert [row["subject"] for row in merged.info["requests"]] == ["A", "B"]
    assert [row["id"] for row in merged.info["merged"]] == [one.id, two.id]
    assert not merged.preceding
    json.dumps(merged.info, allow_nan=False)
    # The order changes what it is called and not what it does.
    torch.testing.assert_close(delta(merge([two, one])), delta(merged), rtol=1e-12, atol=1e-12)
    assert merge([two, one]).id != merged.id


def test_merging_one_gives_it_back_and_lists_are_taken_apart() -> None:
    first, second, third = made(world((1, 1, 1)), range(3), torch.float32)
    assert merge([first]) is first
    assert merge([[first, second], third]).id == merge([first, second, third]).id


def test_a_sequence_is_merged_onto_what_its_first_was_planned_on() -> None:
    updates = made(world((1, 1, 1, 1)), range(4), torch.float32)
    assert not merge(updates).preceding
    assert merge(updates[2:]).preceding == Predecessors.of([updates[0].id, updates[1].id])
    merged = merge(updates[:2])
    again = merge([merged, updates[2]])
    assert not again.preceding, "a merged update stands for its parts"
    torch.testing.assert_close(delta(again), delta(merge(updates[:3])), rtol=1e-6, atol=1e-6)
    assert set(again.info["merged"][0]["parts"]) == {updates[0].id, updates[1].id}
    with pytest.raises(InputError, match=r"update 1 .* and update 2 .* hold the same update"):
        merge([merged, updates[0]])


def test_survival_of_updates_that_were_planned_apart_is_measured_at_their_keys() -> None:
    """By hand: two rank-one edits with equality, whose keys are at 60 degrees."""
    k1, k2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, math.sqrt(0.75)]])
    r1, r2 = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 5.0]])
    one, two = update(part(0, r1, k1, k1)), update(part(0, r2, k2, k2), subject="B")
    # ΔW₂ k₁ = r₂ · 0.5, of which the part along r₁ = (2, 0) is 0.5 of 2.
    merged = merge([one, two])
    survived = merged.info["merged"][0]["survives"][0]
    assert survived == {
        "layer": 0,
        "mean": pytest.approx(1.25, rel=1e-6),
        "least": pytest.approx(1.25, rel=1e-6),
        "most": pytest.approx(1.25, rel=1e-6),
    }
    # ΔW₁ k₂ = r₁ · 0.5 = (1, 0), of which ⟨(1, 0), (1, 5)⟩ / 26 is along r₂.
    assert survival([one, two], 1)[0].shares == pytest.approx([1 + 1 / 26], rel=1e-6)


def test_survival_in_a_sequence_counts_what_came_later_only() -> None:
    """With equality and fixed keys and a history that outweighs the rest, an edit is what it was."""
    updates = made(world((2, 2, 2), **{"history.weight": 1e8}), range(3))
    for row in merge(updates).info["merged"]:
        assert row["survives"][0]["least"] == pytest.approx(1.0, abs=1e-5)
    apart = [replace(one, preceding=Predecessors()) for one in made(world((2, 2, 2)), range(3))]
    least = [row["survives"][0]["least"] for row in merge(apart).info["merged"]]
    assert min(least) < 0.9, "planned apart they disturb each other"


def test_survival_of_a_whole_sequence_at_once_is_that_of_each_part() -> None:
    """More rows than the layer has, layers that only some parts edit, and a part without keys."""
    updates: list[ModelUpdate] = []
    for number in range(9):
        parts = [drawn(2, 2 * number, keys=number != 4)]
        if number % 3 == 0:
            parts.append(drawn(1, 2 * number + 1, layer=3))
        before = Predecessors.of(one.id for one in updates)
        updates.append(update(*parts, subject=f"S{number}", preceding=before))
    rows = merge(updates).info["merged"]
    assert sum(2 for _ in updates) > min(D_OUT, D_IN), "the sum is kept as a matrix in the end"
    for place, row in enumerate(rows):
        expected = [found.to_dict() for found in survival(updates, place)]
        assert [found["layer"] for found in row["survives"]] == [found["layer"] for found in expected]
        for found, wanted in zip(row["survives"], expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-5)


def test_survival_where_nothing_is_written_or_known() -> None:
    zero = update(part(0, torch.zeros(1, D_OUT), torch.ones(1, D_IN), torch.ones(1, D_IN)))
    blind = update(drawn(2, 0, keys=False), subject="B")
    merged = merge([zero, blind])
    assert merged.info["merged"][0]["survives"] == [{"layer": 0, "mean": None, "least": None, "most": None}]
    assert merged.info["merged"][1]["survives"] == []
    assert merged.layers[0].keys is None, "half a history would preserve half of the edits in silence"
    json.dumps(merged.info, allow_nan=False)


def test_facts_in_conflict_are_all_named() -> None:
    one, two = update(drawn(1, 0), target="Paris"), update(drawn(1, 1), target="Rome")
    three, four = update(drawn(1, 2), subject="B"), update(drawn(1, 3), subject="B ", target=" x")
    with pytest.raises(ConflictError) as caught:
        merge([one, three, two, four])
    assert caught.value.problems[0].startswith("contradicting: 'A is' → 'Paris' in update 1 (")
    assert "'Rome' in update 3" in caught.value.problems[0]
    assert caught.value.problems[1].startswith("repeated: 'B is'")
    # Planned on top of the other it is a replacement, which was meant.
    assert merge([one, replace(two, preceding=Predecessors.of([one.id]))]).info["requests"][1]["target"] == "Rome"


def test_other_bases_and_missing_predecessors_are_refused() -> None:
    one = update(drawn(1, 0))
    for base, words in (
        ({"name": "other", "weights_sha256": "ee" * 32}, "update 2 .* for 'other' with weights eeeeeeeeeeee"),
        ({}, "update 2 .* does not say for which weights"),
    ):
        with pytest.raises(BaseMismatchError, match=words):
            merge([one, update(drawn(1, 1), subject="B", base=base)])
    with pytest.raises(
        BaseMismatchError, match=r"update 1 .* on the unedited model and update 2 .* on 1 update \(123412341234…\)"
    ):
        merge([one, update(drawn(1, 1), subject="B", preceding=Predecessors.of(["1234" * 16]))])
    # A link of a sequence that is left out is such a predecessor.
    updates = made(world((1, 1, 1)), range(3), torch.float32)
    with pytest.raises(BaseMismatchError, match="give those too"):
        merge([updates[0], updates[2]])
    with pytest.raises(InputError, match="cannot be summed"):
        merge([one, update(drawn(1, 1, d_in=D_IN + 1), subject="B")])
    with pytest.raises(InputError, match="nothing to merge"):
        merge([])


@pytest.mark.parametrize(
    "info",
    [{"requests": [7]}, {"requests": 7}, {"requests": [{"prompt": "no slot", "subject": "s", "target": "t"}]}],
)
def test_requests_that_cannot_be_read_are_not_passed_over(info: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"update 2 .* records a request that cannot be read"):
        merge([update(drawn(1, 0)), update(drawn(1, 1), info=info)])


@pytest.mark.parametrize("record", [7, [7], [{"id": "x"}], [None]])
def test_a_record_of_parts_that_cannot_be_read(record: Any) -> None:
    broken = update(drawn(1, 1), subject="B", info={"requests": [], "merged": record})
    with pytest.raises(InputError, match="update 2 records parts that cannot be read"):
        merge([update(drawn(1, 0)), broken])


# ---- scale -------------------------------------------------------------------------------------------------


def test_scaling() -> None:
    one = replace(update(drawn(2, 0), drawn(1, 1, layer=2)), preceding=Predecessors.of("p"))
    half = scale(one, -0.5)
    for layer in (0, 2):
        torch.testing.assert_close(delta(half, layer), -0.5 * delta(one, layer), rtol=0, atol=0)
    assert half.preceding == Predecessors.of("p")
    assert half.info["scaled"] == {"factor": -0.5, "from": one.id}
    assert torch.equal(half.layers[0].keys, one.layers[0].keys)
    assert "scaled" not in one.info


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_factor_that_is_not_finite(factor: float) -> None:
    with pytest.raises(InputError, match="expected a finite number"):
        scale(update(drawn(1, 0)), factor)


def test_a_scaled_update_that_overflows() -> None:
    with pytest.raises(InputError, match=r"layer 0 times 1e\+39 is not finite in torch\.float32"):
        scale(update(drawn(1, 0)), 1e39)


def test_what_was_composed_is_not_worked_out_anew() -> None:
    case = world((1, 1), **{"history.weight": 1.0})
    first, second = made(case, range(2))
    metrics = {0: prepare(case.moments[0], Preservation())}
    for changed in (scale(second, 2.0), fold(second).update):
        with pytest.raises(UndoError, match=r"scaled|folded"):
            without([first, changed], 0, metrics)


# ---- fold --------------------------------------------------------------------------------------------------


def test_folding_gives_the_best_rank_within_the_tolerance() -> None:
    """Against the dense SVD of ΔW."""
    g = torch.Generator().manual_seed(1)
    d_out, d_in, n = 20, 30, 12
    left, right = torch.linalg.qr(random(g, d_out, n)).Q, torch.linalg.qr(random(g, d_in, n)).Q
    S = 10.0 ** -torch.arange(n).double()
    stacked = update(part(0, (left * S).T.float(), right.T.float()))
    exact = torch.linalg.svdvals(delta(stacked))
    for tolerance in (0.5, 1e-2, 1e-4, 1e-6):
        folded = fold(stacked, tolerance=tolerance)
        rank = folded.rank[0]
        found = float((delta(folded.update) - delta(stacked)).norm() / exact.norm())
        assert found == pytest.approx(folded.error, rel=1e-3)
        assert found <= tolerance
        tails = [float(exact[r:].norm() / exact.norm()) for r in range(n)]
        least = next(r for r, tail in enumerate(tails) if tail <= tolerance)
        assert least <= rank <= least + 1, "0.9 of the tolerance is for truncation"
        assert folded.update.layers[0].residuals.dtype == torch.float32


def test_equal_updates_fold_to_the_rank_of_one() -> None:
    one = drawn(2, 0)
    twice = update(part(0, torch.cat([one.residuals] * 3), torch.cat([one.dual_keys] * 3), torch.cat([one.keys] * 3)))
    folded = fold(twice)
    assert folded.rank == {0: 2}
    assert folded.layers[0].rank_before == 6
    torch.testing.assert_close(delta(folded.update), delta(twice), rtol=1e-5, atol=1e-5)
    assert folded.update.layers[0].keys is not None
    assert len(folded.update.layers[0].keys) == 6, "all written keys stay: each counts in a history"


def test_a_rank_that_cannot_be_lowered_keeps_its_factors_bit_for_bit() -> None:
    one = update(drawn(3, 0), drawn(0, 1, layer=2))
    folded = fold(one)
    assert folded.error == 0.0
    assert folded.rank == {0: 3, 2: 0}
    assert torch.equal(folded.update.layers[0].residuals, one.layers[0].residuals)


@pytest.mark.parametrize("tolerance", [1e-6, None, 0.0])
def test_zeros_fold_to_rank_zero(tolerance: float | None) -> None:
    none = update(part(0, torch.zeros(3, D_OUT), torch.ones(3, D_IN)))
    folded = fold(none, tolerance=tolerance)
    assert folded.rank == {0: 0}
    assert folded.error == 0.0
    assert torch.equal(delta(folded.update), torch.zeros(D_OUT, D_IN).double())


@pytest.mark.parametrize("tolerance", [1e-6, None])
def test_what_cancels_folds_to_rank_zero(tolerance: float | None) -> None:
    one = drawn(3, 4)
    cancelled = update(part(0, torch.cat([one.residuals, -one.residuals]), torch.cat([one.dual_keys, one.dual_keys])))
    folded = fold(cancelled, tolerance=tolerance)
    assert folded.rank == {0: 0}, "no row is kept for rounding noise"
    assert folded.error == 0.0


def test_sizes_and_break_even() -> None:
    d_out, d_in = 6, 12
    assert break_even_rank(d_out, d_in) == 4
    many = [update(drawn(3, seed), subject=str(seed)) for seed in range(5)]
    folded = fold(many)
    assert folded.rank == {0: 6}
    row = folded.layers[0]
    assert (row.rank_before, row.break_even, row.past_break_even) == (15, 4, True)
    assert row.bytes == 6 * (d_out + d_in) * 4
    assert row.bytes <= (1 + d_out / d_in) * row.dense_bytes, "never grows beyond this"
    assert folded.sizes.before == sum(one.nbytes for one in many)
    assert folded.sizes.after == folded.update.nbytes == row.bytes + row.keys_bytes
    assert folded.sizes.dense == d_out * d_in * 4
    dropped = fold(many, keep_keys=False)
    assert dropped.sizes.after == row.bytes
    assert dropped.update.layers[0].keys is None
    assert dropped.update.info["folded"]["keys"] == "dropped"
    assert not fold(many[:1]).layers[0].past_break_even


def test_the_rank_alone_may_decide() -> None:
    one = update(drawn(5, 0))
    singular = torch.linalg.svdvals(delta(one))
    folded = fold(one, tolerance=None, max_rank=2)
    assert folded.rank == {0: 2}
    assert folded.error == pytest.approx(float(singular[2:].norm() / singular.norm()), rel=1e-5)
    with pytest.raises(InputError, match=r"layer 0 at rank 2 is .* expected 0.01 at most"):
        fold(one, tolerance=0.01, max_rank=2)
    assert fold(one, tolerance=1.1 * folded.error, max_rank=2).rank == {0: 2}


def test_a_tolerance_that_float32_cannot_keep_is_refused() -> None:
    one = drawn(2, 0)
    twice = update(part(0, torch.cat([one.residuals] * 2), torch.cat([one.dual_keys] * 2)))
    with pytest.raises(InputError, match=r"in float32 factors is .* expected 2e-7 or more"):
        fold(twice, tolerance=1e-12)


@pytest.mark.parametrize(
    "options", [{"tolerance": -1.0}, {"tolerance": math.nan}, {"tolerance": 1.0}, {"max_rank": -1}]
)
def test_arguments_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected at least 0"):
        fold(update(drawn(1, 0)), **options)


def test_factors_that_are_not_finite() -> None:
    bad = update(part(0, torch.full((2, D_OUT), math.nan), torch.ones(2, D_IN)))
    with pytest.raises(NumericalError, match="layer 0 is not finite"):
        fold(bad)


def test_a_folded_update_survives_its_file(tmp_path: Path) -> None:
    folded = fold([update(drawn(3, 0)), update(drawn(9, 1), subject="B")])
    read = ModelUpdate.load(folded.update.save(tmp_path / "folded.safetensors"))
    assert read.id == folded.update.id
    assert read.info["folded"]["layers"][0]["rank"] == D_OUT
    assert read.info["merged"][1]["requests"] == 1


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    d_out=st.integers(1, 7),
    d_in=st.integers(1, 7),
    copies=st.booleans(),
    exponent=st.integers(-18, 15),
    seed=st.integers(0, 50),
)
def test_any_shape_folds_within_the_tolerance(
    counts: list[int], d_out: int, d_in: int, copies: bool, exponent: int, seed: int
) -> None:
    """No rows, more rows than dimensions, repeated rows, sizes near the ends of float32."""
    parts = [drawn(n, seed + at, d_out=d_out, d_in=d_in) for at, n in enumerate(counts)]
    parts[0] = replace(parts[0], residuals=parts[0].residuals * 10.0**exponent)
    many: list[ModelUpdate] = []
    for at, one in enumerate([*parts, parts[-1]] if copies else parts):
        preceding = Predecessors.of(earlier.id for earlier in many)
        many.append(update(one, subject=str(at), preceding=preceding))
    folded = fold(many)
    total = sum(delta(one) for one in many)
    size = float(total.norm())
    assert float((delta(folded.update) - total).norm()) <= 1e-6 * size
    assert folded.error <= 1e-6
    assert folded.rank[0] <= min(sum(len(one.layers[0].residuals) for one in many), d_out, d_in)
