"""How an update names the state that it was planned on, in files of this version and of those before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emendo.errors import BaseMismatchError, ConflictError, InputError
from emendo.io.tensor_file import read_tensor_file, write_tensor_file
from emendo.updates.contents import FORMAT
from emendo.updates.merge import merge, survival
from emendo.updates.predecessors import Predecessors
from emendo.updates.stored import StoredUpdate
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.ledger_world import fact, planned

IDS = st.lists(st.text(max_size=70), max_size=5)


@given(IDS, IDS)
def test_two_states_are_equal_only_if_they_hold_the_same_in_the_same_order(one: list[str], two: list[str]) -> None:
    assert (Predecessors.of(one) == Predecessors.of(two)) == (one == two)
    assert len(Predecessors.of(one)) == len(one)


@given(IDS)
def test_what_a_header_says_is_what_was_written(ids: list[str]) -> None:
    for found in (Predecessors.of(ids), Predecessors.from_header(ids)):
        again = Predecessors.from_header(json.loads(json.dumps(found.header)))
        assert again == found == Predecessors.of(ids)
        assert (again.listed, again.identity) == (found.listed, found.identity)


def sequence(count: int) -> list[ModelUpdate]:
    updates: list[ModelUpdate] = []
    for number in range(count):
        updates.append(planned([fact(number)], updates))
    return updates


def as_before(updates: list[ModelUpdate], folder: Path) -> list[ModelUpdate]:
    """The same sequence as an Emendo before file version 4 wrote it: each names all before it."""
    found: list[ModelUpdate] = []
    for update in updates:
        path = update.save(folder / "update")
        tensors, header = read_tensor_file(path, FORMAT)
        header["preceding"] = [one.id for one in found]
        write_tensor_file(path, replace(FORMAT, version=2), tensors, header)
        found.append(ModelUpdate.load(path))
    return found


def id_of_version_2(update: ModelUpdate) -> str:
    """The identity as versions 1 to 3 have it, written out."""
    digest = hashlib.sha256(update.base["weights_sha256"].encode())
    digest.update(json.dumps(update.preceding.listed).encode())
    for part in update.layers:
        digest.update(f"{part.layer}|{part.module}|".encode())
        for tensor in part.tensors.values():
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def version_of(path: Path) -> str:
    size = int.from_bytes(path.read_bytes()[:8], "little")
    found: dict[str, Any] = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    return str(found["version"])


def test_a_file_is_no_longer_after_many_others_and_older_programs_read_the_first(tmp_path: Path) -> None:
    updates = sequence(30)
    paths = [update.save(tmp_path / str(at)) for at, update in enumerate(updates)]
    assert [version_of(path) for path in paths] == ["2"] + ["4"] * 29
    assert updates[0].id == id_of_version_2(updates[0])
    assert len({path.stat().st_size for path in paths[11:30]}) == 1, "the count of predecessors is all that differs"
    for path, update in zip(paths, updates, strict=True):
        assert ModelUpdate.load(path).id == StoredUpdate.load(path).id == update.id
        assert ModelUpdate.load(path).preceding == StoredUpdate.load(path).preceding == update.preceding


def test_files_that_name_all_keep_their_identity_and_mix_with_those_that_do_not(tmp_path: Path) -> None:
    old = as_before(sequence(4), tmp_path)
    assert [len(update.preceding.listed) for update in old] == [0, 1, 2, 3]
    for update in old:
        path = update.save(tmp_path / "again")
        assert version_of(path) == "2"
        assert ModelUpdate.load(path).id == StoredUpdate.load(path).id == update.id == id_of_version_2(update)
    new = planned([fact(4)], old)
    assert new.preceding == Predecessors.of(update.id for update in old)
    last = planned([fact(5)], [*old, new])
    for updates in ([*old, new, last], [last, *old, new]):
        merged = merge(updates)
        assert not merged.preceding
        assert merge([update for update in updates if update is not old[0]]).preceding == Predecessors.of([old[0].id])
    # What was summed stands for its parts, whichever version the one after it is of.
    assert not merge([merge(old[:2]), *old[2:], new]).preceding
    assert not merge([merge([merge(old[:2]), old[2]]), old[3]]).preceding
    assert not merge([merge([*old, new]), last]).preceding
    with pytest.raises(BaseMismatchError, match=r"on 4 updates \(last .*give those too"):
        merge([*old[:3], new])


def test_what_knows_what_follows_the_branches() -> None:
    """Two edits on one state: each knows the stem, neither the other."""
    stem = sequence(2)
    left, right = planned([fact(7)], stem), planned([fact(8)], stem)
    top = planned([fact(9)], [*stem, left])
    for order in ([*stem, left, right, top], [top, right, left, *reversed(stem)]):
        rows = {row["id"]: row for row in merge(order).info["merged"]}
        assert [rows[one.id]["on_parts"] for one in (*stem, left, right, top)] == [0, 1, 2, 2, 3]
    parts = [*stem, left, right, top]
    unknown = {2: [right, top], 3: [left, top], 4: [right]}  # left does not know what came after it
    for at, others in unknown.items():
        for found, own in zip(survival(parts, at), parts[at].layers, strict=True):
            assert own.keys is not None
            alone = own.at(own.keys)
            total = alone + sum(
                layer.at(own.keys) for one in others for layer in one.layers if layer.layer == own.layer
            )
            share = (total * alone).sum(1) / alone.square().sum(1)
            torch.testing.assert_close(torch.tensor(found.shares, dtype=share.dtype), share, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConflictError, match="contradicting"):
        merge([*stem, left, planned([fact(7, "Oslo")], stem)])
    merge([*stem, left, planned([fact(7, "Oslo")], [*stem, left])])  # it knows what it replaces


@pytest.mark.parametrize("listed", [False, True])
def test_parts_that_are_said_to_stand_on_each_other_are_refused(listed: bool) -> None:
    """A file can say anything; what is walked must end."""
    part = LayerUpdate(1, "m", torch.ones(1, 2), torch.ones(1, 3))
    base = {"name": "m", "weights_sha256": "a" * 64}
    named = [Predecessors.from_header([id]) if listed else Predecessors.of([id]) for id in ("x", "y")]
    one, two = (
        ModelUpdate((replace(part, layer=at),), base, named[at], {"merged": [row(inside, named[1 - at])]})
        for at, inside in enumerate(("y", "x"))
    )
    with pytest.raises(InputError, match="planned on one another"):
        merge([one, two])
    alone = replace(one, info={"merged": [row("z", named[0])]})
    assert merge([alone]) is alone
    other = ModelUpdate((part,), base)
    with pytest.raises(InputError, match="planned on one another" if not listed else "give those too"):
        merge([alone, other])


def row(id: str, end: Predecessors) -> dict[str, Any]:
    return {"id": id, "parts": [], "ends": [end.chain]}


def test_ends_of_any_kind_are_refused_or_lead_nowhere() -> None:
    first, second = sequence(2)
    for ends in ([[1]], {"a": 1}, 7):
        summed = replace(first, info={**first.info, "merged": [{"id": "x", "parts": [], "ends": ends}]})
        later = replace(second, preceding=Predecessors.of([summed.id]))
        if ends == 7:
            with pytest.raises(InputError, match="cannot be read"):
                merge([summed, later])
        else:
            assert not merge([summed, later]).preceding
