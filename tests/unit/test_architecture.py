"""The table of decoder families and the refusals around it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    BertConfig,
    BioGptConfig,
    FlexOlmoConfig,
    LlavaConfig,
    MambaConfig,
    OPTConfig,
    T5Config,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from emendo.errors import InputError, PluginError, UnsupportedModelError
from emendo.models import ARCHITECTURES, REFUSALS, WRAPPERS, refusals, register_model_family
from emendo.models.architecture import has_dead_units, resolve_architecture
from emendo.models.packed import SEAMS
from tests.conftest import MIXTURES, ROWS, WRAPPED, build_tiny, model_type_of, tiny_config
from tests.every import every
from tests.kinds import ALIKE


def test_every_row_is_a_family_that_the_tests_build() -> None:
    built = {model_type_of(family) for family in ROWS}
    inside = {build_tiny(name).spec.model_type for name in WRAPPED}
    assert built | inside == set(ARCHITECTURES)


@every("model_type", sorted(ARCHITECTURES))
def test_rows_are_found_by_their_own_name(model_type: str) -> None:
    spec = resolve_architecture(AutoConfig.for_model(model_type))
    assert spec is ARCHITECTURES[model_type]
    assert spec.model_type == model_type
    assert spec.attention_seam in ("interface", *SEAMS)
    assert spec.examples


def test_a_family_stands_in_tests_for_those_that_differ_from_it_in_names_alone() -> None:
    names = ("model_type", "decoder", "blocks", "attention", "attention_output", "down_projection", "final", "examples")

    def facts(family: str) -> dict[str, Any]:
        config = tiny_config(family, 400)
        facts = {name: value for name, value in vars(resolve_architecture(config)).items() if name not in names}
        return {**facts, "variants": (), "dead units": has_dead_units(config)}

    for family, kind in ALIKE.items():
        assert facts(family) == facts(kind), family
        assert kind not in ALIKE


def test_nothing_is_both_supported_and_refused() -> None:
    assert not set(ARCHITECTURES) & set(REFUSALS)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (FlexOlmoConfig(), "experts"),
        (T5Config(), "encoder-decoder"),
        (MambaConfig(), "state-space"),
        (BertConfig(), "encoder"),
        (BioGptConfig(), "not in Emendo's architecture table"),
        (SimpleNamespace(model_type="my_own"), "not in Emendo's architecture table"),
        (None, "not in Emendo's architecture table"),
    ],
    ids=["flex_olmo", "t5", "mamba", "bert", "biogpt", "unknown", "no-config"],
)
def test_refusals_name_the_family_the_reason_and_where_the_others_are(config: object, reason: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        resolve_architecture(config)
    message = str(caught.value)
    assert repr(getattr(config, "model_type", None)) in message
    assert reason in message
    assert "`emendo models`" in message
    assert sum(family in message for family in ARCHITECTURES) < 6, "a list, not a hint"
    assert isinstance(caught.value, InputError)


def test_an_unknown_family_is_told_the_nearest_ones() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'quen2' is not supported.*Nearest of those that are: 'qwen2'"):
        resolve_architecture(SimpleNamespace(model_type="quen2"))
    with pytest.raises(UnsupportedModelError) as caught:
        resolve_architecture(SimpleNamespace(model_type="@@@"))
    assert "Nearest" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "decoder", "reason"),
    [
        ("qwen3_vl_moe", "qwen3_vl_moe_text", "experts"),
        ("ernie4_5_vl_moe", "ernie4_5_vl_moe_text", "experts"),
        ("qwen3_5", "qwen3_5_text", "state-space"),
        ("qwen3_5_moe", "qwen3_5_moe_text", "state-space"),
        ("blip-2", "opt", "though its text decoder alone is of a family in it"),
        ("glm4v", "glm4v_text", "neither it nor its text decoder"),
    ],
)
def test_a_multimodal_model_without_an_entry_is_told_about_its_text_decoder(
    model_type: str, decoder: str, reason: str
) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        resolve_architecture(AutoConfig.for_model(model_type))
    assert f"model_type {model_type!r} is not supported" in str(caught.value)
    assert repr(decoder) in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("vision-encoder-decoder", "encoder-decoder"),
        ("bert-generation", "cross-attention"),
        ("xlm", "masked tokens"),
        ("xlnet", "see later ones"),
        ("reformer", "several residual streams"),
        ("gemma4", "share keys and values"),
        ("gemma4_text", "share keys and values"),
        ("openai-gpt", "without a cache"),
        ("granite_swa", "rotary positions of their own"),
        ("diffllama", "difference of two"),
        ("youtu", "narrower than its keys"),
        ("xglm", "attention interface"),
        ("mpt", "attention interface"),
    ],
)
def test_what_keeps_a_family_out_is_said(model_type: str, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        resolve_architecture(SimpleNamespace(model_type=model_type))


@every("model_type", sorted(REFUSALS))
def test_every_refusal_has_a_reason(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"not supported: \w"):
        resolve_architecture(SimpleNamespace(model_type=model_type))


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "gptq", "bits": 4}, SimpleNamespace(quant_method="gptq")], ids=["dict", "object"]
)
def test_quantised_weights_are_refused(quantization: object) -> None:
    config = AutoConfig.for_model("llama")
    config.quantization_config = quantization
    with pytest.raises(UnsupportedModelError) as caught:
        resolve_architecture(config)
    assert "gptq" in str(caught.value)
    assert "unquantised" in str(caught.value)


# ---- what the refusals say, held against the installed transformers ------------------------------------------


def installed(model_types: Iterable[str]) -> list[Any]:
    return [AutoConfig.for_model(name) for name in model_types if name in CONFIG_MAPPING]


def refused_for(reason: str) -> list[Any]:
    return installed(name for name, why in REFUSALS.items() if why == reason)


def has_experts(config: Any) -> bool:
    """Whether any of the names that families use for their number of experts is set."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "ffn_config")
    names += ("moe_intermediate_size", "num_routed_experts")
    return any(getattr(config, name, None) for name in names)


def test_refused_mixtures_have_experts_and_of_supported_families_those_that_say_so() -> None:
    refused = refused_for(refusals.MIXTURE_OF_EXPERTS)
    assert len(refused) > 20
    without = [config.model_type for config in refused if not has_experts(config.get_text_config(decoder=True))]
    assert without == []
    routed = {config.model_type for config in installed(ARCHITECTURES) if has_experts(config)}
    assert routed == {name for name, row in ARCHITECTURES.items() if row.experts is not None} == set(MIXTURES)


def test_refused_encoder_decoders_are_and_no_supported_family_is() -> None:
    refused = [config for config in refused_for(refusals.ENCODER_DECODER) if config.model_type != "encoder-decoder"]
    assert len(refused) > 20
    assert all(config.is_encoder_decoder for config in refused)
    assert not any(getattr(config, "is_encoder_decoder", False) for config in installed(ARCHITECTURES))


def test_no_causal_lm_with_experts_is_merely_unknown() -> None:
    """A mixture of experts in the installed transformers is refused as what it is, also as a text decoder."""
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    # Doge's own models leave its experts off (is_moe).
    unknown = sorted(known - set(REFUSALS) - set(ARCHITECTURES) - set(WRAPPERS) - {"doge"})
    decoders = [config.get_text_config(decoder=True) for config in installed(unknown)]
    assert len(decoders) > 50
    said = {*REFUSALS, *ARCHITECTURES}
    assert [text.model_type for text in decoders if has_experts(text) and text.model_type not in said] == []


def test_every_wrapper_is_one_that_the_tests_build() -> None:
    assert {name.partition("/")[0] for name in WRAPPED} == set(WRAPPERS)


@pytest.mark.parametrize("name", sorted(WRAPPED))
def test_a_multimodal_model_has_the_facts_of_its_text_decoder(name: str) -> None:
    wrapper, config = name.partition("/")[0], tiny_config(name, 400)
    spec, own = resolve_architecture(config), resolve_architecture(config.get_text_config(decoder=True))
    assert (spec.wrapper, spec.decoder) == (wrapper, WRAPPERS[wrapper])
    # The wrapper's own unembedding scales nothing.
    unscaled = {"logit_scale": None, "logit_divisor": None, "logit_softcap": None}
    assert spec == replace(own, wrapper=wrapper, decoder=spec.decoder, **unscaled)


def test_a_multimodal_model_around_a_refused_decoder() -> None:
    config = LlavaConfig(text_config=FlexOlmoConfig())
    with pytest.raises(UnsupportedModelError, match=r"'llava' model cannot be edited.*'flex_olmo'.*experts"):
        resolve_architecture(config)
    config = LlavaConfig(text_config=OPTConfig())
    assert resolve_architecture(config).decoder == "model.language_model.decoder"


def test_a_multimodal_model_with_quantised_text_is_refused() -> None:
    config = LlavaConfig()
    config.text_config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(UnsupportedModelError, match=r"llava.*awq"):
        resolve_architecture(config)


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_bidirectional_models_are_refused(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, use_bidirectional_attention=True)
    with pytest.raises(UnsupportedModelError, match=r"later ones.*use_bidirectional_attention"):
        resolve_architecture(config)


# ---- a family of one's own -------------------------------------------------------------------------------------


def test_a_registered_family_is_edited_like_its_own(request: pytest.FixtureRequest) -> None:
    """A model type that Emendo does not have, whose blocks are Llama's."""
    config = CONFIG_MAPPING["llama"]()
    config.model_type = "my_llama"
    with pytest.raises(UnsupportedModelError, match="'my_llama' is not supported"):
        resolve_architecture(config)
    spec = replace(ARCHITECTURES["llama"], model_type="my_llama")
    assert register_model_family(spec) is spec
    request.addfinalizer(lambda: ARCHITECTURES.unregister("my_llama"))
    assert resolve_architecture(config) is spec
    with pytest.raises(PluginError, match="model family 'llama' is there already, from Emendo"):
        register_model_family(ARCHITECTURES["llama"])
