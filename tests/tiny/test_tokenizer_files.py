"""Folders whose tokenizer is SentencePiece's or tiktoken's own file: read as those read it, or refused in words."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from emendo.editing.session import EditSession
from emendo.errors import EmendoWarning, ModelNotFoundError
from emendo.export import write_checkpoint
from emendo.io.extras import pip_install
from emendo.models import EditableModel, load, tokenizer_files
from tests.conftest import TRAINING_TEXT, build_tiny
from tests.quick_plans import EIFFEL, quick_plan

TEXTS = [*TRAINING_TEXT, "a,b;c  d", "x=1\n\ty", "😀 ß", "Danielle"]

CLASS = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}


def trained(kind: str) -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT),
        model_writer=out,
        model_type=kind,
        vocab_size=395,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return out.getvalue()


def ranks(words: Iterable[str]) -> bytes:
    """A tiktoken file: the bytes, and some words."""
    tokens = [bytes([value]) for value in range(256)] + [word.encode() for word in words]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def folder(at: Path, content: bytes, file: str = "tokenizer.model", **settings: Any) -> Path:
    build_tiny("llama").model.save_pretrained(at)
    (at / file).write_bytes(content)
    if settings:
        (at / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return at


def quiet(at: Path) -> EditableModel:
    """A model whose note about the first token is looked at by another test."""
    with pytest.warns(EmendoWarning, match="add_bos_token"):
        return load(at, device="cpu")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_file_alone_is_read_as_sentencepiece_reads_it(tmp_path: Path, kind: str) -> None:
    import sentencepiece

    content = trained(kind)
    lm = quiet(folder(tmp_path / "model", content))
    original = sentencepiece.SentencePieceProcessor(model_proto=content)
    for text in TEXTS:
        assert lm.encode_bare(text) == original.encode(text), text
        assert lm.decode(lm.encode_bare(text)) == text


def test_a_model_with_such_a_file_is_edited_and_saved(tmp_path: Path) -> None:
    lm = quiet(folder(tmp_path / "model", trained("bpe")))
    plan = quick_plan(EditSession(lm), [EIFFEL])
    write_checkpoint(lm, [plan.update], tmp_path / "out")
    saved = load(tmp_path / "out", device="cpu")  # it has a tokenizer.json, and nothing is left to be noted
    assert saved.encode("The Eiffel Tower") == lm.encode("The Eiffel Tower")


def test_what_is_noted_about_the_first_token_can_be_said(tmp_path: Path) -> None:
    at = folder(tmp_path / "model", trained("bpe"))
    with pytest.warns(EmendoWarning) as noted:
        plain = load(at, device="cpu").encode("The Eiffel Tower")
    advice = re.search(r"write (\{.*\}) into its tokenizer_config\.json", str(noted[0].message))
    assert advice
    (at / "tokenizer_config.json").write_text(advice[1], encoding="utf-8")
    assert load(at, device="cpu").encode("The Eiffel Tower") == [1, *plain]


def test_a_class_that_reads_the_file_otherwise_is_refused(tmp_path: Path) -> None:
    at = folder(tmp_path / "model", trained("unigram"), **CLASS)
    with pytest.raises(ModelNotFoundError, match=r"LlamaTokenizer .* splits .* SentencePiece into ▁The") as refused:
        load(at, device="cpu")
    advice = re.search(r"write (\{.*\}) into its tokenizer_config\.json", str(refused.value))
    assert advice
    (at / "tokenizer_config.json").write_text(json.dumps({**CLASS, **json.loads(advice[1])}), encoding="utf-8")
    assert load(at, device="cpu").encode("The Eiffel Tower")


def test_a_class_that_reads_the_file_as_it_is(tmp_path: Path) -> None:
    named = load(folder(tmp_path / "model", trained("bpe"), **CLASS), device="cpu")
    alone = quiet(folder(tmp_path / "alone", trained("bpe")))
    assert [named.encode(text) for text in TEXTS] == [alone.encode(text) for text in TEXTS]


def test_a_tiktoken_file_is_read_anew_each_time(tmp_path: Path) -> None:
    """tiktoken would give what was at the same path before."""
    pytest.importorskip("tiktoken")
    at = folder(tmp_path / "model", ranks(["Ro", "Rome"]))
    assert load(at, device="cpu").encode("Rome") == [257]
    (at / "tokenizer.model").write_bytes(ranks(["Ro", "Rom"]))
    assert load(at, device="cpu").encode("Rome") == [257, ord("e")]


@pytest.mark.parametrize(
    ("content", "missing"), [(b"\n\x05\n\x03<s>", "sentencepiece"), (b"\n", "protobuf"), (ranks(["Ro"]), "tiktoken")]
)
def test_a_missing_package_is_named_before_the_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, missing: str
) -> None:
    at = folder(tmp_path / "model", content)
    module = {"protobuf": "google.protobuf"}.get(missing, missing)
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else object() or there(name))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ModelNotFoundError, match=re.escape(f"needs {missing}: {pip_install('sentencepiece')}")):
        load(at, device="cpu")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\n\xff" * 50, b"Um8= x\n"])
def test_a_damaged_file_is_one_message(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("sentencepiece")
    with pytest.raises(ModelNotFoundError, match="cannot load"):
        load(folder(tmp_path / "model", content), device="cpu")


def test_a_file_beside_a_tokenizer_json_is_not_read(tmp_path: Path) -> None:
    lm = build_tiny("llama")
    at = folder(tmp_path / "model", b"damaged")
    lm.tokenizer.save_pretrained(at)
    assert tokenizer_files.own_file(at) is None
    assert load(at, device="cpu").tokenizer_digest() == lm.tokenizer_digest()
