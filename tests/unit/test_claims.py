"""Claims in a shared folder: one owner, taken over when dead or silent, never by two."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from emendo.errors import ClaimLostError, OutputError
from emendo.parallel import Claims
from emendo.parallel.claims import here


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".claims").iterdir())


def leave(folder: Path, name: str, **owner: Any) -> None:
    """A claim as somebody else's process has left it."""
    (folder / ".claims").mkdir(exist_ok=True)
    (folder / ".claims" / f"{name}.0").write_text(json.dumps({**here(), "token": "theirs", "beat": 0, **owner}))


def test_a_claim_has_one_owner_until_it_is_given_back(tmp_path: Path) -> None:
    mine, other = Claims(tmp_path), Claims(tmp_path)
    claim = mine.take("cell-1")
    assert claim is not None
    assert other.take("cell-1") is None
    assert other.take("cell-2") is not None
    claim.release()
    again = other.take("cell-1")
    assert again is not None
    claim.release()  # a second time: the name is somebody else's now
    again.check()
    assert files(tmp_path) == ["cell-1.0", "cell-2.0"]


def test_a_name_may_end_like_a_generation(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    first = claims.take("layer.1")
    assert first is not None
    assert claims.take("layer") is not None
    first.check()


def test_a_dead_process_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=print)
    process.start()
    process.join()
    leave(tmp_path, "cell", pid=process.pid)
    claim = Claims(tmp_path).take("cell")
    assert claim is not None
    assert claim.generation == 1
    claim.release()
    assert files(tmp_path) == []


def test_a_number_that_another_process_has_now_is_no_life(tmp_path: Path) -> None:
    leave(tmp_path, "cell", pid=os.getpid(), began="1")
    assert Claims(tmp_path).take("cell") is not None


def test_another_machine_is_waited_for_until_its_claim_is_silent(tmp_path: Path) -> None:
    leave(tmp_path, "cell", machine="another boot", pid=1)
    claims = Claims(tmp_path, stale=0.3)
    assert claims.take("cell") is None
    path = tmp_path / ".claims" / "cell.0"
    for beat in range(4):  # renewed: alive, however old
        time.sleep(0.1)
        path.write_text(json.dumps({**json.loads(path.read_text()), "beat": beat + 1}))
        assert claims.take("cell") is None
    time.sleep(0.4)
    assert claims.take("cell") is not None


def test_an_owner_that_stood_still_sees_that_it_lost(tmp_path: Path) -> None:
    sleeper = Claims(tmp_path, renew=100)
    claim = sleeper.take("cell")
    assert claim is not None
    watcher = Claims(tmp_path, stale=0.05)
    assert watcher.take("cell") is None
    time.sleep(0.1)
    taken = watcher.take("cell")
    assert taken is not None
    with pytest.raises(ClaimLostError, match="taken over"):
        claim.check()
    claim.renewed()
    claim.release()  # takes nothing from the new owner
    taken.check()
    taken.release()
    third = Claims(tmp_path).take("cell")
    assert third is not None
    assert third.generation == 0  # the old owner's very file name
    claim.renewed()
    third.check()
    with pytest.raises(ClaimLostError):
        claim.check()


def test_claims_are_renewed_while_they_are_held(tmp_path: Path) -> None:
    claim = Claims(tmp_path, renew=0.05).take("cell")
    assert claim is not None
    before = claim.path.read_bytes()
    time.sleep(0.3)
    assert claim.path.read_bytes() != before
    claim.check()


def test_of_many_who_see_a_stale_claim_one_gets_it(tmp_path: Path) -> None:
    for round_ in range(20):
        leave(tmp_path, f"cell-{round_}", began="1")
        got: list[Any] = []
        start = threading.Barrier(8)

        def take(name: str, got: list[Any] = got, start: threading.Barrier = start) -> None:
            claims = Claims(tmp_path)
            start.wait()
            if (claim := claims.take(name)) is not None:
                got.append(claim)

        threads = [threading.Thread(target=take, args=(f"cell-{round_}",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got[0].check()


def test_holding_waits(tmp_path: Path) -> None:
    first = Claims(tmp_path).take("cell")
    assert first is not None
    threading.Timer(0.2, first.release).start()
    waited: list[bool] = []
    with Claims(tmp_path, stale=0.4).hold("cell", lambda: waited.append(True)) as claim:
        claim.check()
    assert waited
    assert files(tmp_path) == []


def test_what_the_dead_left_is_swept(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    leave(tmp_path, "done")
    leave(tmp_path, "member-x-1", began="1")
    leave(tmp_path, "open")
    claims.sweep(lambda name: name == "done")
    assert files(tmp_path) == ["open.0"]
    claims.sweep(lambda name: True)
    assert not (tmp_path / ".claims").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose a writable folder"):
        Claims(tmp_path / "file").take("cell")
