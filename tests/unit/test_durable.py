"""Files and folders that outlast a power cut: bytes first, then the name, then the folder that holds it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.errors import InputError
from emendo.experiments.files import append_lines
from emendo.io.durable import flush
from emendo.io.tensor_file import TensorFileFormat, write_tensor_file
from emendo.io.whole_file import write_bytes
from emendo.io.whole_folder import whole_folder


def tensor_file(path: Path) -> None:
    write_tensor_file(path, TensorFileFormat("emendo.test", 1, InputError, "again"), {"a": torch.ones(3)}, {})


def small_file(path: Path) -> None:
    write_bytes(path, b"content")


def folder(path: Path) -> None:
    with whole_folder(path) as draft:
        (draft / "file").write_bytes(b"content")


WRITERS: list[Callable[[Path], None]] = [tensor_file, small_file, folder]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every synchronisation and renaming, in order, with the path that it is of."""
    made: list[tuple[str, str]] = []
    fsync = os.fsync

    def noted_fsync(handle: int) -> None:
        made.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def noted(name: str) -> None:
        call = getattr(os, name)

        def rename(source: Any, target: Any) -> None:
            assert ("fsync", str(source)) in made, "bytes first"
            made.append(("rename", str(target)))
            call(source, target)

        monkeypatch.setattr(os, name, rename)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    noted("replace")
    noted("rename")
    return made


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the paths of open files are read from /proc")
class TestSteps:
    @pytest.mark.parametrize("write", WRITERS)
    def test_a_name_is_on_the_disk_when_the_writer_returns(
        self, write: Callable[[Path], None], tmp_path: Path, steps: list[tuple[str, str]]
    ) -> None:
        write(tmp_path / "name")
        at = steps.index(("rename", str(tmp_path / "name")))
        assert ("fsync", str(tmp_path)) in steps[at:]

    @pytest.mark.parametrize("write", WRITERS)
    def test_so_are_the_names_of_the_folders_made_for_it(
        self, write: Callable[[Path], None], tmp_path: Path, steps: list[tuple[str, str]]
    ) -> None:
        write(tmp_path / "a" / "b" / "name")
        synced = {path for step, path in steps if step == "fsync"}
        assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")} <= synced

    def test_and_the_name_of_a_journal_that_begins(self, tmp_path: Path, steps: list[tuple[str, str]]) -> None:
        append_lines(tmp_path / "cell" / "journal", [1])
        assert [path for _, path in steps][-2:] == [str(tmp_path / "cell" / "journal"), str(tmp_path / "cell")]
        assert ("fsync", str(tmp_path)) in steps
        steps.clear()
        append_lines(tmp_path / "cell" / "journal", [2])
        assert steps == [("fsync", str(tmp_path / "cell" / "journal"))]


@pytest.mark.parametrize("write", WRITERS)
def test_new_files_have_the_permissions_of_any_new_file(write: Callable[[Path], None], tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "name")
    finally:
        os.umask(old)
    assert (tmp_path / "name").stat().st_mode & 0o777 == (0o750 if write is folder else 0o640)


def test_a_file_system_without_fsync_of_folders_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(handle: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(os, "fsync", refuses)
    flush(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        flush(tmp_path / "file")
