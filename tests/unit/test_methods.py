"""Methods as data: every name resolves on every family, strictly, and says where each value comes from."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import emendo
from emendo.errors import LayerError, MethodError, PluginError
from emendo.methods import BASELINES, CATALOGUE, METHODS, MethodConfig, apply_settings, method_named, resolve_method
from emendo.methods.layers import layers_by_depth
from emendo.methods.presets import PRESETS, presets_of
from emendo.methods.settings import ContextSettings, KeySettings, Memorization, MomentSettings, PostStep, TargetSettings
from emendo.models import EditableModel
from emendo.models.architecture import ARCHITECTURES
from emendo.models.known import (
    LLAMA_2_7B,
    LLAMA_3_8B,
    LLAMA_32_3B,
    MISTRAL_7B,
    QWEN2_7B,
    SMOLLM2_135M,
    KnownModel,
)
from tests.every import every


class Shape(EditableModel):
    """What resolving asks of a model: facts, no weights."""

    n_layers = d_model = vocab_size = 0

    def __init__(self, model: KnownModel) -> None:
        self.spec, self.name = ARCHITECTURES[model.model_type], model.name
        self.n_layers, self.d_model = model.n_layers, model.d_model
        self.vocab_size = model.vocab_size or 1


@every("method", METHODS)
def test_every_method_resolves_on_every_family(method: str, tiny: EditableModel) -> None:
    resolved = resolve_method(method, tiny)
    config = resolved.config
    assert config.layers == tuple(sorted(set(config.layers)))
    assert 0 <= config.layers[0] <= config.layers[-1] < tiny.n_layers
    assert config.n_layers == len(config.layers) == min(METHODS[method].n_layers, 1 if tiny.spec.parallel else 2)
    assert resolved.origins.keys() == config.settings().keys()
    assert all(resolved.origins.values())
    assert resolved.to_dict()["settings"] == config.settings()


PRESET_ROWS = [(method, model) for method in METHODS if method in PRESETS for model in PRESETS[method]]


@every(("method", "model"), PRESET_ROWS, ids=lambda value: getattr(value, "name", value))
def test_every_preset_fits_its_method_and_its_model(method: str, model: KnownModel) -> None:
    preset, shape = PRESETS[method][model], Shape(model)
    assert model.matches(shape)  # type: ignore[arg-type]
    resolved = resolve_method(method, shape)  # type: ignore[arg-type]
    assert resolved.config.layers == preset.layers
    assert resolved.origins["layers"] == f"preset for models shaped like {model.name}: {preset.source}"
    values = resolved.config.settings()
    for name, value in preset.settings.items():
        assert values[name] == value
        assert resolved.origins[name] == resolved.origins["layers"]
    assert {name for name, origin in resolved.origins.items() if origin.startswith("preset")} == {
        *preset.settings,
        "layers",
        "n_layers",
    }


def test_a_borrowed_preset_names_the_method_that_it_is_of() -> None:
    resolved = resolve_method("rect", Shape(SMOLLM2_135M))  # type: ignore[arg-type]
    origin = resolved.origins["preservation.weight"]
    assert origin.startswith("preset of memit for models shaped like SmolLM2-135M: measured on")


@pytest.mark.parametrize(
    "method", ["pmet", "alphaedit", "encore", "emendo", "rome", "emmet", "memit", "emmet-published"]
)
def test_only_what_was_measured_says_so(method: str) -> None:
    """docs/lab/demo-model.md compares settings of three methods; the others take theirs over."""
    origin = resolve_method(method, Shape(SMOLLM2_135M)).origins["layers"]  # type: ignore[arg-type]
    measured = method in ("emmet", "memit", "emmet-published")
    assert ("measured on held-apart facts" in origin) == measured
    assert ("not tuned for this method" in origin) != measured


@pytest.mark.parametrize("vocab_size", [49152, 128256])
def test_a_model_of_the_demo_models_width_with_another_vocabulary_is_another_model(vocab_size: int) -> None:
    shape = Shape(replace(SMOLLM2_135M, vocab_size=vocab_size))
    assert SMOLLM2_135M.matches(shape) == (vocab_size == 49152)  # type: ignore[arg-type]
    assert SMOLLM2_135M.shape == "llama, 30 layers of 576, vocabulary 49152"


@every("method", ["rome", "r-rome"])
@every("model", PRESETS["rome"], ids=lambda model: model.name)
def test_rome_has_the_identity_where_the_settings_leave_c_out(method: str, model: KnownModel) -> None:
    """All files of EasyEdit, and AlphaEdit's for Llama-3, have mom2_adjustment false."""
    resolved = resolve_method(method, Shape(model))  # type: ignore[arg-type]
    identity = model in (LLAMA_2_7B, LLAMA_3_8B, LLAMA_32_3B, MISTRAL_7B, QWEN2_7B)
    preservation = resolved.config.preservation
    assert (preservation.weight, preservation.ridge) == ((0.0, 1.0) if identity else (1.0, 0.0))
    assert ("C = I" in resolved.origins["layers"]) == identity


@pytest.mark.parametrize("model", PRESETS["emmet-published"], ids=lambda model: model.name)
def test_easyedit_adds_alpha_for_one_request_too(model: KnownModel) -> None:
    config = resolve_method("emmet-published", Shape(model)).config  # type: ignore[arg-type]
    assert config.memorization.strength(1) == (0.1 if model == LLAMA_32_3B else 0.0)
    assert config.memorization.strength(2) == 0.1


def test_methods_with_a_published_strength_say_that_their_c_is_another() -> None:
    """λ multiplies the C that it was published with, and a threshold is one on it."""
    told = {name for name, config in METHODS.items() if any("Wikipedia" in text for text in config.deviations)}
    assert told == {name for name, config in METHODS.items() if config.memorization.s > 0}
    assert "arXiv" in METHODS["replay"].source


def test_a_preset_is_for_exactly_one_model() -> None:
    for rows in PRESETS.values():
        shapes = [Shape(model) for model in rows]
        assert all(sum(model.matches(shape) for model in rows) == 1 for shape in shapes)  # type: ignore[arg-type]


def test_presets_are_for_methods_that_exist() -> None:
    assert set(PRESETS) <= set(CATALOGUE)
    borrowed = {config.name: config.presets for config in METHODS.values() if config.presets}
    assert set(borrowed.values()) <= set(PRESETS)
    assert not set(borrowed) & set(PRESETS), "a method with presets of its own would not see them"
    assert presets_of(METHODS["blue"]) == PRESETS["memit"]
    assert all(METHODS[name].name == name and METHODS[name].source for name in METHODS)


# ---- the rule of depth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "n_layers", "span", "expected"),
    [
        ("gpt2", 48, 1, (17,)),
        ("gpt2", 48, 5, (13, 14, 15, 16, 17)),
        ("gpt_neox", 44, 1, (15,)),
        ("gpt_neox", 44, 5, (6, 7, 8, 9, 10)),
        ("gptj", 28, 1, (5,)),
        ("gptj", 28, 6, (2, 3, 4, 5, 6, 7)),
        ("llama", 32, 1, (5,)),
        ("llama", 32, 5, (4, 5, 6, 7, 8)),
        ("llama", 12, 5, (0, 1, 2, 3)),
        ("llama", 6, 5, (0, 1)),
        ("gptj", 6, 5, (1,)),  # beside attention the first MLP has seen the last token alone
        ("gptj", 12, 5, (1, 2, 3)),
        ("gptj", 6, 1, (1,)),
        ("llama", 2, 5, (0,)),
        ("gptj", 2, 5, (1,)),
        ("llama", 1, 5, (0,)),
        ("gptj", 1, 1, (0,)),
        ("gpt2", 2, 1, (1,)),
        ("llama", 4, 1, (1,)),
        ("llama", 1, 1, (0,)),
    ],
)
def test_layers_of_unknown_models(family: str, n_layers: int, span: int, expected: tuple[int, ...]) -> None:
    shape = Shape(KnownModel("unknown", family, n_layers, 7))
    layers, rule = layers_by_depth(shape, span)  # type: ignore[arg-type]
    assert layers == expected
    assert "rule" in rule


# ---- what the caller gives -----------------------------------------------------------------------------------


def test_given_values_win_and_say_so(tiny_llama: EditableModel) -> None:
    resolved = resolve_method("memit", tiny_llama, layers=[3, 1], settings={"target.steps": "7"})
    assert resolved.config.layers == (1, 3)
    assert resolved.config.target.steps == 7
    given = {name for name, origin in resolved.origins.items() if origin.startswith("given")}
    assert given == {"layers", "n_layers", "target.steps"}


def test_a_config_of_ones_own_stands_as_it_is() -> None:
    """Also where there is a preset for the model, whose values are for the method as the catalog has it."""
    shape: Any = Shape(SMOLLM2_135M)
    preset = PRESETS["memit"][SMOLLM2_135M]
    for unchanged in ("memit", METHODS["memit"], apply_settings(METHODS["memit"], {"preservation.weight": 15000})):
        resolved = resolve_method(unchanged, shape)
        assert resolved.config.preservation.weight == preset.settings["preservation.weight"] == 100
    own = resolve_method(apply_settings(METHODS["memit"], {"preservation.weight": 500}), shape)
    assert own.config.preservation.weight == 500
    assert own.config.keys == METHODS["memit"].keys, "no value of the preset"
    assert own.config.layers == (3, 4, 5, 6, 7), "the rule of depth"
    assert own.origins["preservation.weight"] == "given (config)"
    assert own.origins["keys.average"] == "method memit"
    assert "rule" in own.origins["layers"]
    placed = resolve_method(replace(METHODS["memit"], layers=(2, 3)), shape)
    assert (placed.config.layers, placed.origins["layers"]) == ((2, 3), "given (config)")
    assert placed.config.preservation.weight == 15000
    mine = resolve_method(replace(METHODS["memit"], name="mine", layers=(2, 3)), shape)
    assert set(mine.origins.values()) == {"method mine"}


def test_a_config_of_ones_own_is_not_changed_for_a_family() -> None:
    shape: Any = Shape(KnownModel("unknown", "gemma2", 26, 7))
    own = replace(METHODS["emmet"], source="a test")
    with pytest.raises(MethodError, match=r"target\.site=mlp_out"):
        resolve_method(own, shape)
    placed = apply_settings(own, {"target.site": "mlp_out"})
    assert resolve_method(placed, shape).config == replace(placed, layers=(4,))


def test_a_resolved_method_tells_its_deviations(tiny_llama: EditableModel) -> None:
    assert resolve_method("rome", tiny_llama).to_dict()["deviations"] == list(METHODS["rome"].deviations)


@pytest.mark.parametrize("layers", [[4], [-1], [0, 99], [1, 1], []])
def test_layers_that_the_model_does_not_have(layers: list[int], tiny_llama: EditableModel) -> None:
    with pytest.raises(LayerError, match=r"layers 0 to 3.*--layers"):
        resolve_method("memit", tiny_llama, layers=layers)


def test_several_layers_need_a_distribution(tiny_llama: EditableModel) -> None:
    with pytest.raises(MethodError, match="distribution=even"):
        resolve_method("emmet", tiny_llama, layers=[1, 2])
    even = resolve_method("emmet", tiny_llama, layers=[1, 2], settings={"distribution": "even"})
    assert even.config.layers == (1, 2)


@pytest.mark.parametrize(
    ("name", "near"), [("memitt", "memit"), ("EMMMET", "emmet"), ("r_rome", "r-rome"), ("", ""), ("x" * 99, "")]
)
def test_unknown_methods(name: str, near: str) -> None:
    with pytest.raises(MethodError, match="unknown method") as caught:
        method_named(name)
    assert "emmet-published" in str(caught.value)
    assert f"did you mean {near!r}" in str(caught.value) or not near


@every(
    ("name", "value", "words"),
    [
        ("target.step", "20", "did you mean 'target.steps'"),
        ("steps", "20", "unknown setting 'steps'"),
        ("layers", "5", "such as --layers 5"),
        ("n_layers", "3", "how many there are follows"),
        ("span", "3", "layers have an argument of their own"),
        ("name", "x", "unknown setting 'name'"),
        ("target", "x", "unknown setting 'target'"),
        ("", "x", "unknown setting ''"),
        ("target.steps", "many", "valid integer"),
        ("target.steps", "2.5", "valid integer"),
        ("target.steps", 2.5, "valid integer"),
        ("target.steps", None, "valid integer"),
        ("target.steps", "0", "above 0"),
        ("target.steps", "-3", "above 0"),
        ("target.learning_rate", "nan", "finite"),
        ("target.learning_rate", "inf", "finite"),
        ("target.batch_size", 0, "above 0"),
        ("target.kl_weight", "-1", "at least 0"),
        ("target.argmax_steps", "-1", "at least 0"),
        ("target.argmax_steps", "off", "valid integer"),
        ("target.site", "attention", "resid_post"),
        ("target.precision", "float8", "bfloat16"),
        ("moments.multiple", "0", "above 0"),
        ("moments.exclude_first", "perhaps", "boolean"),
        ("memorization.s", "-0.1", "at least 0"),
        ("memorization.s", "nan", "finite"),
        ("preservation.weight", "-1", "at least 0"),
        ("preservation.weight", "nan", "finite"),
        ("preservation.weight", "0", "both 0"),
        ("contexts.scheme", "none at all", "memit"),
        ("batching", "sometimes", "joint"),
        ("distribution", "odd", "single"),
        ("keys.residual", "mean", "target.site=mlp_out"),
    ],
)
def test_settings_that_cannot_be_used(name: str, value: Any, words: str) -> None:
    with pytest.raises(MethodError) as caught:
        apply_settings(method_named("emmet"), {name: value})
    assert words in str(caught.value)
    assert "--set" in str(caught.value)


@every(
    ("changed", "words"),
    [
        (lambda: {"distribution": "evn"}, r"distribution='evn': .*'even'.*--set distribution=VALUE"),
        (lambda: {"batching": "one-by-one"}, r"batching='one-by-one'.*--set"),
        (lambda: {"target": TargetSettings(steps=0)}, r"target\.steps=0: .*above 0.*--set"),
        (lambda: {"target": TargetSettings(steps=True)}, r"target\.steps=True: .*integer"),
        (lambda: {"target": TargetSettings(steps=2.5)}, r"target\.steps=2\.5: .*integer"),
        (lambda: {"target": TargetSettings(argmax_steps=-1)}, r"target\.argmax_steps=-1: .*at least 0"),
        (lambda: {"target": KeySettings()}, r"target=KeySettings"),
        (lambda: {"memorization": Memorization(s=-1)}, r"memorization\.s=-1: .*at least 0"),
        (lambda: {"memorization": Memorization(s=float("nan"))}, r"memorization\.s=nan"),
        (lambda: {"contexts": ContextSettings(scheme="memmit")}, r"contexts\.scheme='memmit'"),
        (lambda: {"post": PostStep(kind="rect", keep=0)}, r"post\.keep=0"),
        (lambda: {"post": PostStep(kind="prune", log_base=float("inf"))}, r"post\.log_base=inf"),
        (lambda: {"moments": MomentSettings(multiple="10")}, r"moments\.multiple='10'"),
        (lambda: {"layers": [1, 2]}, r"layers=\[1, 2\]: .*--layers"),
        (lambda: {"n_layers": 0}, r"n_layers=0.*--layers"),
        (lambda: {"keys": KeySettings(residual="mean")}, r"target\.site=mlp_out"),
    ],
)
def test_a_config_is_checked_however_it_is_made(changed: Callable[[], dict[str, Any]], words: str) -> None:
    with pytest.raises(MethodError, match=words):
        replace(METHODS["memit"], **changed())


def test_the_argmax_rule_is_off_or_a_number_of_steps() -> None:
    for text in ("none", "None", None):
        assert apply_settings(method_named("emendo"), {"target.argmax_steps": text}).target.argmax_steps is None
    assert apply_settings(method_named("emendo"), {"target.argmax_steps": "0"}).target.argmax_steps == 0


def test_joint_attention_is_searched_beside_the_mlps_output() -> None:
    with pytest.raises(MethodError, match=r"target\.site=mlp_out"):
        apply_settings(method_named("memit"), {"target.joint_attention": "true"})
    assert METHODS["pmet"].target.joint_attention


def test_equality_at_the_plain_key_excludes_least_squares() -> None:
    with pytest.raises(MethodError, match=r"memorization\.s=0"):
        apply_settings(method_named("rome"), {"memorization.s": 1})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keys.residual": "mean"}, r"keys\.constraint=mean.*keys\.residual=plain"),
        ({"distribution": "optimal"}, r"distribution=optimal.*keys\.constraint=mean.*distribution=even"),
    ],
)
def test_the_mixed_keys_of_rome_are_for_what_rome_does(settings: dict[str, str], words: str) -> None:
    with pytest.raises(MethodError, match=words):
        apply_settings(method_named("rome"), settings)


@pytest.mark.parametrize("order", [1, -1])
def test_settings_that_only_make_sense_together_come_in_any_order(order: int) -> None:
    together = [("preservation.weight", "0"), ("preservation.ridge", "1")][::order]
    config = apply_settings(method_named("emmet"), dict(together))
    assert (config.preservation.weight, config.preservation.ridge) == (0.0, 1.0)
    mean = [("keys.residual", "mean"), ("target.site", "mlp_out")][::order]
    assert apply_settings(method_named("emmet"), dict(mean)).keys.residual == "mean"
    merged = [("batching", "joint"), ("target.shared", "subject")][::order]
    assert apply_settings(method_named("rome"), dict(merged)).target.shared == "subject"


@every("method", METHODS.values(), ids=lambda method: method.name)
def test_settings_survive_the_way_through_text(method: MethodConfig) -> None:
    fixed = ("layers", "n_layers")
    texts = {name: str(value) for name, value in method.settings().items() if name not in fixed}
    assert apply_settings(method, texts) == method


# ---- one catalogue -------------------------------------------------------------------------------------------


def test_methods_and_baselines_are_told_apart_in_one_place() -> None:
    """Everybody else asks the config: what differs is behind it."""
    asking = re.compile(r"isinstance\([^()]*(?:\([^()]*\)[^()]*)*, *\(?(?:MethodConfig|BaselineConfig|ResolvedMethod)")
    folder = Path(emendo.__file__).parent
    found = {
        path.relative_to(folder).as_posix(): len(asking.findall(path.read_text(encoding="utf-8")))
        for path in folder.rglob("*.py")
    }
    assert {name: count for name, count in found.items() if count} == {"methods/resolve.py": 3}


def test_the_catalogue_is_methods_and_baselines() -> None:
    assert [*METHODS, *BASELINES] == list(CATALOGUE)
    assert {CATALOGUE[name].kind for name in METHODS} == {"method"}
    assert {CATALOGUE[name].kind for name in BASELINES} == {"baseline"}
    assert CATALOGUE.origin("emmet") == "Emendo"


def test_a_registered_method_is_in_every_list_and_keeps_its_values(request: pytest.FixtureRequest) -> None:
    own = replace(METHODS["emmet"], name="mine", source="a test", target=TargetSettings(steps=7))
    request.addfinalizer(lambda: CATALOGUE.unregister("mine"))
    assert emendo.register_method(own) is own
    assert method_named("Mine") is own
    assert "mine" in METHODS
    assert "mine" not in BASELINES
    assert resolve_method("mine", Shape(SMOLLM2_135M)).config.settings()["target.steps"] == 7  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"method 'mine' is there already, from register_method\(\)"):
        emendo.register_method(own)
    with pytest.raises(PluginError, match="method 'ROME' is there already, from Emendo"):
        emendo.register_method(replace(own, name="ROME"))


def test_what_is_no_method_cannot_be_registered() -> None:
    with pytest.raises(PluginError, match="gives a dict as a method; expected a Method"):
        emendo.register_method({"name": "mine"})  # type: ignore[type-var]
