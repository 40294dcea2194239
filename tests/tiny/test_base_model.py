"""What a model is: weights, tokenizer and configuration, the same everywhere that something is held against a model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.editing.session import EditSession
from emendo.errors import BaseMismatchError, EmendoWarning, InputError
from emendo.export import write_adapter, write_checkpoint
from emendo.ledger import EditLedger
from emendo.models import EditableModel, base_model
from emendo.updates.merge import merge
from emendo.updates.predecessors import Predecessors
from emendo.updates.removal import without
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.tiny.conftest import Command

OTHERS: dict[str, dict[str, Any]] = {
    "hidden_act": {"hidden_act": "gelu"},
    "rms_norm_eps": {"rms_norm_eps": 1e-3},
    "rope_parameters.rope_theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "rope_parameters.factor": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "attention_dropout": {"attention_dropout": 0.5},
    "max_position_embeddings": {"max_position_embeddings": 64},
    "some_scale": {"some_scale": 2.0},
}
"""The same weights under another configuration, by the setting that an error has to name."""


def other(change: dict[str, Any], family: str = "llama") -> EditableModel:
    """The tiny model with its own weights and another configuration."""
    lm = build_tiny(family)
    config = copy.deepcopy(lm.model.config)
    config.update(copy.deepcopy(change))
    model = type(lm.model)(config).eval()
    model.load_state_dict(lm.model.state_dict())
    return EditableModel(model, lm.tokenizer, "other")


def update_for(lm: EditableModel, seed: int = 0, before: Sequence[str] = ()) -> ModelUpdate:
    g = torch.Generator().manual_seed(seed)
    part = LayerUpdate(1, lm.module_name(1), torch.randn(1, 32, generator=g), torch.randn(1, 48, generator=g))
    return ModelUpdate((part,), lm.identity(), Predecessors.of(before))


@pytest.mark.parametrize("setting", OTHERS)
def test_an_update_is_not_for_the_same_weights_under_another_configuration(setting: str) -> None:
    lm, wrong = build_tiny(), other(OTHERS[setting])
    assert lm.weights_digest() == wrong.weights_digest()
    state = model_state(wrong)
    with pytest.raises(BaseMismatchError, match=rf"{setting}: found .+, expected .+"):
        EditSession(wrong).apply(update_for(lm))
    assert changes(state, model_state(wrong)) == []


def test_a_window_is_part_of_the_model_also_where_the_other_has_none() -> None:
    lm, wrong = build_tiny("mistral"), other({"sliding_window": 16}, "mistral")
    for made, held in ((lm, wrong), (wrong, lm)):
        with pytest.raises(BaseMismatchError, match="sliding_window: found"):
            EditSession(held).apply(update_for(made))


def test_every_way_in_asks_for_the_same_model(tmp_path: Path) -> None:
    lm, wrong = build_tiny(), other(OTHERS["hidden_act"])
    update, session = update_for(lm), EditSession(wrong)
    ledger = EditLedger.create(tmp_path / "ledger", EditSession(lm))
    foreign = update_for(wrong, seed=1)
    ways: list[Callable[[], object]] = [
        lambda: session.apply(update),
        lambda: session.move_to([update]),
        lambda: write_checkpoint(wrong, [update], tmp_path / "checkpoint"),
        lambda: write_adapter(wrong, [update], tmp_path / "adapter"),
        lambda: merge([update, foreign]),
        lambda: without([update, replace(foreign, preceding=Predecessors.of([update.id]))], 0, {}),
        lambda: ledger.session(wrong),
        lambda: ledger.commit_edit(foreign),
    ]
    for way in ways:
        with pytest.raises(InputError, match='hidden_act: found "'):
            way()
    assert not (tmp_path / "checkpoint").exists()
    assert not (tmp_path / "adapter").exists()


def test_buffers_that_were_cast_are_another_model() -> None:
    lm = build_tiny(dtype=torch.bfloat16)
    kept = EditableModel(copy.deepcopy(lm.model), lm.tokenizer, "kept")
    rope = kept.model.model.rotary_emb
    rope.inv_freq = rope.inv_freq.float() * 1.01
    assert kept.weights_digest() == lm.weights_digest()
    with pytest.raises(BaseMismatchError, match=r"buffer model\.rotary_emb\.inv_freq"):
        EditSession(kept).apply(update_for(lm))


def test_names_and_bookkeeping_are_not_the_model() -> None:
    lm = build_tiny()
    same = build_tiny()
    same.name = "moved"
    same.model.config.update({"use_cache": False, "architectures": ["X"], "auto_map": {"AutoConfig": "x.Y"}})
    same.model.config._name_or_path = "elsewhere"
    EditSession(same).apply(update_for(lm))


def test_a_setting_changed_in_memory_is_noticed() -> None:
    lm = build_tiny()
    update = update_for(lm)
    lm.model.config.rms_norm_eps = 0.25
    with pytest.raises(BaseMismatchError, match=r"rms_norm_eps: found 0\.25, expected 1e-06"):
        EditSession(lm).apply(update)


def test_another_tokenizer_is_another_model() -> None:
    lm = build_tiny()
    update = update_for(lm)
    lm.tokenizer.add_tokens(["Eiffel"])
    with pytest.raises(BaseMismatchError, match="tokenizer_sha256: found"):
        EditSession(EditableModel(lm.model, lm.tokenizer, "more")).apply(update)


def test_what_only_a_newer_transformers_knows_is_no_difference() -> None:
    lm = build_tiny()
    config = json.loads(lm.identity()["config"])
    older = copy.deepcopy(config)
    older["transformers"] = "5.0.0"
    del older["settings"]["attention_bias"]
    older["settings"]["was_removed"] = 1
    recorded = {**lm.identity(), "config": json.dumps(older)}
    assert base_model.differences(recorded, lm.identity()) == []
    older["settings"]["rms_norm_eps"] = 0.1
    recorded["config"] = json.dumps(older)
    assert base_model.differences(recorded, lm.identity()) == ["rms_norm_eps: found 1e-06, expected 0.1"]


def test_bits_of_a_rope_that_differ_between_processors_are_no_difference() -> None:
    lm = build_tiny()
    identity = lm.identity()
    lm.model.model.rotary_emb.inv_freq *= 1 + 1e-6
    assert base_model.differences(identity, lm.identity()) == []


def test_where_the_configuration_was_not_recorded_a_note_says_so(tmp_path: Path) -> None:
    lm = build_tiny()
    session = EditSession(lm)
    old = {name: value for name, value in lm.identity().items() if not name.startswith("config")}
    update = replace(update_for(lm), base=old)
    with pytest.warns(EmendoWarning, match="this update was written by an Emendo that did not record"):
        session.apply(update)
    session.rollback()
    ledger = EditLedger.create(tmp_path / "ledger", {**old, "dtype": "float32"})
    with pytest.warns(EmendoWarning, match="this ledger was written by"):
        ledger.session(lm)
    later = update_for(lm, seed=1, before=(update.id,))
    assert "config" in merge([update, later]).base


def test_a_recorded_configuration_that_is_none_is_an_error_in_words() -> None:
    lm = build_tiny()
    update = replace(update_for(lm), base={**lm.identity(), "config": "[]"})
    with pytest.raises(BaseMismatchError, match="cannot be read"):
        EditSession(lm).apply(update)


def test_the_command_names_the_setting_and_shows_the_note(emendo: Command, home: Path, tmp_path: Path) -> None:
    lm = build_tiny()
    for name, made in (("a", lm), ("b", other({"hidden_act": "relu"}))):
        made.model.save_pretrained(tmp_path / name)
        made.tokenizer.save_pretrained(tmp_path / name)
    update = update_for(lm)
    update.save(tmp_path / "u")
    replace(update, base={k: v for k, v in update.base.items() if not k.startswith("config")}).save(tmp_path / "old")
    export = ("export", "checkpoint", "--json", "--update")
    code, _, err = emendo(*export, "u", "--model", "b", "--out", "out")
    assert (code, (tmp_path / "out").exists()) == (2, False)
    assert 'hidden_act: found "relu", expected "silu"' in err
    code, text, err = emendo(*export, "old", "--model", "a", "--out", "out")
    assert code == 0, err
    assert json.loads(text)["updates"] == [update.id]
    assert err.count("emendo: note: this update was written by") == 1
