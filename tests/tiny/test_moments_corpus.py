"""Corpora: what they yield, what identifies them, and what they say about bad input."""

from __future__ import annotations

import itertools
import json
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.errors import CorpusError
from emendo.gate import read_canaries
from emendo.gate.canaries import PACKAGED
from emendo.models import EditableModel
from emendo.models.sampling import draw
from emendo.statistics import DatasetCorpus, OpeningsCorpus, SelfSampledCorpus, TextCorpus, open_corpus
from emendo.statistics.packing import bos_ids, pack, separator_ids
from emendo.statistics.sample import sample_sequences
from tests.conftest import TRAINING_TEXT, build_tiny


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", [{"text": line} for line in TRAINING_TEXT])


def all_sequences(corpus: TextCorpus | DatasetCorpus, lm: EditableModel) -> list[list[int]]:
    return list(corpus.sequences(lm, length=16, count=10_000))


# ---- packing -----------------------------------------------------------------------------------


def test_packing_without_bos_is_one_stream_with_separators(tiny_llama: EditableModel) -> None:
    end = tiny_llama.tokenizer.eos_token_id
    assert bos_ids(tiny_llama) == []
    assert separator_ids(tiny_llama) == [end]
    packed = list(pack([[5, 6, 7], [], [8, 9], [10]], tiny_llama, 4))
    assert packed == [[5, 6, 7, end], [8, 9, end, 10]]


def test_packing_with_bos_starts_every_sequence_with_it() -> None:
    lm = build_tiny("llama", bos=True)
    assert bos_ids(lm) == separator_ids(lm) == [0]
    assert list(pack([[5, 6, 7], [8, 9]], lm, 4)) == [[0, 5, 6, 7], [0, 0, 8, 9]]
    assert list(pack([[5, 6], [8, 9]], lm, 4)) == [[0, 5, 6, 0], [0, 8, 9]]


def test_the_pretraining_separator_comes_before_a_chat_models_eos(
    tiny_llama: EditableModel,
) -> None:
    tiny_llama.tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    assert separator_ids(tiny_llama) == [tiny_llama.tokenizer.eos_token_id]  # the model has no row for it yet
    tiny_llama.model.resize_token_embeddings(len(tiny_llama.tokenizer))
    assert separator_ids(tiny_llama) == [tiny_llama.tokenizer.convert_tokens_to_ids("<|endoftext|>")]


# ---- text files --------------------------------------------------------------------------------


def test_jsonl_holds_every_document_once_in_a_seeded_order(tiny_llama: EditableModel, jsonl: Path) -> None:
    def lines(seed: int | None) -> list[str]:
        stream = list(itertools.chain.from_iterable(all_sequences(TextCorpus(jsonl, seed=seed), tiny_llama)))
        text = tiny_llama.tokenizer.decode(stream)
        return text.split("</s>")

    assert lines(None) == TRAINING_TEXT
    assert lines(0) != TRAINING_TEXT
    assert sorted(lines(0)) == sorted(TRAINING_TEXT)
    assert lines(0) == lines(0)
    assert lines(0) != lines(1)


def test_a_txt_file_is_one_document_in_file_order(
    tiny_llama: EditableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emendo.statistics.corpus._BLOCK_CHARACTERS", 60)
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(TRAINING_TEXT), encoding="utf-8")
    found = all_sequences(TextCorpus(path), tiny_llama)
    assert tiny_llama.tokenizer.decode(list(itertools.chain.from_iterable(found))) == "\n\n".join(TRAINING_TEXT)
    assert [len(ids) for ids in found[:-1]] == [16] * (len(found) - 1)


def test_start_skips_what_was_counted(tiny_llama: EditableModel, jsonl: Path) -> None:
    corpus = TextCorpus(jsonl)
    whole = all_sequences(corpus, tiny_llama)
    assert list(corpus.sequences(tiny_llama, length=16, count=6, start=4)) == whole[4:6]


def test_the_description_follows_the_content_not_the_path(jsonl: Path, tmp_path: Path) -> None:
    described = TextCorpus(jsonl).describe()
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(jsonl.read_bytes())
    assert TextCorpus(copy).describe() == described
    copy.write_bytes(jsonl.read_bytes() + b"\n")
    assert TextCorpus(copy).describe() != described
    assert TextCorpus(jsonl, field="other").describe() != described
    assert TextCorpus(jsonl, seed=1).describe() != described


def test_text_errors(tiny_llama: EditableModel, tmp_path: Path) -> None:
    def fails(corpus: TextCorpus, match: str) -> None:
        with pytest.raises(CorpusError, match=match):
            all_sequences(corpus, tiny_llama)

    rows = write_rows(tmp_path / "rows.jsonl", [{"body": "x", "title": "y"}])
    fails(TextCorpus(rows), r"line 1 has no field 'text'; found: body, title \(--field\)")
    fails(TextCorpus(write_rows(tmp_path / "n.jsonl", [{"text": 3}])), "holds int, expected text")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": \n', encoding="utf-8")
    fails(TextCorpus(broken), "line 2 is not JSON")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("café".encode("latin-1"))
    fails(TextCorpus(latin), "not UTF-8")
    fails(TextCorpus(tmp_path / "absent.txt"), "no text file")
    fails(TextCorpus(tmp_path / "data.csv"), r"expected a \.txt or \.jsonl file")


def test_open_corpus(jsonl: Path) -> None:
    assert open_corpus("self", seed=4) == SelfSampledCorpus(seed=4)
    assert open_corpus("kinds", seed=4) == OpeningsCorpus(seed=4)
    assert open_corpus(str(jsonl), field="body") == TextCorpus(jsonl, field="body")
    assert open_corpus("hf:a/b:c", split="s") == DatasetCorpus("a/b", "c", split="s")
    with pytest.raises(CorpusError, match=r"expected 'self', 'kinds', a \.txt or \.jsonl file, or hf:ID"):
        open_corpus("wikipedia")
    with pytest.raises(CorpusError, match="no text file"):
        open_corpus("absent.txt")


# ---- datasets ----------------------------------------------------------------------------------


def test_a_local_dataset_folder(tiny_llama: EditableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "train.jsonl", [{"text": line} for line in TRAINING_TEXT])
    corpus = DatasetCorpus(str(folder), seed=None)
    stream = list(itertools.chain.from_iterable(all_sequences(corpus, tiny_llama)))
    assert tiny_llama.tokenizer.decode(stream).split("</s>") == TRAINING_TEXT
    assert corpus.describe() == DatasetCorpus(str(folder), seed=None).describe()
    shuffled = DatasetCorpus(str(folder), seed=5)
    assert all_sequences(shuffled, tiny_llama) == all_sequences(shuffled, tiny_llama)
    assert shuffled.describe() != corpus.describe()
    with pytest.raises(CorpusError, match="no field 'body'"):
        all_sequences(DatasetCorpus(str(folder), field="body"), tiny_llama)
    with pytest.raises(CorpusError, match="--split"):
        all_sequences(DatasetCorpus(str(folder), split="nope"), tiny_llama)


def test_a_missing_datasets_package_is_named(tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CorpusError, match=r"pip install 'datasets>="):
        all_sequences(DatasetCorpus("a/b"), tiny_llama)


# ---- sampled from the model --------------------------------------------------------------------


def test_draw_follows_the_distribution() -> None:
    logits = torch.tensor([0.1, 0.4, 0.0, 0.5]).log()
    uniform = torch.linspace(0, 1, 10_001)[:-1]
    drawn = draw(logits.expand(len(uniform), -1), uniform)
    share = torch.bincount(drawn, minlength=4) / len(uniform)
    torch.testing.assert_close(share, torch.tensor([0.1, 0.4, 0.0, 0.5]), atol=2e-4, rtol=0)
    assert set(draw(logits.expand(len(uniform), -1), uniform, top_k=2).tolist()) == {1, 3}
    last = draw(torch.zeros(1, 50_000), torch.tensor([1 - 2**-24]))
    assert int(last) == 49_999


def test_sampling_is_the_models_own_distribution(tiny_llama: EditableModel) -> None:
    """Two-token sequences: the share of every second token against the softmax of the logits."""
    n = 6_000
    found = sample_sequences(tiny_llama, range(n), length=2, seed=0, prefix=[], first_tokens=[7])
    logits = tiny_llama.unembed(tiny_llama.final_hidden(tiny_llama.batch([[7]])))[0, 0]
    expected = logits.detach().softmax(-1)
    share = torch.bincount(torch.tensor(found)[:, 1], minlength=len(expected)) / n
    assert float((share - expected).abs().max()) < 4 * float((expected.max() / n).sqrt())


@pytest.mark.parametrize("bos", [False, True])
def test_sampled_sequences_start_as_the_model_expects(tiny: EditableModel, bos: bool) -> None:
    lm = build_tiny("gpt2", bos=True) if bos else tiny
    found = list(SelfSampledCorpus().sequences(lm, length=12, count=70))
    assert {len(ids) for ids in found} == {12}
    firsts = [ids[len(bos_ids(lm))] for ids in found]
    assert len(set(firsts)) > 40
    assert not set(firsts) & set(lm.tokenizer.all_special_ids)
    if bos:
        assert {ids[0] for ids in found} == {0}
        after_end = {b for ids in found for a, b in itertools.pairwise(ids) if a == 1}
        assert after_end <= {0}


def test_a_sequence_depends_on_its_number_alone(tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = SelfSampledCorpus(seed=9)
    whole = list(corpus.sequences(tiny_llama, length=12, count=20))
    monkeypatch.setattr("emendo.statistics.sample.SAMPLE_ROWS", 8)
    grouped = list(corpus.sequences(tiny_llama, length=12, count=20))
    resumed = list(corpus.sequences(tiny_llama, length=12, count=20, start=11))
    assert grouped == whole
    assert resumed == whole[11:]
    assert list(SelfSampledCorpus(seed=8).sequences(tiny_llama, length=12, count=20)) != whole


@pytest.mark.parametrize("bos", [False, True])
def test_openings_are_continued_each_in_its_turn(bos: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build_tiny("gpt2" if bos else "llama", bos=bos)
    openings = [{"text": "Rome is"}, {"text": "The capital of Japan is Tokyo and"}]
    lines = "\n".join(map(json.dumps, [*openings, {"messages": [{"role": "user", "content": "Hello!"}]}]))
    monkeypatch.setattr("emendo.statistics.openings._packaged", lambda: lines)
    starts = [*(lm.encode(opening["text"]) for opening in openings), lm.encode("User: Hello!")]
    assert len(set(map(len, starts))) > 1, "their beginnings differ in length"
    whole = list(OpeningsCorpus(seed=9).sequences(lm, length=24, count=12))
    assert all(len(ids) == 24 for ids in whole)
    for row, ids in enumerate(whole):
        start = starts[row % 3]
        assert ids[: len(start)] == start
    assert len({tuple(ids) for ids in whole}) == 12, "each goes on in its own way"
    monkeypatch.setattr("emendo.statistics.sample.SAMPLE_ROWS", 4)
    assert list(OpeningsCorpus(seed=9).sequences(lm, length=24, count=12, start=5)) == whole[5:]
    assert all(len(ids) == 3 for ids in OpeningsCorpus().sequences(lm, length=3, count=3))


def test_what_follows_an_opening_is_the_models_own_distribution(
    tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emendo.statistics.openings._packaged", lambda: json.dumps({"text": "Rome is"}))
    start, n = tiny_llama.encode("Rome is"), 6_000
    found = list(OpeningsCorpus().sequences(tiny_llama, length=len(start) + 1, count=n))
    logits = tiny_llama.unembed(tiny_llama.final_hidden(tiny_llama.batch([start])))[0, -1]
    expected = logits.detach().softmax(-1)
    share = torch.bincount(torch.tensor(found)[:, -1], minlength=len(expected)) / n
    assert float((share - expected).abs().max()) < 4 * float((expected.max() / n).sqrt())


def test_the_packaged_openings_are_not_what_the_gate_reads() -> None:
    """Edits planned with them are judged by texts that they have not seen."""
    canaries = read_canaries([PACKAGED])
    read = {canary.prompt for canary in canaries.canaries}
    read |= {turn for text in canaries.texts for turn in (text.text, *(content for _, content in text.messages))}
    lines = (resources.files("emendo") / "data" / "openings.jsonl").read_text(encoding="utf-8").splitlines()
    openings = [json.loads(line) for line in lines]
    texts = [text for row in openings for text in (row.get("text"), *_said(row)) if text]
    parts = {part.strip() for text in texts for part in re.split(r"[.!?。！？।؟\n]", text)}
    sentences = [part for part in parts if len(part) > 12]
    assert len(sentences) > 150
    assert [part for part in sentences if any(part in text for text in read)] == []
    assert {text.topic for text in canaries.texts} - {"English", "long context"} <= {row["topic"] for row in openings}


def _said(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row.get("messages", ())]


def test_sampling_leaves_the_model_as_it_was(tiny_llama: EditableModel) -> None:
    tiny_llama.model.train()
    next(SelfSampledCorpus().sequences(tiny_llama, length=8, count=1))
    assert tiny_llama.model.training
    assert all(parameter.requires_grad for parameter in tiny_llama.model.parameters())


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"top_k": 0}, {"temperature": float("nan")}])
def test_sampling_settings_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(CorpusError, match=r"temperature is .* above 0|top_k is 0 .* at least 1"):
        SelfSampledCorpus(**bad)  # type: ignore[arg-type]
