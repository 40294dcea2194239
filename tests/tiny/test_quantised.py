"""Models whose weights are in few bits: read as what they compute with, edited beside them, put back as the objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import emendo
from emendo import EditSession
from emendo.errors import ExportError, InputError, UnsupportedModelError
from emendo.evaluate import evaluate_records
from emendo.evaluate.tokens import TREE_TOLERANCE, score_tokens
from emendo.export import write_adapter, write_checkpoint, write_in_place
from emendo.export.recorded_moments import recorded_moments
from emendo.ledger import EditLedger
from emendo.models import EditableModel
from emendo.models.packed_weights import SidePath, dequantised, kind_of, weight_parts
from emendo.models.quantisation import WAYS
from emendo.models.quantised_kinds import refuse_method
from emendo.requests import EditRecord
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.quick_plans import EIFFEL, JAPAN, QUICK, quick_plan
from tests.tiny.conftest import Command

WAYS_HERE = sorted(WAYS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as a folder."""
    path = tmp_path_factory.mktemp("tiny-llama")
    lm = build_tiny("llama")
    lm.model.save_pretrained(path)
    lm.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=WAYS_HERE)
def lm(request: pytest.FixtureRequest, folder: Path) -> EditableModel:
    return emendo.load(folder, device="cpu", load_in=request.param)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> MomentStore:
    """Second moments of all of them, collected once."""
    return MomentStore(tmp_path_factory.mktemp("moments"))


@pytest.fixture
def session(lm: EditableModel, store: MomentStore) -> Iterator[EditSession]:
    """A session on a model that all tests of one way share: each leaves it as it was."""
    made = EditSession(lm, store=store)
    yield made
    made.rollback()


def stored(lm: EditableModel) -> dict[str, torch.Tensor]:
    """A copy of everything that the weights are made of."""
    return {name: tensor.detach().as_subclass(torch.Tensor).clone() for name, tensor in weight_parts(lm.model)}


def logits(model: Any, ids: Sequence[int] = (5, 9, 3, 17, 8)) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits.float()


def test_an_edit_stands_beside_the_base_and_the_very_objects_come_back(session: EditSession) -> None:
    lm = session.lm
    modules = {layer: lm.down_projection(layer) for layer in range(lm.n_layers)}
    objects = {layer: module.weight for layer, module in modules.items()}
    before, said = stored(lm), logits(lm.model)
    plan = quick_plan(session, [EIFFEL], "memit", layers=[1, 2])
    assert all(lm.down_projection(layer) is module for layer, module in modules.items()), "planning changes nothing"
    session.apply(plan.update)
    assert isinstance(lm.down_projection(1), SidePath)
    assert lm.down_projection(1).base is modules[1]
    base, part = dequantised(modules[1]), plan.update.layers[0]
    torch.testing.assert_close(lm.weight(1), base + part.delta(), atol=1e-6, rtol=0)
    torch.testing.assert_close(lm.base_weight(1), base, atol=0, rtol=0)
    assert not torch.equal(logits(lm.model), said)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stored(lm).items()), "base bytes untouched"
    assert session.base["weights_sha256"] == lm.weights_digest()
    session.apply(quick_plan(session, [JAPAN], "memit", layers=[1, 2]).update)
    session.rollback()
    assert all(lm.down_projection(layer) is module for layer, module in modules.items())
    assert all(lm.down_projection(layer).weight is weight for layer, weight in objects.items())
    assert all(session.verify_rolled_back().values())
    found = stored(lm)
    assert found.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.items())
    assert torch.equal(logits(lm.model), said)


def test_an_adapter_over_the_quantised_base_is_the_edited_model(session: EditSession, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lm = session.lm
    plan = quick_plan(session, [EIFFEL, JAPAN], "memit", layers=[1, 2])
    adapter = write_adapter(lm, [plan.update], tmp_path / "out")
    ids = lm.encode(EIFFEL.text)
    untouched = logits(lm.model, ids)
    session.apply(plan.update)
    edited = logits(lm.model, ids)
    assert (edited - untouched).abs().max() > 1e-3
    session.rollback()
    wrapped = peft.PeftModel.from_pretrained(lm.model, str(adapter.path))
    try:
        assert (logits(wrapped, ids) - edited).abs().max() <= 1e-4
    finally:
        wrapped.unload()


def test_a_checkpoint_has_the_edited_maps_dense_beside_the_untouched_rest(session: EditSession, tmp_path: Path) -> None:
    lm = session.lm
    if _way(lm) in ("fp4", "torchao-fp8"):
        pytest.skip("saved as its neighbour is")
    plan = quick_plan(session, [EIFFEL], "memit", layers=[1, 2])
    write_checkpoint(lm, [plan.update], tmp_path / "out")
    base = stored(lm)
    session.apply(plan.update)
    again = emendo.load(tmp_path / "out", device="cpu")
    for layer in range(lm.n_layers):
        assert (kind_of(again.down_projection(layer)) is None) == (layer in (1, 2))
        torch.testing.assert_close(again.weight(layer), lm.weight(layer), atol=1e-6, rtol=0)
    edited = [lm.parameter_name(layer) for layer in (1, 2)]
    rest = {name: tensor for name, tensor in stored(again).items() if name not in edited}
    assert rest.keys() == {name for name in base if not name.startswith(tuple(edited))}
    assert all(torch.equal(tensor, base[name]) for name, tensor in rest.items())
    ids = lm.encode(EIFFEL.text)
    if _way(lm) != "int8":  # whose maps round their inputs, which dense ones do not
        assert (logits(again.model, ids) - logits(lm.model, ids)).abs().max() <= 1e-4


def test_levels_of_the_base_hold_the_edit_with_error_feedback(session: EditSession, tmp_path: Path) -> None:
    lm = session.lm
    update = quick_plan(session, [EIFFEL], layers=[1]).update
    layers, settings, _ = recorded_moments([update])
    moments, _ = session.second_moments(layers, settings)
    if _way(lm).startswith("torchao"):
        with pytest.raises(ExportError, match="expected one of nf4, fp4, int8"):
            write_in_place(lm, [update], tmp_path / "out", moments=moments)
        return
    near = write_in_place(lm, [update], tmp_path / "near", moments=moments, rounding="nearest")
    done = write_in_place(lm, [update], tmp_path / "out", moments=moments)
    assert abs(done.layers[0].kept - 1) <= abs(near.layers[0].kept - 1)
    again = emendo.load(done.path, device="cpu")
    assert _way(again) == _way(lm)
    ours, theirs = stored(lm), stored(again)
    assert ours.keys() == theirs.keys()
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert len(different) == 1
    assert different[0].startswith(f"{lm.parameter_name(1)} (")
    part = update.layers[0]
    given, wanted = (part.keys @ weight.T for weight in (again.weight(1) - lm.weight(1), part.delta()))
    assert float((given * wanted).sum() / wanted.square().sum()) == pytest.approx(done.layers[0].kept, abs=1e-4)


def test_scores_and_generated_text_come_from_the_few_bits(lm: EditableModel) -> None:
    records = [EditRecord(EIFFEL, target_true="Paris", paraphrase_prompts=("The Eiffel Tower stands in",))]
    scores = evaluate_records(lm, records).scores
    assert 0 < scores.EP < 1
    ids = lm.encode(EIFFEL.text)
    said = lm.generate(EIFFEL.text, max_new_tokens=1)
    assert said == lm.decode_after(ids, [int(logits(lm.model, ids)[0, -1].argmax())])


def test_a_tree_is_checked_as_few_bits_compute_it(lm: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 rounds a text by what is beside it, so that one of many texts is not what it is by itself."""
    monkeypatch.setattr("emendo.evaluate.tokens.TREE_TOLERANCE", dict.fromkeys(TREE_TOLERANCE, 1e-6))
    pairs = [(f"{subject} is located in the city of", " Rome") for subject in ("The tower", "Rome", "A river")]
    assert all(score.log_probs for score in score_tokens(lm, pairs))


def _way(lm: EditableModel) -> str:
    return str(kind_of(lm.down_projection(0)))


def test_two_loads_are_one_base_and_a_changed_scale_is_seen(folder: Path) -> None:
    one, again = (emendo.load(folder, device="cpu", load_in="nf4") for _ in range(2))
    assert again.identity() == one.identity()
    assert emendo.load(folder, device="cpu", load_in="fp4").weights_digest() != one.weights_digest()
    name, scales = next((name, part) for name, part in weight_parts(one.model) if "2.mlp.down_proj.weight.abs" in name)
    scales.mul_(2)
    assert one.contents.changed() == [name]


def test_a_weight_that_a_forward_pass_would_pack_anew_is_refused(folder: Path) -> None:
    lm = emendo.load(folder, device="cpu", load_in="nf4")
    lm.down_projection(2).support_avx512bf16_for_cpu = True  # as bitsandbytes has it on such a processor
    with pytest.raises(UnsupportedModelError, match="support_avx512bf16_for_cpu = False"):
        emendo.wrap(lm.model, lm.tokenizer)


def test_what_cannot_be_read_is_refused_with_the_way_out() -> None:
    for method, words in (("gptq", "--load-in nf4"), ("compressed-tensors", "run_compressed=False"), ("new", "layout")):
        config = build_tiny("llama").model.config
        config.quantization_config = {"quant_method": method}
        with pytest.raises(UnsupportedModelError, match=words):
            refuse_method(config)


def test_unknown_ways_and_gguf_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="expected one of nf4, fp4"):
        emendo.load(folder, load_in="int3")


def test_a_ledger_of_a_model_in_few_bits_is_used_with_the_option_and_refused_without(
    folder: Path, emendo: Command, tmp_path: Path
) -> None:
    ledger, few = str(tmp_path / "ledger"), ("--load-in", "nf4")
    assert emendo("ledger", "init", ledger, "--model", str(folder), *few)[0] == 0
    quick = [word for name, value in QUICK.items() for word in ("--set", f"{name}={value}")]
    for request in (EIFFEL, JAPAN):
        fact = ("--prompt", request.prompt, "--subject", request.subject, "--target", request.target)
        given = ("edit", "--model", str(folder), *fact, "--ledger", ledger, "--method", "emmet", *quick, "--no-judge")
        code, _, err = emendo(*given)
        assert code == 2
        assert "another model" in err or "weights" in err
        code, _, err = emendo(*given, *few)
        assert code == 0, err
    first = EditLedger(Path(ledger)).history().chain[1].id
    assert emendo("ledger", "revert", first, "--ledger", ledger)[0] == 2
    code, _, err = emendo("ledger", "revert", first, "--ledger", ledger, *few)
    assert code == 0, err
    code, _, err = emendo("see", "--ledger", ledger, "--model", str(folder), *few, "--out", str(tmp_path / "see"))
    assert code == 0, err
