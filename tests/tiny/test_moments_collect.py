"""One pass over all layers against a naive float64 oracle; exact counts; resuming bit for bit."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import emendo.statistics.corpus as corpus_module
from emendo.editing.session import EditSession
from emendo.errors import CorpusError, LayerError, MomentsError, NumericalError, WorkerError
from emendo.models import EditableModel
from emendo.parallel import Finished, World
from emendo.statistics import (
    MomentSpec,
    MomentStore,
    SelfSampledCorpus,
    TextCorpus,
    collect_moments,
    default_tokens,
    obtain_for_method,
    obtain_moments,
)
from emendo.statistics.collect import Saves
from emendo.statistics.packing import bos_ids
from tests.conftest import FAMILIES, TRAINING_TEXT, build_tiny
from tests.kinds import ALIKE
from tests.pairs import pairs
from tests.quick_plans import EIFFEL

LAYERS = [1, 3]
SHORT = {"length": 16}


@pytest.fixture
def text(tmp_path: Path) -> TextCorpus:
    path = tmp_path / "text.jsonl"
    rows = [{"text": f"{line} {n}."} for n in range(12) for line in TRAINING_TEXT]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return TextCorpus(path)


def oracle(lm: EditableModel, spec: MomentSpec, layer: int, tokens: int) -> torch.Tensor:
    """One sequence at a time, one layer at a time, in float64, with a hook of its own."""
    found: list[torch.Tensor] = []
    module = lm.model.get_submodule(lm.module_name(layer))
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
    rows: list[torch.Tensor] = []
    for ids in spec.corpus.sequences(lm, length=spec.length, count=10_000):
        found.clear()
        with torch.no_grad():
            lm.model(torch.tensor([ids]))
        keys = found[0].reshape(len(ids), -1)  # OPT's MLP sees [batch × seq, ·]
        rows.append(keys[int(spec.exclude_first) :].double())
        if sum(map(len, rows)) >= tokens:
            break
    handle.remove()
    keys = torch.cat(rows)[:tokens]
    return keys.T @ keys / tokens


@pytest.mark.parametrize(("family", "exclude_first"), pairs(sorted(FAMILIES), [False, True], ALIKE))
def test_one_pass_equals_the_oracle(family: str, text: TextCorpus, exclude_first: bool) -> None:
    tiny = build_tiny(family)
    spec = MomentSpec(text, tokens=301, exclude_first=exclude_first, **SHORT)
    found = collect_moments(tiny, LAYERS, spec)
    assert list(found) == LAYERS
    for layer, moment in found.items():
        assert moment.count == 301
        expected = oracle(tiny, spec, layer, 301)
        torch.testing.assert_close(moment.mean(), expected, rtol=1e-4, atol=1e-6)


def test_one_forward_pass_serves_all_layers_and_stops_above_the_highest(
    tiny_llama: EditableModel, text: TextCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []
    run = tiny_llama.run

    def counted(batch: Any, *, keys: Any = (), **rest: Any) -> Any:
        calls.append(tuple(keys))
        return run(batch, keys=keys, **rest)

    reached: list[int] = []
    top = tiny_llama.blocks[3].register_forward_pre_hook(lambda *_: reached.append(3))
    monkeypatch.setattr(tiny_llama, "run", counted)
    monkeypatch.setattr("emendo.statistics.collect.TOKEN_BUDGET", 64)
    collect_moments(tiny_llama, [0, 2], MomentSpec(text, tokens=200, **SHORT))
    top.remove()
    assert calls == [(0, 2)] * 4
    assert reached == []


def test_the_default_size_is_a_multiple_of_d_in(tiny_llama: EditableModel) -> None:
    assert default_tokens(48) == 480
    moment = collect_moments(tiny_llama, [0], MomentSpec(SelfSampledCorpus(), **SHORT))[0]
    assert moment.count == 480
    assert float(torch.linalg.eigvalsh(moment.mean())[0]) > 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("bos", [False, True])
def test_self_sampled_needs_no_data_and_no_global_randomness(family: str, bos: bool) -> None:
    lm = build_tiny(family, bos=bos)
    spec = MomentSpec(tokens=100, **SHORT)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = collect_moments(lm, LAYERS, spec)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = collect_moments(lm, LAYERS, spec)
    other = collect_moments(lm, LAYERS, MomentSpec(SelfSampledCorpus(seed=1), tokens=100, **SHORT))
    for layer in LAYERS:
        assert torch.equal(first[layer].total, second[layer].total)
        assert not torch.equal(first[layer].total, other[layer].total)
    expected = oracle(lm, spec, 1, 100) if not bos_ids(lm) else first[1].mean()
    torch.testing.assert_close(first[1].mean(), expected, rtol=1e-3, atol=1e-5)


class InterruptedRunError(Exception):
    pass


def interrupt_after(lm: EditableModel, passes: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let `passes` captures succeed, then raise; returns the list of captured batch sizes."""
    run, seen = type(lm).run, []

    def limited(batch: Any, **rest: Any) -> Any:
        if len(seen) == passes:
            raise InterruptedRunError
        seen.append(len(batch.input_ids))
        return run(lm, batch, **rest)

    monkeypatch.setattr(lm, "run", limited)
    return seen


@pytest.mark.parametrize("source", ["text", "self"])
@pytest.mark.parametrize("accumulate", ["float64", "float32"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    source: str,
    accumulate: str,
    text: TextCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("emendo.statistics.collect.TOKEN_BUDGET", 48)
    monkeypatch.setattr("emendo.statistics.sample.SAMPLE_ROWS", 8)
    lm = build_tiny("llama")
    corpus = text if source == "text" else SelfSampledCorpus()
    spec = MomentSpec(corpus, tokens=400, accumulate=accumulate, **SHORT)  # type: ignore[arg-type]
    whole = collect_moments(lm, LAYERS, spec)

    store = MomentStore(tmp_path / "store")
    with monkeypatch.context() as patch:
        interrupt_after(lm, 5, patch)
        with pytest.raises(InterruptedRunError):
            obtain_moments(lm, LAYERS, spec, store, every=0)
    assert len(list(store.root.glob("*/partial-*"))) == 1
    assert store.entries() == []
    with monkeypatch.context() as patch:
        seen = interrupt_after(lm, 100, patch)
        resumed = obtain_moments(lm, LAYERS, spec, store, every=0)
    assert sum(seen) == 25 - 5 * 3  # five passes of three sequences were saved
    for layer in LAYERS:
        assert torch.equal(resumed[layer].moment.total, whole[layer].total)
        assert resumed[layer].moment.count == 400
    assert list(store.root.glob("*/partial-*")) == []


def test_a_state_of_other_settings_is_never_resumed(
    text: TextCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emendo.statistics.collect.TOKEN_BUDGET", 48)
    lm = build_tiny("llama")
    with monkeypatch.context() as patch:
        interrupt_after(lm, 5, patch)
        with pytest.raises(InterruptedRunError):
            collect_moments(lm, [1], MomentSpec(text, tokens=400, **SHORT), checkpoint=tmp_path, every=0)
    other = MomentSpec(text, tokens=401, **SHORT)
    found = collect_moments(lm, [1], other, checkpoint=tmp_path)
    assert torch.equal(found[1].total, collect_moments(lm, [1], other)[1].total)


def test_obtain_collects_only_what_is_missing(
    tiny_llama: EditableModel, text: TextCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, spec = MomentStore(tmp_path), MomentSpec(text, tokens=100, **SHORT)
    first = obtain_moments(tiny_llama, [1], spec, store)
    assert not first[1].cached
    requested: list[list[int]] = []
    run = tiny_llama.run
    monkeypatch.setattr(
        tiny_llama, "run", lambda batch, keys, **rest: requested.append(list(keys)) or run(batch, keys=keys, **rest)
    )
    second = obtain_moments(tiny_llama, [1, 2], spec, store)
    assert {tuple(keys) for keys in requested} == {(2,)}
    assert [second[layer].cached for layer in (1, 2)] == [True, False]
    assert torch.equal(second[1].mean(), first[1].mean())
    requested.clear()
    assert all(stored.cached for stored in obtain_moments(tiny_llama, [1, 2], spec, store).values())
    assert requested == []


def test_an_edited_model_is_refused_unless_everything_is_stored(
    tiny_llama: EditableModel, text: TextCorpus, tmp_path: Path
) -> None:
    store, spec = MomentStore(tmp_path), MomentSpec(text, tokens=100, **SHORT)
    obtain_moments(tiny_llama, [1], spec, store)
    with tiny_llama.edited({3: tiny_llama.weight(3) * 2}):
        assert obtain_moments(tiny_llama, [1], spec, store)[1].cached
        with pytest.raises(MomentsError, match="rollback"):
            obtain_moments(tiny_llama, [2], spec, store)


def test_obtain_for_method(tiny_llama: EditableModel, text: TextCorpus, tmp_path: Path) -> None:
    class Settings:
        source = str(text.path)
        multiple = 2.5
        exclude_first = False

    means, record = obtain_for_method(
        build_tiny("llama"), [0, 2], Settings(), seed=3, store=MomentStore(tmp_path / "store")
    )
    assert {layer: mean.dtype for layer, mean in means.items()} == dict.fromkeys([0, 2], torch.float64)
    assert record["tokens"] == 120
    assert record["corpus"]["seed"] == 3
    assert json.loads(json.dumps(record)) == record


def test_progress_counts_every_token(tiny_llama: EditableModel, text: TextCorpus) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.events: list[Any] = []

        def start(self, stage: str, total: int | None = None) -> None:
            self.events.append((stage, total))

        def advance(self, n: int = 1) -> None:
            self.events.append(n)

        def finish(self) -> None:
            self.events.append("finished")

    for corpus in (text, SelfSampledCorpus()):
        recorder = Recorder()
        collect_moments(tiny_llama, [0], MomentSpec(corpus, tokens=100, **SHORT), progress=recorder)
        assert recorder.events[0][0] == "second moments"
        assert recorder.events[-1] == "finished"
        assert sum(recorder.events[1:-1]) == recorder.events[0][1]


def test_errors(tiny_llama: EditableModel, text: TextCorpus) -> None:
    with pytest.raises(CorpusError, match=r"the text holds \d+ tokens to count, 99999 were asked"):
        collect_moments(tiny_llama, [0], MomentSpec(text, tokens=99_999, **SHORT))
    with pytest.raises(CorpusError, match="length=500"):
        collect_moments(tiny_llama, [0], MomentSpec(text, tokens=9, length=500))
    with pytest.raises(CorpusError, match="length=1"):
        collect_moments(tiny_llama, [0], MomentSpec(text, tokens=9, length=1))
    with pytest.raises(CorpusError, match="tokens is 0"):
        MomentSpec(text, tokens=0)
    with pytest.raises(LayerError):
        collect_moments(tiny_llama, [9], MomentSpec(text, tokens=9, **SHORT))


def test_activations_that_are_not_finite_name_their_module(tiny_llama: EditableModel, text: TextCorpus) -> None:
    tiny_llama.blocks[2].mlp.up_proj.weight.data[5, 5] = float("inf")
    with pytest.raises(NumericalError, match=r"layers\.2\.mlp\.down_proj"):
        collect_moments(tiny_llama, [1, 2], MomentSpec(text, tokens=99, **SHORT))


def test_states_are_saved_by_time_and_seldom_where_saving_takes_long(tmp_path: Path) -> None:
    class Slow:
        saved = 0

        def save(self, path: Path) -> None:
            self.saved += 1
            time.sleep(0.02)

    state: Any = Slow()
    saves = Saves(tmp_path / "state", every=0.05)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        saves.save(state)
        time.sleep(0.002)
    assert 1 < state.saved <= 4  # 20 ms are a twentieth of 400 ms
    assert not Saves(None, every=0).save(state)
    assert Saves(tmp_path / "state", every=0).save(state)


@pytest.mark.parametrize("length", [16, 20])
@pytest.mark.parametrize("source", ["text", "self"])
def test_units_of_workers_sum_to_the_serial_moment_bit_for_bit(
    source: str, length: int, text: TextCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, which takes the worker's part: units, their files, and the sum in the order of the text."""

    class Backwards:
        here, shared = False, False

        def map(self, recipe: Any, units: Any, folder: Path, **_: Any) -> Any:
            for unit in reversed(list(units)):
                assert pickle.loads(pickle.dumps(unit)) == unit
                unit.run(world, folder)
                yield Finished(unit.id, "test")

    monkeypatch.setattr("emendo.statistics.collect.TOKEN_BUDGET", 48)
    monkeypatch.setattr("emendo.statistics.sample.SAMPLE_ROWS", 8)
    monkeypatch.setattr("emendo.statistics.spread.SAMPLE_ROWS", 8)
    lm = build_tiny("llama")
    world = World(build_tiny("llama"))
    corpus = text if source == "text" else SelfSampledCorpus()
    spec = MomentSpec(corpus, tokens=405, exclude_first=True, length=length)
    whole = collect_moments(lm, LAYERS, spec)
    store = MomentStore(tmp_path / "store")
    found = obtain_moments(lm, LAYERS, spec, store, workers=Backwards(), every=0)
    for layer in LAYERS:
        assert torch.equal(found[layer].moment.total, whole[layer].total)
        assert found[layer].moment.count == 405
    assert {path.name for path in store.folder(spec.fingerprint(lm, LAYERS)).iterdir()} == {
        f"layer-{layer:02d}.safetensors" for layer in LAYERS
    }


def test_a_worker_with_another_text_is_refused(text: TextCorpus, tmp_path: Path) -> None:
    class Elsewhere:
        here, shared = False, False

        def map(self, recipe: Any, units: Any, folder: Path, **_: Any) -> Any:
            for unit in units:
                Path(text.path).write_text('{"text": "another text"}\n' * 40)
                unit.run(World(build_tiny("llama")), folder)
                yield Finished(unit.id, "test")

    with pytest.raises(WorkerError, match="another text for second moments"):
        obtain_moments(build_tiny("llama"), [1], MomentSpec(text, tokens=99, **SHORT), workers=Elsewhere())  # type: ignore[arg-type]


def test_a_second_plan_of_a_session_reads_no_text_and_asks_no_hub(
    text: TextCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: files that are hashed, and builders of data sets that are asked for."""
    read: list[str] = []
    asked: list[str] = []
    digest = corpus_module._file_digest
    monkeypatch.setattr(corpus_module, "_file_digest", lambda path: read.append(str(path)) or digest(path))
    builder = datasets.load_dataset_builder

    def build(*arguments: Any, **more: Any) -> Any:
        asked.append(arguments[0])
        return builder(*arguments, **more)

    monkeypatch.setattr(datasets, "load_dataset_builder", build)
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(Path(text.path).read_bytes())
    source = f"{text.path}+hf:{folder}"
    session = EditSession(build_tiny("llama"), store=MomentStore(tmp_path / "store"))
    settings = {"moments.source": source, "moments.multiple": 2, "target.steps": 2, "contexts.scheme": "fixed"}
    first = session.plan(EIFFEL, "emmet", layers=[1], settings=settings)
    counts = len(read), len(asked)
    assert counts == (1, 1)
    second = session.plan(EIFFEL, "emmet", layers=[1], settings=settings)
    assert (len(read), len(asked)) == counts
    assert second.update.id == first.update.id
    with Path(text.path).open("a") as stream:
        stream.write('\n{"text": "one more"}\n')
    session.plan(EIFFEL, "emmet", layers=[1], settings=settings)
    assert len(read) == 2  # a file that has changed is read again
