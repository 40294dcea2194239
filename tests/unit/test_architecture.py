"""The table of decoder families and the refusals around it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import AutoConfig, BertConfig, MambaConfig, MixtralConfig, OlmoConfig, T5Config

from emendo.errors import InputError, UnsupportedModelError
from emendo.models import ARCHITECTURES, REFUSALS
from emendo.models.architecture import resolve_architecture
from emendo.models.packed import SEAMS
from tests.conftest import FAMILIES, WRAPPED, build_tiny, model_type_of


def test_every_row_is_a_family_that_the_tests_build() -> None:
    built = {model_type_of(family) for family in FAMILIES}
    inside = {build_tiny(name).spec.model_type for name in WRAPPED}
    assert built | inside == set(ARCHITECTURES)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_rows_are_found_by_their_own_name(model_type: str) -> None:
    spec = resolve_architecture(AutoConfig.for_model(model_type))
    assert spec is ARCHITECTURES[model_type]
    assert spec.model_type == model_type
    assert spec.attention_seam in ("interface", *SEAMS)
    assert spec.examples


def test_nothing_is_both_supported_and_refused() -> None:
    assert not set(ARCHITECTURES) & set(REFUSALS)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MixtralConfig(), "experts"),
        (T5Config(), "encoder-decoder"),
        (MambaConfig(), "state-space"),
        (BertConfig(), "encoder"),
        (OlmoConfig(), "not in Emendo's architecture table"),
        (SimpleNamespace(model_type="my_own"), "not in Emendo's architecture table"),
        (None, "not in Emendo's architecture table"),
    ],
    ids=["mixtral", "t5", "mamba", "bert", "olmo", "unknown", "no-config"],
)
def test_refusals_name_the_family_the_reason_and_what_is_supported(config: object, reason: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        resolve_architecture(config)
    message = str(caught.value)
    assert repr(getattr(config, "model_type", None)) in message
    assert reason in message
    assert all(family in message for family in ARCHITECTURES)
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("model_type", sorted(REFUSALS))
def test_every_refusal_has_a_reason(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"not supported: an? "):
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
