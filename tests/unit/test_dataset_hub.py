"""Datasets by `hf:...`: only pinned ones, read through the library from a local folder, with what was read recorded."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from emendo.datasets import HubSource, load_records, parse_source
from emendo.errors import DatasetError
from emendo.requests import EditRequest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"hf:azhx/counterfact@{COMMIT}", HubSource("azhx/counterfact", COMMIT)),
        (f"hf:squad@{COMMIT}:plain", HubSource("squad", COMMIT, "plain")),
        (f"hf:a/b.c_d-e@{COMMIT}:main:test", HubSource("a/b.c_d-e", COMMIT, "main", "test")),
        (f"hf:a/b@{COMMIT}::test", HubSource("a/b", COMMIT, None, "test")),
        ("hf:./facts", HubSource("./facts", None)),
        ("hf:/data/facts::test", HubSource("/data/facts", None, None, "test")),
        ("hf:~/facts:main", HubSource("~/facts", None, "main")),
    ],
)
def test_the_parts_of_a_source(source: str, expected: HubSource) -> None:
    assert parse_source(source) == expected
    assert expected.is_folder == (expected.revision is None)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("hf:a/b", "names no revision; expected the 40 hexadecimal digits of a commit"),
        ("hf:a/b@", "names no revision"),
        ("hf:a/b@main", "names the revision 'main', which can move"),
        (f"hf:a/b@{COMMIT[:12]}", "names the revision '0123456789ab', which can move"),
        (f"hf:a/b/c@{COMMIT}", "cannot read the data set"),
        (f"hf:a b@{COMMIT}", "cannot read the data set"),
        (f"hf:@{COMMIT}", "cannot read the data set"),
        (f"hf:a/b@{COMMIT}:c:d:e", "cannot read the data set"),
        ("hf:", "cannot read the data set"),
    ],
)
def test_a_source_that_is_not_pinned_is_refused(source: str, reason: str) -> None:
    with pytest.raises(DatasetError, match=reason) as caught:
        parse_source(source)
    assert "hf:OWNER/NAME@COMMIT[:CONFIG[:SPLIT]]" in str(caught.value)


def test_a_folder_of_the_same_name_is_not_taken_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=r"or the folder 'owner/name' here.*hf:\./owner/name"):
        parse_source(f"hf:owner/name@{COMMIT}")


def test_without_the_library_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"needs the package datasets: pip install 'datasets"):
        load_records("hf:./facts")


# ---- through the library -----------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed (emendo[data])")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache" / "downloads")
    return datasets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "{} is in", "subject": "Paris", "target": "Rome", "paraphrase_prompts": ["Where is Paris?"]},
        {"prompt": "no slot", "subject": "Oslo", "target": "Rome", "paraphrase_prompts": None},
        {"prompt": "{} is in", "subject": "Bonn", "target": "Rome", "target_true": "Germany"},
    ]
    path = tmp_path / "facts"
    path.mkdir()
    for split in ("train", "test"):
        text = "\n".join(json.dumps({**row, "id": f"{split} {number}"}) for number, row in enumerate(rows))
        (path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return path


def test_a_local_folder_is_read_through_the_library(library: Any, folder: Path) -> None:
    loaded = load_records(f"hf:{folder}::test")
    assert [record.request for record in loaded.records] == [
        EditRequest("{} is in", "Paris", "Rome", "test 0"),
        EditRequest("{} is in", "Bonn", "Rome", "test 2"),
    ]
    assert (loaded.records[0].paraphrase_prompts, loaded.records[1].target_true) == (("Where is Paris?",), "Germany")
    assert [(entry.line, entry.reason[:23]) for entry in loaded.rejected] == [(2, "prompt must hold exactl")]
    source = loaded.source
    assert (source["container"], source["format"], source["rows"], source["kept"]) == ("datasets", "emendo", 3, 2)
    assert (source["revision"], source["config"], source["split"]) == (None, None, "test")
    assert source["fingerprint"]
    assert len(source["sha256"]) == 64
    assert load_records(f"hf:{folder}::test").source == source
    assert load_records(f"hf:{folder}::train").source["sha256"] != source["sha256"]


def test_the_digest_is_that_of_the_rows_as_json(library: Any, folder: Path) -> None:
    rows = [dict(row) for row in library.load_dataset(str(folder), split="test")]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert load_records(f"hf:{folder}::test").source["sha256"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("value", "found"),
    [(datetime(2024, 5, 17, 12), "a datetime"), (b"\xff", "a bytes"), (math.nan, "a float"), ([{"a": b"x"}], "a list")],
)
def test_a_value_that_json_lacks_is_refused_by_the_name_of_its_field(
    library: Any, tmp_path: Path, value: Any, found: str
) -> None:
    row = {"prompt": "{} is in", "subject": "Paris", "target": "Rome"}
    (tmp_path / "facts").mkdir()
    rows = library.Dataset.from_list([{**row, "checked": value}])
    rows.to_parquet(str(tmp_path / "facts" / "train.parquet"))
    with pytest.raises(DatasetError, match=rf"row 1: field 'checked' holds {found} that JSON lacks"):
        load_records(f"hf:{tmp_path / 'facts'}")


def test_an_unnamed_or_unknown_split_is_an_error_that_lists_them(library: Any, folder: Path) -> None:
    with pytest.raises(DatasetError, match="no split is named; its splits are train, test: add ::SPLIT"):
        load_records(f"hf:{folder}")
    with pytest.raises(DatasetError, match="there is no split 'dev'; its splits are train, test"):
        load_records(f"hf:{folder}::dev")
    (folder / "test.jsonl").unlink()
    assert load_records(f"hf:{folder}").source["split"] == "train"


def test_a_changed_folder_is_read_anew(library: Any, folder: Path) -> None:
    before = load_records(f"hf:{folder}::test")
    path = folder / "test.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("Rome", "Milan"), encoding="utf-8")
    after = load_records(f"hf:{folder}::test")
    assert {record.request.target for record in after.records} == {"Milan"}
    assert after.source["sha256"] != before.source["sha256"]


def test_a_folder_without_data_says_what_is_expected(library: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="Expected a folder with"):
        load_records(f"hf:{tmp_path / 'empty'}")
    with pytest.raises(DatasetError, match="Expected a folder with"):
        load_records(f"hf:{tmp_path / 'missing'}")


def test_another_commit_from_the_cache_is_refused(library: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline the library opens whatever commit it has; here a folder stands in for that cache."""
    real = library.load_dataset_builder

    def cached(path: str, name: str | None, revision: str) -> Any:
        builder = real(str(folder), name)
        builder.hash = "f" * 40
        return builder

    monkeypatch.setattr(library, "load_dataset_builder", cached)
    with pytest.raises(DatasetError, match=f"the library opened '{'f' * 40}' from its cache.*unset HF_HUB_OFFLINE"):
        load_records(f"hf:owner/name@{COMMIT}::test")
    loaded = load_records(f"hf:owner/name@{'f' * 40}::test")
    assert (loaded.source["revision"], len(loaded.records)) == ("f" * 40, 2)


def test_a_dataset_that_cannot_be_reached_is_one_error(library: Any) -> None:
    with pytest.raises(DatasetError, match=r"cannot open the dataset .*Check id, commit, configuration and network"):
        load_records(f"hf:emendo-test/none@{COMMIT}")
