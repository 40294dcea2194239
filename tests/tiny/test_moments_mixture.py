"""Mixtures of corpora: what a source says, the weighted sum, and that parts are collected once and on their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.editing.session import EditSession
from emendo.errors import CorpusError, MomentsError
from emendo.models import EditableModel
from emendo.statistics import MixturePart, MomentStore, obtain_for_method, parse_mixture
from tests.conftest import TRAINING_TEXT, build_tiny
from tests.naive_loop import Naive, apart, close
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, planned
from tests.reference import memit_delta

LAYERS = [0, 2]


@dataclass(frozen=True)
class Settings:
    source: str
    multiple: float = 2.5
    exclude_first: bool = False


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{line} {n}."}) for n in range(12) for line in TRAINING_TEXT))
    return str(path)


@pytest.fixture
def book(tmp_path: Path) -> str:
    path = tmp_path / "book.txt"
    path.write_text(" ".join(reversed(TRAINING_TEXT)) * 10, encoding="utf-8")
    return str(path)


@pytest.fixture
def store(tmp_path: Path) -> MomentStore:
    return MomentStore(tmp_path / "store")


def obtain(
    source: str, store: MomentStore, lm: EditableModel | None = None, layers: Sequence[int] = LAYERS, **more: Any
) -> tuple[dict[int, torch.Tensor], dict[str, Any]]:
    return obtain_for_method(lm or build_tiny("llama"), layers, Settings(source, **more), seed=3, store=store)


# ---- what a source says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("self", [("self", 1.0)]),
        ("hf:org/name:20231101.en", [("hf:org/name:20231101.en", 1.0)]),
        ("/a b/wiki-2.txt", [("/a b/wiki-2.txt", 1.0)]),
        ("4*self", [("self", 1.0)]),
        ("self+wiki.jsonl", [("self", 0.5), ("wiki.jsonl", 0.5)]),
        ("0.7*self+0.3*wiki.jsonl", [("self", 0.7), ("wiki.jsonl", 0.3)]),
        (" 7 * self + 3 * wiki.jsonl ", [("self", 0.7), ("wiki.jsonl", 0.3)]),
        ("1*self+1e0*a.txt+2*b.txt", [("self", 0.25), ("a.txt", 0.25), ("b.txt", 0.5)]),
    ],
)
def test_a_source_is_read_as_parts_whose_weights_sum_to_one(source: str, parts: list[tuple[str, float]]) -> None:
    assert parse_mixture(source) == tuple(MixturePart(*part) for part in parts)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("self+", "a part names no corpus"),
        ("+self", "a part names no corpus"),
        ("", "a part names no corpus"),
        ("0.5*+0.5*self", "a part names no corpus"),
        ("0.7*self+wiki.jsonl", r"'wiki\.jsonl' has no weight and others do"),
        ("x*self+1*wiki.jsonl", "'x' is not a weight"),
        ("*self", "'' is not a weight"),
        ("self*0.7+wiki.jsonl*0.3", "'self' is not a weight"),
        ("2*3*self", "more than one"),
        ("0*self+1*a.txt", "the weight of 'self' is 0; expected a finite number above 0"),
        ("-1*self+2*a.txt", "expected a finite number above 0"),
        ("nan*self", "expected a finite number above 0"),
        ("inf*self", "expected a finite number above 0"),
        ("self+self", "'self' is named twice"),
        ("1*self+2*self", "'self' is named twice"),
    ],
)
def test_a_source_that_cannot_be_read_says_why(source: str, why: str) -> None:
    with pytest.raises(CorpusError, match=why) as caught:
        parse_mixture(source)
    assert "0.7*self+0.3*wiki.jsonl" in str(caught.value)
    assert "--set moments.source" in str(caught.value)


def test_a_file_with_a_plus_in_its_name_is_no_source_and_told_so(
    store: MomentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("c++.txt", "self+notes.txt", "2*3*x.txt"):
        Path(name).write_text("text " * 500)
        with pytest.raises(CorpusError, match=r"There is a file.*rename it, or make a link"):
            obtain(name, store)
    with pytest.raises(CorpusError) as caught:
        obtain("self+elsewhere.txt", store)
    assert "no text file at elsewhere.txt" in str(caught.value)
    assert "a part of the mixture 'self+elsewhere.txt'" in str(caught.value)
    assert "There is a file" not in str(caught.value)
    assert store.entries() == [], "nothing is collected before all parts are known to exist"


def test_a_single_source_reports_what_it_always_did(store: MomentStore) -> None:
    with pytest.raises(CorpusError) as caught:
        obtain("wiki", store)
    assert str(caught.value).startswith("unknown source of text 'wiki'")
    assert "mixture" not in str(caught.value)


# ---- the weighted sum --------------------------------------------------------------------------


def test_a_mixture_is_the_weighted_sum_of_what_its_parts_are_alone(store: MomentStore, text: str, book: str) -> None:
    alone = {source: obtain(source, store) for source in ("self", text, book)}
    means, record = obtain(f"5*self+3*{text}+2*{book}", store)
    assert list(means) == LAYERS
    for layer, mean in means.items():
        expected = sum(w * alone[source][0][layer] for source, w in (("self", 0.5), (text, 0.3), (book, 0.2)))
        assert mean.dtype == torch.float64
        torch.testing.assert_close(mean, expected, rtol=1e-13, atol=1e-15)
    assert record["tokens"] == alone["self"][1]["tokens"] == 120, "of each part, not of all together"


def test_the_record_names_all_parts(store: MomentStore, text: str) -> None:
    source = f"0.7*self+0.3*{text}"
    _, record = obtain(source, store)
    assert json.loads(json.dumps(record)) == record
    assert record["source"] == source
    assert record["corpus"]["kind"] == "mixture"
    parts = {part["source"]: part for part in record["corpus"]["parts"]}
    assert {name: part["weight"] for name, part in parts.items()} == {"self": 0.7, text: 0.3}
    for name, part in parts.items():
        alone = obtain(name, store)[1]
        assert part["fingerprint"] == alone["fingerprint"]
        assert part["corpus"] == alone["corpus"]
        assert {key: record[key] for key in ("weights", "tokenizer", "dtype", "tokens", "length")} == {
            key: alone[key] for key in ("weights", "tokenizer", "dtype", "tokens", "length")
        }


def test_the_fingerprint_identifies_the_mixture(store: MomentStore, text: str, book: str, tmp_path: Path) -> None:
    def fingerprint(source: str, **more: Any) -> str:
        return obtain(source, store, **more)[1]["fingerprint"]

    base = fingerprint(f"0.7*self+0.3*{text}")
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(Path(text).read_bytes())
    same = {f"0.3*{text}+0.7*self", f"7*self+3*{text}", f"0.7*self+0.3*{copy}"}
    assert {fingerprint(source) for source in same} == {base}
    others = [f"0.6*self+0.4*{text}", f"0.3*self+0.7*{text}", f"0.7*self+0.3*{book}", f"self+{text}", "self", text]
    found = [fingerprint(source) for source in others]
    found += [fingerprint(f"0.7*self+0.3*{text}", multiple=3), fingerprint(f"0.7*self+0.3*{text}", exclude_first=True)]
    assert len({base, *found}) == 1 + len(found)


def test_the_order_of_the_parts_changes_no_bit(store: MomentStore, text: str, book: str) -> None:
    first = obtain(f"0.5*self+0.3*{text}+0.2*{book}", store)[0]
    second = obtain(f"0.2*{book}+0.5*self+0.3*{text}", store)[0]
    assert all(torch.equal(first[layer], second[layer]) for layer in LAYERS)


def test_one_part_is_that_corpus(store: MomentStore) -> None:
    alone, weighted = obtain("self", store), obtain("3*self", store)
    assert all(torch.equal(alone[0][layer], weighted[0][layer]) for layer in LAYERS)
    assert weighted[1] == {**alone[1], "source": "3*self"}


def test_two_names_of_one_text_are_refused_before_anything_is_collected(
    store: MomentStore, text: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(Path(text).read_bytes())
    with pytest.raises(CorpusError, match=r"hold the same text.*sum of their weights"):
        obtain(f"{text}+{copy}", store)
    assert store.entries() == []


# ---- parts are collected once ------------------------------------------------------------------


def test_stored_parts_are_never_collected_again(
    store: MomentStore, text: str, book: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = build_tiny("llama")
    obtain("self", store, lm)
    passes: list[list[int]] = []
    run = lm.run
    monkeypatch.setattr(lm, "run", lambda batch, keys, **kw: passes.append(list(keys)) or run(batch, keys=keys, **kw))
    obtain(f"0.9*self+0.1*{text}", store, lm)
    assert passes == [LAYERS], "one pass for the text, none for the sampled part"
    passes.clear()
    obtain(f"0.1*self+0.9*{text}", store, lm)
    obtain(text, store, lm)
    assert passes == []
    obtain(f"self+{text}", store, lm, layers=[0, 1])
    assert set(map(tuple, passes)) == {(1,)}, "only the layer that is new, for each part"
    assert len(store.entries()) == 6


def test_an_edited_model_may_mix_what_is_stored_but_collects_nothing(store: MomentStore, text: str, book: str) -> None:
    lm = build_tiny("llama")
    expected = obtain(f"self+{text}", store, lm)[0]
    with lm.edited({3: lm.weight(3) * 2}):
        found = obtain(f"self+{text}", store, lm)[0]
        assert all(torch.equal(found[layer], expected[layer]) for layer in LAYERS)
        with pytest.raises(MomentsError, match="rollback"):
            obtain(f"self+{book}", store, lm)


# ---- through a session -------------------------------------------------------------------------


def test_an_edit_is_priced_in_the_mixture(store: MomentStore, text: str, book: str) -> None:
    """Its update is the formula's with Σ wᵢ Cᵢ of the unedited model, also on top of an edit."""
    source, lm = f"2*self+5*{text}+3*{book}", build_tiny("llama", dtype=torch.float64)
    alone = [obtain_for_method(lm, [1], Settings(name, multiple=4), store=store)[0][1] for name in (text, book)]
    own = obtain_for_method(lm, [1], Settings("self", multiple=4), store=store)[0][1]
    mixed = 0.2 * own + 0.5 * alone[0] + 0.3 * alone[1]
    session = EditSession(lm, store=store)
    for requests in ([EIFFEL], [DARRIEUX, JAPAN]):
        plan = planned(session, store, requests, "memit", [1], moments__source=source, preservation__weight=2.0)
        (part,) = plan.update.layers
        K = Naive(lm, plan.contexts).mean_keys(requests, 1)
        R = part.residuals.double().T
        close(part.delta(), memit_delta(K, R, mixed, lam=2.0))
        for other in (own, *alone):
            assert apart(memit_delta(K, R, other, lam=2.0), part.delta()) > 1e-2
        recorded = plan.update.info["moments"]["corpus"]["parts"]
        assert {row["source"]: row["weight"] for row in recorded} == {"self": 0.2, text: 0.5, book: 0.3}
        session.apply(plan.update)
