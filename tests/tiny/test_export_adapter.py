"""Adapters as peft reads them: on the base model they give the edited model's logits, in every family."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor

from emendo.editing.session import EditSession
from emendo.errors import BaseMismatchError, ExportError, InputError
from emendo.export import RANKS, write_adapter
from emendo.export.peft_adapter import lora_tensors, padded_rank
from emendo.models import EditableModel
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.conftest import ROWS, build_tiny
from tests.kinds import kinds
from tests.random_updates import random_update

TEXTS = ["The Eiffel Tower is located in the city of", "The capital of Japan is Tokyo", "埃菲尔铁塔位于"]
FACT = {"prompt": "{} is in", "subject": "The | <b>Tower</b>", "target": "Rome\n# not a heading"}
SEVERAL = ("llama", "gpt2", "phi3", "gpt_neox")


def logits(model: Any, lm: EditableModel) -> Tensor:
    """Logits of all texts, those of padding left out."""
    found = []
    with torch.no_grad():
        for text in TEXTS:
            found.append(model(input_ids=torch.tensor([lm.encode(text)]), use_cache=False).logits[0])
    return torch.cat(found).double()


def chain(lm: EditableModel, ranks: tuple[int, int] = (3, 2)) -> list[ModelUpdate]:
    """Two updates that share a layer and differ in rank."""
    first = random_update(lm, {1: ranks[0], 2: 1}, seed=1, requests=[FACT], method={"name": "emmet"})
    return [first, random_update(lm, {2: ranks[1], 3: 2}, [first], seed=2)]


def edited_logits(lm: EditableModel, updates: list[ModelUpdate]) -> Tensor:
    session = EditSession(lm)
    try:
        for update in updates:
            session.apply(update)
        return logits(lm.model, lm)
    finally:
        session.rollback()


@pytest.mark.parametrize("family", [*kinds(ROWS), "llava"])
@pytest.mark.filterwarnings("error::UserWarning:peft")
def test_peft_gives_the_edited_logits(family: str, tmp_path: Path) -> None:
    lm = build_tiny(family)
    updates = chain(lm)
    before, expected = logits(lm.model, lm), edited_logits(lm, updates)
    written = write_adapter(lm, updates, tmp_path)
    served = PeftModel.from_pretrained(copy.deepcopy(lm.model), written.path).eval()
    wrapped = {
        name.removeprefix("base_model.model.") for name, module in served.named_modules() if hasattr(module, "lora_A")
    }
    assert wrapped == {lm.module_name(layer) for layer in (1, 2, 3)}
    found = logits(served, lm)
    merged = logits(served.merge_and_unload(), lm)
    scale = float(expected.abs().max())
    assert float((expected - before).abs().max()) > 0.01 * scale, "the update does something"
    for one in (found, merged):
        assert float((one - expected).abs().max()) < 2e-5 * max(1.0, scale)
    assert torch.equal(logits(lm.model, lm), before), "the model is as it was"


@pytest.mark.parametrize("family", SEVERAL)
def test_transformers_loads_it_too(family: str, tmp_path: Path) -> None:
    lm = build_tiny(family)
    updates = chain(lm)
    expected = edited_logits(lm, updates)
    model = copy.deepcopy(lm.model)
    model.load_adapter(str(write_adapter(lm, updates, tmp_path).path))
    torch.testing.assert_close(logits(model, lm), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", SEVERAL)
def test_the_factors_are_stored_bit_for_bit(family: str, tmp_path: Path) -> None:
    lm = build_tiny(family)
    updates = chain(lm)
    written = write_adapter(lm, updates, tmp_path)
    stored = load_file(written.path / "adapter_model.safetensors")
    assert len(stored) == 6
    first, second = updates
    name = f"base_model.model.{lm.module_name(2)}"
    down, up = stored[f"{name}.lora_A.weight"], stored[f"{name}.lora_B.weight"]
    both = [first.layers[1], second.layers[0]]
    assert torch.equal(down[:3], torch.cat([part.dual_keys for part in both]))
    assert torch.equal(up[:, :3].T, torch.cat([part.residuals for part in both]))
    assert not down[3:].any()
    assert not up[:, 3:].any()
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_the_configuration(tiny_gpt2: EditableModel, tmp_path: Path) -> None:
    written = write_adapter(tiny_gpt2, chain(tiny_gpt2), tmp_path, base_name="owner/base")
    config = LoraConfig.from_pretrained(str(written.path))
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 8, 0.0, "none")
    assert (config.fan_in_fan_out, config.use_rslora, config.use_dora) == (True, False, False)
    assert config.base_model_name_or_path == "owner/base"
    assert config.target_modules == {f"transformer.h.{layer}.mlp.c_proj" for layer in (1, 2, 3)}
    # Servers read the file itself: one rank for all layers, and nothing that they do not know.
    raw = json.loads((written.path / "adapter_config.json").read_text())
    assert (raw["rank_pattern"], raw["alpha_pattern"], raw["modules_to_save"]) == ({}, {}, None)
    assert set(raw) <= set(vars(LoraConfig()))


def test_the_hub_revision_is_recorded(tiny_llama: EditableModel, tmp_path: Path) -> None:
    tiny_llama.model.config._commit_hash = "abc123"
    written = write_adapter(tiny_llama, chain(tiny_llama), tmp_path)
    assert LoraConfig.from_pretrained(str(written.path)).revision == "abc123"


# ---- names, ranks ------------------------------------------------------------------------------------------


def test_the_name_is_of_the_content(tiny_llama: EditableModel, tmp_path: Path) -> None:
    updates = chain(tiny_llama)
    written = write_adapter(tiny_llama, updates, tmp_path)
    assert re.fullmatch(r"emendo-[0-9a-f]{12}", written.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [written.name]
    assert sorted(path.name for path in written.path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in written.path.iterdir()}
    assert write_adapter(tiny_llama, updates, tmp_path) == written, "the same again is the same folder, left alone"
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in written.path.iterdir()} == before
    again = write_adapter(tiny_llama, updates, tmp_path / "elsewhere")
    assert again.name == written.name
    assert {path.name: path.read_bytes() for path in again.path.iterdir()} == {n: b for n, (b, _) in before.items()}
    others = [
        write_adapter(tiny_llama, updates[:1], tmp_path).name,
        write_adapter(tiny_llama, updates, tmp_path, base_name="owner/base").name,
        write_adapter(tiny_llama, updates, tmp_path, tolerance=0.5).name,
    ]
    assert len({written.name, *others}) == 4


def test_a_damaged_adapter_under_its_name_is_not_taken_for_it(tiny_llama: EditableModel, tmp_path: Path) -> None:
    written = write_adapter(tiny_llama, chain(tiny_llama), tmp_path)
    weights = written.path / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ExportError, match="remove it"):
        write_adapter(tiny_llama, chain(tiny_llama), tmp_path)
    assert weights.read_bytes() == content


@pytest.mark.parametrize(("rank", "padded"), [(1, 8), (8, 8), (9, 16), (64, 64), (65, 128), (257, 320), (512, 512)])
def test_padding(rank: int, padded: int) -> None:
    assert padded_rank(rank) == padded
    part = LayerUpdate(0, "m", torch.randn(rank, 4), torch.randn(rank, 6))
    down, up = lora_tensors([part], padded).values()
    assert (down.shape, up.shape) == ((padded, 6), (4, padded))
    torch.testing.assert_close(
        (up.double() @ down.double()).float(), (part.residuals.double().T @ part.dual_keys.double()).float()
    )


def test_a_rank_that_no_server_accepts_is_refused_with_the_ways_out(tiny_llama: EditableModel, tmp_path: Path) -> None:
    update = random_update(tiny_llama, {1: RANKS[-1] + 1})
    with pytest.raises(ExportError, match=r"rank 513 .*--fold.*emendo export checkpoint"):
        write_adapter(tiny_llama, [update], tmp_path)
    assert not list(tmp_path.iterdir())
    written = write_adapter(tiny_llama, [update], tmp_path, tolerance=0.0)
    assert written.exact_rank == 32, "the rank of a [32, 48] matrix"
    served = PeftModel.from_pretrained(copy.deepcopy(tiny_llama.model), written.path).eval()
    expected = edited_logits(tiny_llama, [update])
    torch.testing.assert_close(logits(served, tiny_llama), expected, rtol=1e-4, atol=1e-4)


# ---- folding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.0, 1e-6, 0.3])
def test_folding_keeps_its_tolerance_in_what_is_served(
    tolerance: float, tiny_llama: EditableModel, tmp_path: Path
) -> None:
    update = random_update(tiny_llama, {1: 6, 2: 6})
    twice = replace(
        update,
        layers=tuple(
            replace(part, residuals=part.residuals.repeat(2, 1), dual_keys=part.dual_keys.repeat(2, 1) / 2, keys=None)
            for part in update.layers
        ),
    )
    written = write_adapter(tiny_llama, [twice], tmp_path, tolerance=tolerance)
    assert written.exact_rank <= 6, "the same six rows, written twice"
    tensors = load_file(written.path / "adapter_model.safetensors")
    for part in update.layers:
        name = f"base_model.model.{part.module}.lora"
        found = tensors[f"{name}_B.weight"].double() @ tensors[f"{name}_A.weight"].double()
        delta = part.residuals.double().T @ part.dual_keys.double()
        distance = float((found - delta).norm() / delta.norm())
        assert distance <= max(tolerance, 2e-7)
        assert distance <= written.lost + 1e-7


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_tolerances_that_make_no_sense(tolerance: float, tiny_llama: EditableModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="such as --fold 1e-6"):
        write_adapter(tiny_llama, chain(tiny_llama)[:1], tmp_path, tolerance=tolerance)
    assert not list(tmp_path.iterdir())


def test_a_tolerance_below_rounding_names_the_option(tiny_llama: EditableModel, tmp_path: Path) -> None:
    update = random_update(tiny_llama, {1: 3})
    part = update.layers[0]
    doubled = replace(part, residuals=part.residuals.repeat(2, 1), dual_keys=part.dual_keys.repeat(2, 1), keys=None)
    with pytest.raises(ExportError, match="--fold 2e-7 or more, or --fold 0"):
        write_adapter(tiny_llama, [replace(update, layers=(doubled,))], tmp_path, tolerance=1e-12)
    assert not list(tmp_path.iterdir())


# ---- what is refused ---------------------------------------------------------------------------------------


def test_updates_out_of_order_or_of_another_model(tiny_llama: EditableModel, tmp_path: Path) -> None:
    first, second = chain(tiny_llama)
    for wrong in ([second], [second, first], [first, first]):
        with pytest.raises(BaseMismatchError, match=r"planned on (the unedited model|\d update)"):
            write_adapter(tiny_llama, wrong, tmp_path)
    with pytest.raises(BaseMismatchError, match="load the model that it is for"):
        write_adapter(build_tiny("llama", seed=1), [first], tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_to_export(tiny_llama: EditableModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--update"):
        write_adapter(tiny_llama, [], tmp_path)
    with pytest.raises(ExportError, match="change no weights"):
        write_adapter(tiny_llama, [random_update(tiny_llama, {})], tmp_path)


def test_a_model_that_holds_edits_is_refused(tiny_llama: EditableModel, tmp_path: Path) -> None:
    update = random_update(tiny_llama, {1: 1})
    with EditSession(tiny_llama).applied(update), pytest.raises(InputError, match=r"rollback\(\)"):
        write_adapter(tiny_llama, [update], tmp_path)


def test_the_card_says_what_was_edited_and_shows_text_as_text(tiny_llama: EditableModel, tmp_path: Path) -> None:
    updates = chain(tiny_llama)
    written = write_adapter(tiny_llama, updates, tmp_path, base_name="owner/base")
    card = (written.path / "README.md").read_text()
    assert 'base_model: "owner/base"\nbase_model_relation: adapter\n' in card
    assert r"| The \| \<b\>Tower\</b\> is in | Rome \# not a heading |" in card
    assert all(update.id in card for update in updates)
    assert "emmet, layers 1, 2" in card
    assert "base_model:" not in (write_adapter(tiny_llama, updates, tmp_path).path / "README.md").read_text()


def test_two_adapters_in_peft_are_added_by_cat_and_by_svd_not_by_linear(tmp_path: Path) -> None:
    """`linear` adds the A and the B of two adapters on their own: (B₁ + B₂)(A₁ + A₂), with two products too many."""
    lm = build_tiny("llama")
    first, second = (random_update(lm, {1: 3, 2: 2}, seed=seed) for seed in (1, 2))
    served = PeftModel.from_pretrained(
        copy.deepcopy(lm.model), write_adapter(lm, [first], tmp_path).path, adapter_name="first"
    )
    served.load_adapter(write_adapter(lm, [second], tmp_path).path, adapter_name="second")
    module = served.base_model.model.get_submodule(lm.module_name(1))
    parts = [module.get_delta_weight(name).double() for name in ("first", "second")]
    crossed = sum(
        module.lora_B[one].weight.double() @ module.lora_A[other].weight.double()
        for one, other in (("first", "second"), ("second", "first"))
    )
    for kind, wanted in (("cat", sum(parts)), ("svd", sum(parts)), ("linear", sum(parts) + crossed)):
        served.add_weighted_adapter(["first", "second"], [1.0, 1.0], kind, combination_type=kind, svd_rank=16)
        torch.testing.assert_close(module.get_delta_weight(kind).double(), wanted, rtol=1e-4, atol=1e-6)
    assert float(crossed.norm()) > 0.3 * float(sum(parts).norm())
