"""The table of settings: complete, short, and what `emendo methods` and error messages make of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emendo.cli.app import run
from emendo.errors import InputError
from emendo.experiments.config import ExperimentConfig
from emendo.methods import BASELINES, CATALOGUE, METHODS, check_named, method_named, read_settings, spelled_out
from emendo.methods.explained import EXPLAINED, NOT_SETTINGS, names_elsewhere
from tests.every import every


def test_every_setting_of_a_method_or_baseline_is_explained() -> None:
    settings = {name for config in (*METHODS.values(), *BASELINES.values()) for name in config.settings()}
    assert set(EXPLAINED) == settings


@every("name", EXPLAINED)
def test_an_explanation_is_one_short_sentence_or_two(name: str) -> None:
    setting = EXPLAINED[name]
    assert 20 <= len(setting.meaning) <= 110
    assert setting.meaning.endswith(".")
    assert bool(setting.elsewhere) == bool(setting.where)
    assert setting.elsewhere or not setting.differs


def test_names_of_other_code_are_settings_or_told_why_not() -> None:
    """The hyper-parameters of MEMIT (memit_hparams.py), which ROME, EMMET, AlphaEdit and EasyEdit share."""
    memit = {
        *("layers", "layer_selection", "fact_token", "v_num_grad_steps", "v_lr", "v_loss_layer", "v_weight_decay"),
        *("clamp_norm_factor", "kl_factor", "mom2_adjustment", "mom2_update_weight", "rewrite_module_tmp"),
        *("layer_module_tmp", "mlp_module_tmp", "attn_module_tmp", "ln_f_module", "lm_head_module"),
        *("mom2_dataset", "mom2_n_samples", "mom2_dtype"),
    }
    assert memit <= {*names_elsewhere(), *NOT_SETTINGS}
    assert not set(names_elsewhere()) & set(NOT_SETTINGS)


@pytest.mark.parametrize(
    ("method", "given", "told"),
    [
        ("memit", "v_lr", "v_lr is called target.learning_rate here (--set target.learning_rate=VALUE)"),
        ("memit", "fact_token", "fact_token is not a setting: an edit is always keyed on the subject's last token"),
        ("memit", "lr", "unknown setting 'lr'"),
        ("lora", "lora_alpha", "lora_alpha is called lora.alpha here"),
        ("ft", "lr", "lr is called fine_tune.learning_rate here"),
        ("lora", "v_lr", "unknown setting 'v_lr'"),
    ],
)
def test_a_name_of_other_code_is_answered_with_ours(method: str, given: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        check_named(method, {given: "1"})
    assert str(error.value).startswith(told)


def test_the_answer_is_a_setting_that_can_be_set() -> None:
    method = method_named("memit")
    for names in names_elsewhere().values():
        for name in names:
            if name in method.settings() and name != "layers":
                assert read_settings(METHODS["memit"], {name: method.settings()[name]})


# ---- names in capitals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EMMET", "MEMIT", "ROME", "R-ROME", "AlphaEdit", "LoRA", "FT-L"])
def test_a_method_is_found_whatever_the_case_of_its_letters(name: str) -> None:
    assert method_named(name).name == CATALOGUE.spelled(name) == name.lower()


def test_a_cell_has_the_name_of_the_catalog() -> None:
    base: dict[str, Any] = {"name": "x", "data": "d", "n": 2}
    small, capital = (ExperimentConfig(**base, methods=[name]).expand() for name in ("memit", "MEMIT"))
    assert [cell.id for cell in small] == [cell.id for cell in capital]
    assert spelled_out("Mine", {}, None) == ("Mine", {}, None), "the check of names says what is wrong with it"


# ---- emendo methods NAME ------------------------------------------------------------------------------------


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["methods", *arguments]) == 0
    return capsys.readouterr().out


def test_changed_settings_are_shown_and_the_others_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    few, every = shown(capsys, "r-rome"), shown(capsys, "R-ROME", "--all")
    for words in (
        "contexts.scheme=rome",
        "plain default: memit",
        "context_template_length_params",
        "more are at the plain default",
    ):
        assert words in few
    assert "history.weight" not in few
    assert every.index("contexts.scheme") < every.index("history.weight")


def test_the_json_has_every_setting_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(shown(capsys, "memit", "--json"))
    assert set(document["meanings"]) == set(document["settings"])
    assert document["meanings"]["target.learning_rate"]["elsewhere"] == "v_lr"


def test_all_wants_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "--all"]) == 2
    assert "emendo methods NAME --all" in capsys.readouterr().err
