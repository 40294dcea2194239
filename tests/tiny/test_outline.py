"""What a model is and what an edit takes, from its configuration alone; and the commands that say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from emendo.editing.footprint import footprint
from emendo.editing.session import EditSession
from emendo.errors import ModelNotFoundError, UnsupportedModelError
from emendo.methods import resolve_method
from emendo.models.outline import outline
from tests.conftest import build_tiny
from tests.quick_plans import EIFFEL, QUICK
from tests.tiny.conftest import Command


def saved(family: str, folder: Path) -> str:
    """A model folder whose weights are gone."""
    lm = build_tiny(family)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    return str(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_outline_is_the_model_without_its_weights(family: str, tmp_path: Path) -> None:
    found, lm = outline(saved(family, tmp_path)), build_tiny(family)
    assert found.device.type == "meta"
    assert (found.spec, found.n_layers, found.d_model, found.vocab_size) == (
        lm.spec,
        lm.n_layers,
        lm.d_model,
        lm.vocab_size,
    )
    assert [found.d_in(layer) for layer in range(lm.n_layers)] == [lm.d_in(layer) for layer in range(lm.n_layers)]
    shapes = {name: value.shape for name, value in lm.model.named_parameters()}
    assert {name: value.shape for name, value in found.model.named_parameters()} == shapes
    assert outline(str(tmp_path), torch.bfloat16).dtype == torch.bfloat16
    for method in ("emendo", "memit"):
        assert resolve_method(method, found).to_dict() == resolve_method(method, lm).to_dict()


def test_the_footprint_counts_what_a_session_holds(session: EditSession, tmp_path: Path) -> None:
    method = session.resolve("memit", layers=[0, 2], settings=QUICK).on_engine()
    assert method is not None
    need = footprint(session.lm, method.config, 1)
    metrics = session.preservation(method.config)
    plan = session.plan([EIFFEL], "memit", layers=[0, 2], settings=QUICK)
    weights = sum(part.numel() * part.element_size() for part in set(session.lm.model.parameters()))
    moments = sum(metric.moment.numel() * 8 for metric in metrics.values())
    factors = sum(metric.cholesky.numel() * 8 for metric in metrics.values())
    by_name = list(need.memory.values())
    assert by_name[:3] == [weights, moments, factors]
    assert by_name[4] == plan.update.nbytes
    assert need.total == sum(by_name)
    assert footprint(session.lm, method.config, 10).search_flop == pytest.approx(10 * need.search_flop)


def test_a_mixture_of_experts_counts_a_block_an_expert(tmp_path: Path) -> None:
    """Layer 0 is dense, 48 wide; the others have six experts, 16 wide, of which a token takes two."""
    lm = outline(saved("deepseek_v3", tmp_path / "model"))
    method = resolve_method("memit", lm, layers=[0, 2], settings=QUICK).on_engine()
    assert method is not None
    need = footprint(lm, method.config, 1)
    assert list(need.memory.values())[1:3] == [8 * (48**2 + 6 * 16**2)] * 2
    idle = 4 / 6 * sum(part.numel() for part in lm.down_projection(2).parameters())
    met = [sum(part.numel() for part in block.parameters()) for block in lm.blocks]
    per_token = (sum(met) - 3 * idle) / 4
    assert need.moments_flop == pytest.approx(2 * per_token * 3 * 4 * max(48, 6 * 16 // 2))


def test_a_model_that_cannot_be_edited_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}))
    with pytest.raises(UnsupportedModelError):
        outline(str(tmp_path))
    with pytest.raises(ModelNotFoundError):
        outline(str(tmp_path / "nothing"))


def test_the_commands_say_it(emendo: Command, tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model")
    code, text, err = emendo("doctor", folder, "--edits", "3", "--method", "memit", "--json")
    assert code == 0, err
    document = json.loads(text)
    assert document["model"]["family"] == "llama"
    assert document["edit"]["fits"]
    assert document["edit"]["total_bytes"] == sum(document["edit"]["memory_bytes"].values())
    assert {"report", "peft", "data"} <= set(document["extras"])
    assert document["facts"]["EMENDO_HOME"]
    code, text, err = emendo("models", folder)
    assert code == 0, err
    assert "supported" in text
    assert "model.layers.N.mlp.down_proj" in text
    code, _, err = emendo("doctor", folder, "--method", "ft")
    assert code == 2
    assert "baseline" in err


def test_a_plan_says_what_it_takes_and_what_cannot_fit_is_told_before_it_is_loaded(
    emendo: Command, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fact = ("--prompt", EIFFEL.prompt, "--subject", EIFFEL.subject, "--target", EIFFEL.target)
    given = ("edit", "--model", model, *fact, "--method", "emmet", "--plan-only")
    code, out, err = emendo(*given, "--json")
    assert code == 0, err
    takes = json.loads(out)["footprint"]
    assert takes["fits"]
    assert takes["total_bytes"] == sum(takes["memory_bytes"].values())
    assert "killed" not in err
    monkeypatch.setattr("emendo.cli.footprint.memory", lambda: takes["total_bytes"])

    def load(*_: object, **__: object) -> None:
        raise ModelNotFoundError("loaded")

    monkeypatch.setattr("emendo.models.load", load)
    code, out, err = emendo(*given)
    assert code == 2
    said = " ".join((out + err).split())
    assert 0 < said.index("it will likely be killed") < said.index("loaded")
