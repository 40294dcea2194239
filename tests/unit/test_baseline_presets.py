"""Published settings of baselines by model: used where they are for the model, and said to be foreign elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from emendo.methods import BASELINES, apply_settings, method_named, resolve_method
from emendo.methods.presets import PRESETS, UNTUNED
from emendo.models import EditableModel
from emendo.models.known import GPT2_XL, GPT_J, SMOLLM2_135M, KnownModel


class Shape(EditableModel):
    """What resolving asks of a model: facts, no weights."""

    n_layers = d_model = vocab_size = 0

    def __init__(self, model: KnownModel) -> None:
        self.spec = type("Spec", (), {"model_type": model.model_type, "experts": None})()
        self.n_layers, self.d_model, self.vocab_size = model.n_layers, model.d_model, model.vocab_size or 1

    name = "shape"


@pytest.mark.parametrize(
    ("name", "model", "layers", "bound"),
    [
        ("ft-l", GPT2_XL, (0,), 5e-4),
        ("ft-l", GPT_J, (0,), 5e-5),
        ("ft", GPT2_XL, (1,), None),
        ("ft", GPT_J, (21,), None),
    ],
)
def test_published_settings_of_fine_tuning(
    name: str, model: KnownModel, layers: tuple[int, ...], bound: float | None
) -> None:
    shape: Any = Shape(model)
    resolved = resolve_method(method_named(name), shape)
    assert (resolved.layers, resolved.config.layers) == (layers, layers)
    assert resolved.config.settings()["fine_tune.max_change"] == bound
    origin = resolved.origins["layers"]
    assert origin.startswith(f"preset for models shaped like {model.name}: ROME's settings")
    assert (resolved.origins["fine_tune.max_change"] == origin) == (name == "ft-l")
    assert resolved.to_dict()["origins"].keys() == resolved.to_dict()["settings"].keys()


@pytest.mark.parametrize("name", ["ft", "ft-l"])
def test_elsewhere_the_numbers_are_as_before_and_told_to_be_foreign(name: str) -> None:
    resolved = resolve_method(method_named(name), Shape(SMOLLM2_135M))  # type: ignore[arg-type]
    assert resolved.layers == (0,)
    assert resolved.config.own == BASELINES[name].own
    assert "not tuned for this model" in resolved.origins["layers"]
    assert ("not tuned for this model" in resolved.origins["fine_tune.max_change"]) == (name == "ft-l")
    assert resolved.origins["fine_tune.steps"] == f"baseline {name}"


def test_what_is_given_wins_and_a_config_of_ones_own_stands() -> None:
    shape: Any = Shape(GPT_J)
    given = resolve_method(method_named("ft-l"), shape, layers=[3], settings={"fine_tune.max_change": 1e-3})
    assert (given.layers, given.config.settings()["fine_tune.max_change"]) == ((3,), 1e-3)
    assert given.origins["layers"] == "given (--layers)"
    assert given.origins["fine_tune.max_change"] == "given (--set)"
    own = resolve_method(apply_settings(method_named("ft-l"), {"fine_tune.steps": 3}), shape)
    assert (own.layers, own.config.settings()["fine_tune.max_change"]) == ((0,), 5e-4)
    placed = resolve_method(replace(method_named("ft-l"), layers=(2, 1)), shape)
    assert (placed.layers, placed.origins["layers"]) == ((1, 2), "given (config)")
    assert placed.config.settings()["fine_tune.max_change"] == 5e-4


def test_presets_are_of_baselines_and_settings_that_exist() -> None:
    assert set(UNTUNED) <= set(BASELINES)
    for name in BASELINES.keys() & PRESETS.keys():
        for preset in PRESETS[name].values():
            apply_settings(BASELINES[name], preset.settings)
    for name, origins in UNTUNED.items():
        assert origins.keys() <= BASELINES[name].settings().keys()
