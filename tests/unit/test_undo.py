"""Algebraic removal against sequences solved without the edit, in float64 with fixed keys and targets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from emendo.errors import InfeasibleError, InputError, UndoError
from emendo.solve import PreparedLayer, extend_history
from emendo.updates.predecessors import Predecessors
from emendo.updates.removal import metric_layers, without
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.pairs import covering
from tests.unit.sequences import D_IN, D_OUT, FINGERPRINT, World, made, preservation_of, random, settings_of, world

SIZES = (2, 1, 3, 1)


def metrics_of(case: World) -> dict[int, PreparedLayer]:
    return case.metrics(preservation_of(settings_of(case.edits[-1])))


def removed(case: World, index: int, dtype: torch.dtype = torch.float64) -> tuple[ModelUpdate, ...]:
    return without(made(case, range(len(case.edits)), dtype), index, metrics_of(case), fingerprint=FINGERPRINT)


def expected(case: World, index: int) -> tuple[ModelUpdate, ...]:
    return made(case, [number for number in range(len(case.edits)) if number != index])


def apart(found: Sequence[ModelUpdate], wanted: Sequence[ModelUpdate]) -> float:
    """Largest relative distance of the factors of any layer of any update."""
    assert len(found) == len(wanted)
    distances = [
        float((one - other).norm() / other.norm())
        for update, reference in zip(found, wanted, strict=True)
        for part, exact in zip(update.layers, reference.layers, strict=True)
        for one, other in ((part.residuals, exact.residuals), (part.dual_keys, exact.dual_keys))
        if len(other)
    ]
    return max(distances, default=0.0)


# ---- oracles -----------------------------------------------------------------------------------------------


LAYERS_OF = {
    "single": (0,),
    "even": (0, 2, 3),
    "sqrt": (0, 2, 3),
    "optimal": (0, 2, 3),
    "ends": (0, 2),
    "replay": (0, 2, 3),
}


@pytest.mark.parametrize(
    ("distribution", "s", "history", "batching"),
    covering(list(LAYERS_OF), [0.0, 0.7, 1.0], [0.0, 1.0, 0.3], ["joint", "one_by_one"]),
)
def test_removal_is_the_sequence_without_the_edit(distribution: str, s: float, history: float, batching: str) -> None:
    case = world(
        SIZES,
        LAYERS_OF[distribution],
        **{"distribution": distribution, "memorization.s": s, "history.weight": history, "batching": batching},
    )
    for index in range(len(SIZES)):
        assert apart(removed(case, index), expected(case, index)) < 1e-9


OPTIONS: list[dict[str, Any]] = [
    {"preservation.weight": 0.4, "preservation.ridge": 0.2},
    {"preservation.weight": 0.0, "preservation.ridge": 0.5},
    {"preservation.weight": 0.0, "preservation.ridge": 1.5, "preservation.null_space": "absolute"},
    {"preservation.weight": 2.0, "preservation.ridge": 0.1, "preservation.null_space": "absolute"},
    {"target.site": "mlp_out"},
    {"memorization.equality_alone": True},
]


@pytest.mark.parametrize(("options", "s", "history"), covering(OPTIONS, [0.0, 1.0], [0.0, 1.0]))
def test_other_metrics_and_targets(options: dict[str, Any], s: float, history: float) -> None:
    if "preservation.null_space" in options:
        options = {**options, "preservation.threshold": 2.0}
    given_settings = {"distribution": "optimal", "memorization.s": s, "history.weight": history, **options}
    case = world(SIZES, (0, 2), **given_settings)
    metrics = metrics_of(case)
    if "preservation.null_space" in options:
        assert all(max(SIZES) < metric.dimensions < D_IN for metric in metrics.values()), "some directions are closed"
    for index in range(len(SIZES)):
        assert apart(removed(case, index), expected(case, index)) < 1e-9


def test_the_plain_constraint_of_rome_needs_no_averaged_keys_without_history() -> None:
    case = world((1, 2, 1), **{"distribution": "single", "keys.constraint": "plain"})
    g = torch.Generator().manual_seed(5)
    for edit in case.edits:
        edit.averaged = {0: edit.keys[0] + 0.3 * random(g, *edit.keys[0].shape)}
    for index in range(3):
        assert apart(removed(case, index), expected(case, index)) < 1e-9


def test_several_removals_one_after_another() -> None:
    case = world((1, 2, 1, 2, 1), (0, 2), **{"distribution": "optimal", "history.weight": 1.0})
    metrics = metrics_of(case)
    rest = made(case, range(5))
    for index in (3, 0, 1):
        rest = without(rest, index, metrics, fingerprint=FINGERPRINT)
    assert apart(rest, made(case, [1, 4])) < 1e-9
    assert len(rest[-1].info["algebraic"]["removed"]) == 3
    assert rest[-1].info["algebraic"]["planned"] == made(case, range(5))[4].id


def test_edits_of_several_methods_in_one_sequence() -> None:
    """Only what the later edits are solved with has to be known; the removed one may be anything."""
    case = world((2, 1, 2), (0, 2), distribution="even")
    case.edits[1].settings |= {"distribution": "optimal", "history.weight": 0.5, "memorization.s": 0.2}
    case.edits[2].settings |= {"memorization.s": 1.0, "history.weight": 2.0}
    for index in range(3):
        assert apart(removed(case, index), expected(case, index)) < 1e-9


def test_float32_factors_stay_within_their_rounding() -> None:
    case = world(SIZES, (0, 2), **{"distribution": "optimal", "history.weight": 1.0})
    found = removed(case, 1, torch.float32)
    assert {tensor.dtype for update in found for part in update.layers for tensor in part.tensors.values()} == {
        torch.float32
    }
    assert 0 < apart([as_double(update) for update in found], expected(case, 1)) < 1e-5


def as_double(update: ModelUpdate) -> ModelUpdate:
    layers = [
        replace(part, **{name: tensor.double() for name, tensor in part.tensors.items()}) for part in update.layers
    ]
    return replace(update, layers=tuple(layers))


# ---- what comes back ---------------------------------------------------------------------------------------


def test_earlier_updates_are_the_same_objects_and_later_ones_chain() -> None:
    case = world(SIZES, **{"history.weight": 1.0})
    updates = made(case, range(4))
    found = without(updates, 1, metrics_of(case), fingerprint=FINGERPRINT)
    assert found[0] is updates[0]
    ids: list[str] = []
    for update in found:
        assert update.preceding == Predecessors.of(ids)
        ids.append(update.id)
    record = found[1].info["algebraic"]
    assert record["planned"] == record["replaces"] == updates[2].id
    assert record["removed"] == [updates[1].id]
    old, new = updates[2].layers[0].delta(), found[1].layers[0].delta()
    assert record["relative_change"]["0"] == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-9)
    assert "layers" not in found[1].info, "measured on the update before, so no longer true"
    json.dumps(found[1].info)
    assert torch.equal(found[1].layers[0].keys, updates[2].layers[0].keys)


def test_the_last_update_just_goes() -> None:
    updates = made(world(SIZES), range(4))
    for index in (3, -1):
        assert without(updates, index, {}, fingerprint="") == updates[:3]
    assert without(updates[:1], 0, {}, fingerprint="") == ()


def test_the_input_is_left_alone() -> None:
    case = world(SIZES, **{"history.weight": 1.0})
    updates = made(case, range(4))
    ids, infos = [update.id for update in updates], [json.dumps(update.info) for update in updates]
    without(updates, 0, metrics_of(case), fingerprint=FINGERPRINT)
    assert [update.id for update in updates] == ids
    assert [json.dumps(update.info) for update in updates] == infos


def test_layers_that_need_a_metric() -> None:
    plain, history = world(SIZES, (0, 2)), world(SIZES, (0, 2), **{"history.weight": 1.0})
    split = world(SIZES, (0, 2), distribution="optimal")
    assert metric_layers(made(plain, range(4)), 0) == ()
    assert metric_layers(made(history, range(4)), 0) == (0, 2)
    assert metric_layers(made(history, range(4)), 3) == ()
    assert metric_layers(made(split, range(4)), -2) == (0, 2)
    # Dual keys do not depend on the removed edit then: bit for bit the stored ones.
    updates = made(plain, range(4))
    found = without(updates, 0, {}, fingerprint="")
    assert torch.equal(found[1].layers[1].dual_keys, updates[2].layers[1].dual_keys)


# ---- shapes ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    data=st.data(),
    s=st.sampled_from([0.0, 0.5]),
    history=st.sampled_from([0.0, 1.0]),
    distribution=st.sampled_from(["even", "optimal"]),
    seed=st.integers(0, 100),
)
def test_any_sizes(
    sizes: list[int], data: st.DataObject, s: float, history: float, distribution: str, seed: int
) -> None:
    """Edits of no request at all, and several edits that together are more than the keys have coordinates."""
    options = {"distribution": distribution, "memorization.s": s, "history.weight": history}
    case = world(sizes, (0, 1), seed, **options)
    index = data.draw(st.integers(0, len(sizes) - 1))
    # Plain inversion of the reference loses digits where a sequence of random keys is nearly dependent.
    assert apart(removed(case, index), expected(case, index)) < 1e-7


def test_more_rows_than_coordinates() -> None:
    case = world((5, 9, 9, 4), (0, 1), **{"distribution": "optimal", "memorization.s": 0.5, "history.weight": 2.0})
    for index in range(4):
        assert apart(removed(case, index), expected(case, index)) < 1e-9


def test_repeated_keys_and_zeros() -> None:
    """One fact edited twice has one key; a zero key and a zero residual are no trouble by least squares."""
    case = world((2, 2, 2), **{"memorization.s": 0.5, "history.weight": 1.0})
    case.edits[1].keys[0] = case.edits[0].keys[0].clone()
    case.edits[2].keys[0][0] = 0.0
    for index in range(3):
        assert apart(removed(case, index), expected(case, index)) < 1e-9


def test_a_fact_edited_twice_with_equality() -> None:
    case = world((1, 1, 1), **{"history.weight": 1.0})
    case.edits[2].keys[0] = case.edits[0].keys[0].clone()
    for index in range(3):
        assert apart(removed(case, index), expected(case, index)) < 1e-9


def test_dependent_keys_under_equality_are_refused() -> None:
    case = world((1, 2), **{"memorization.s": 1e-3, "history.weight": 1.0})
    case.edits[1].keys[0][1] = case.edits[1].keys[0][0]
    updates = made(case, range(2))
    updates[1].info["method"]["settings"]["memorization.s"] = 0.0
    with pytest.raises(InfeasibleError, match="dependent on each other"):
        without(updates, 0, metrics_of(case), fingerprint=FINGERPRINT)


# ---- refusals ----------------------------------------------------------------------------------------------


def with_setting(name: str, value: Any) -> Callable[[ModelUpdate], ModelUpdate]:
    def changed(update: ModelUpdate) -> ModelUpdate:
        update.info["method"]["settings"][name] = value
        return update

    return changed


def without_record(name: str) -> Callable[[ModelUpdate], ModelUpdate]:
    return lambda update: replace(update, info={key: value for key, value in update.info.items() if key != name})


def with_layer(**tensors: Tensor | None) -> Callable[[ModelUpdate], ModelUpdate]:
    return lambda update: replace(update, layers=(replace(update.layers[0], **tensors), *update.layers[1:]))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (with_setting("post.kind", "rect"), "post.kind=rect changed its factors"),
        (with_setting("distribution", "sideways"), "distribution='sideways' is not known here"),
        (with_setting("target.site", "elsewhere"), "target.site='elsewhere' is not known"),
        (with_setting("layers", []), r"holds layers \[0\]; its record says \[\]"),
        (with_setting("layers", [0, 1]), "holds layers \\[0\\]; its record says \\[0, 1\\]"),
        (with_setting("memorization.s", 1.0), "are .* \\(relatively\\) from the ones"),
        (with_setting("history.weight", 30.0), "from the ones that its keys, its history and this metric give"),
        (with_setting("preservation.weight", 3.0), "was solved with Preservation\\(weight=3.0"),
        (with_setting("preservation.weight", "much"), "cannot be used"),
        (with_setting("keys.constraint", "plain"), "only the plain keys are stored"),
        (without_record("method"), "does not record 'method'"),
        (without_record("moments"), "does not record 'moments'"),
        (lambda update: replace(update, info={**update.info, "moments": None}), "cannot be used"),
        (lambda update: replace(update, info={**update.info, "scaled": 2.0}), "is scaled"),
        (lambda update: replace(update, info={**update.info, "merged": []}), "is a sum of updates"),
        (with_layer(keys=None), "does not hold one residual, dual key and key for each request"),
        (with_layer(keys=torch.zeros(3, D_IN).double()), "does not hold one residual"),
        (with_layer(dual_keys=torch.zeros(2, D_IN).double()), "from the ones that its keys"),
    ],
)
def test_a_later_update_whose_algebra_does_not_hold(damage: Callable[[ModelUpdate], ModelUpdate], words: str) -> None:
    case = world((1, 2), **{"history.weight": 1.0})
    metrics = metrics_of(case)
    first, second = made(case, range(2))
    with pytest.raises(UndoError, match=words) as caught:
        without([first, damage(second)], 0, metrics, fingerprint=FINGERPRINT)
    assert "replay" in str(caught.value)


def test_another_metric_is_refused() -> None:
    case = world((1, 2), **{"history.weight": 1.0})
    updates, metrics = made(case, range(2)), metrics_of(case)
    with pytest.raises(UndoError, match="second moments ffffffffffff…, found eeee"):
        without(updates, 0, metrics, fingerprint="e" * 64)
    with pytest.raises(InputError, match=r"needs the metric of layers \[0\], found \[\]"):
        without(updates, 0, {}, fingerprint=FINGERPRINT)
    historic = {0: metrics[0].with_history(extend_history(None, case.edits[0].keys[0]))}
    with pytest.raises(InputError, match="holds a history"):
        without(updates, 0, historic, fingerprint=FINGERPRINT)


@pytest.mark.parametrize("fingerprint", [FINGERPRINT, None])
@pytest.mark.parametrize("options", [{"history.weight": 1.0}, {"distribution": "optimal"}])
def test_the_right_fingerprint_on_the_wrong_numbers(options: dict[str, Any], fingerprint: str | None) -> None:
    case, other = world((1, 2), (0, 2), **options), world((1, 2), (0, 2), seed=1, **options)
    with pytest.raises(UndoError, match="Either the metric is another"):
        without(made(case, range(2)), 0, metrics_of(other), fingerprint=fingerprint)


def test_without_a_fingerprint_the_later_updates_have_to_agree() -> None:
    case = world((1, 2, 1), **{"history.weight": 1.0})
    updates = made(case, range(3))
    assert apart(without(updates, 0, metrics_of(case)), expected(case, 0)) < 1e-9
    updates[2].info["moments"]["fingerprint"] = "e" * 64
    with pytest.raises(UndoError, match="update 2 was solved with second moments eeeeeeeeeeee…, found ffff"):
        without(updates, 0, metrics_of(case))


def test_an_earlier_update_without_keys_under_a_history() -> None:
    case = world((1, 1, 1), **{"history.weight": 1.0})
    first = made(case, range(1))[0]
    blind = replace(first, layers=(replace(first.layers[0], keys=None),))
    _, second, third = made(case, range(3))
    second = replace(second, preceding=Predecessors.of([blind.id]))
    third = replace(third, preceding=Predecessors.of([blind.id, second.id]))
    for index in (0, 1):
        with pytest.raises(UndoError, match="update 0 has no keys for layer 0"):
            without([blind, second, third], index, metrics_of(case), fingerprint=FINGERPRINT)


def test_a_baseline_can_be_removed_where_nothing_keeps_a_history() -> None:
    """Its ΔW is all that has to be known: later edits then have to give what it gave at their keys."""
    case = world((2, 2))
    g = torch.Generator().manual_seed(3)
    trained = ModelUpdate(
        (LayerUpdate(0, "layers.0.down", random(g, 4, D_OUT), random(g, 4, D_IN)),), made(case, [0])[0].base
    )
    plain = made(case, range(2))
    case.weights[0] += trained.layers[0].delta()
    above = made(case, range(2))
    chain = [trained]
    for update in above:
        chain.append(replace(update, preceding=Predecessors.of(one.id for one in chain)))
    assert apart(without(chain, 0, {}, fingerprint=""), plain) < 1e-9


def test_a_change_below_an_edit_that_has_no_keys_there_is_refused() -> None:
    case = world((1, 1), (0, 2))
    case.edits[1].settings["layers"] = [2]
    with pytest.raises(UndoError, match=r"layers \[0\] change .* wrote layers \[2\]"):
        removed(case, 0)
    # Above what it aims at nothing matters, and an MLP's own output has only its own layer in it.
    case = world((1, 1), (0, 2))
    case.edits[1].settings["layers"] = [0]
    case.edits[1].keys.pop(2)
    assert apart(removed(case, 0), expected(case, 0)) < 1e-9
    case = world((1, 1), (0, 2), **{"target.site": "mlp_out"})
    case.edits[1].settings["layers"] = [2]
    assert apart(removed(case, 0), expected(case, 0)) < 1e-9


@pytest.mark.parametrize("index", [2, -3, 17])
def test_no_such_update(index: int) -> None:
    with pytest.raises(InputError, match=f"no update {index} to remove among 2"):
        without(made(world((1, 1)), range(2)), index, {}, fingerprint="")


def test_updates_that_are_no_sequence() -> None:
    first, second, third = made(world((1, 1, 1)), range(3))
    with pytest.raises(InputError, match="update 1 was planned on 2 updates"):
        without([first, third], 0, {}, fingerprint="")
    with pytest.raises(InputError, match="update 0 was planned on 1 update "):
        without([second, third], 0, {}, fingerprint="")
    stranger = replace(second, base={"weights_sha256": "ee" * 32})
    with pytest.raises(InputError, match="updates 0 and 1 have different base models"):
        without([first, stranger], 0, {}, fingerprint="")
