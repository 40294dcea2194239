"""Files of facts: JSON lists, JSON lines and CSV, whatever their line ends, marks and damage."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emendo.datasets import LoadedRecords, Rejected, count_reasons, load_records, loading, split_rows
from emendo.errors import DatasetError, InputError
from emendo.requests import EditRecord, EditRequest, Probe

ROW = {"prompt": "{} is in", "subject": "Paris", "target": "Rome"}


def row(**changes: Any) -> dict[str, Any]:
    return {**ROW, **changes}


def load(folder: Path, data: str | bytes, format: str = "auto") -> LoadedRecords:
    path = folder / "facts"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return load_records(path, format=format)


def subjects(loaded: LoadedRecords) -> list[str]:
    return [record.request.subject for record in loaded.records]


# ---- the account -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_bad_lines_are_reported_counted_and_stop_nothing(tmp_path: Path, end: str, mark: bytes) -> None:
    lines = [
        json.dumps(ROW),
        "{",
        "",
        json.dumps(row(prompt="no slot")),
        "[1]",
        json.dumps(row(prompt="also none")),
        '{"prompt": "{} a", "prompt": "{} b", "subject": "s", "target": "t"}',
        json.dumps(row(subject="Oslo\u2028\x85", target="é"), ensure_ascii=False),
    ]
    data = mark + end.join(lines).encode()
    loaded = load(tmp_path, data)
    assert subjects(loaded) == ["Paris", "Oslo\u2028\x85"]
    assert [entry.line for entry in loaded.rejected] == [2, 4, 5, 6, 7]
    assert loaded.rejected[1].reason == "prompt must hold exactly one {} for the subject, found 0: 'no slot'"
    assert loaded.source == {
        "source": str(tmp_path / "facts"),
        "container": "jsonl",
        "sha256": hashlib.sha256(data).hexdigest(),
        "format": "emendo",
        "rows": 7,
        "kept": 2,
        "records": 2,
        "rejected": {
            "prompt must hold exactly one {} for the subject": 2,
            "not JSON": 1,
            "expected a JSON object": 1,
            "field 'prompt' is given more than once": 1,
        },
        "dropped": {},
    }


def test_equal_reasons_are_counted_together_whatever_they_quote() -> None:
    reasons = [
        "not JSON: a at column 2",
        "not JSON: b",
        "x must be text, found 3; y is missing",
        "x must be text, found 4",
    ]
    assert count_reasons(Rejected(1, reason) for reason in reasons) == {"not JSON": 2, "x must be text": 2}


# ---- JSON lists --------------------------------------------------------------------------------------------


def test_a_json_list_knows_its_lines(tmp_path: Path) -> None:
    text = (
        '\n [\n  {"prompt": "{} is in",\n   "subject": "Paris", "target": "Rome"},\n\n  3,\r\n'
        '  {"prompt": "{} a", "prompt": "{} b", "subject": "s", "target": "t"},\n'
        '  {"prompt": "{} is in", "subject": "Oslo", "target": "Rome"}\n]\n'
    )
    loaded = load(tmp_path, text)
    assert subjects(loaded) == ["Paris", "Oslo"]
    assert loaded.rejected == (
        Rejected(6, "expected a JSON object, found int"),
        Rejected(7, "field 'prompt' is given more than once"),
    )
    assert (loaded.source["container"], loaded.source["rows"]) == ("json", 4)


def test_line_ends_do_not_change_a_json_list(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        rows = list(split_rows(end.join(["[", '{"a": 1},', "", '{"a": 2}', "]"]), "f")[1])
        assert [(r.line, r.value) for r in rows] == [(2, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"a": 1}', "line 1, after 1 row.s.: expected a comma or ]"),
        ('[{"a": 1} {"a": 2}]', "after 1 row.s.: expected a comma or ], found '{"),
        ('[{"a": 1},\n{"a": ', "line 2, after 1 row.s."),
        ("[", "line 1, after 0 row.s."),
        ('[{"a": 1}]\n{"a": 2}', "text after its end"),
        ("[" * 100_000, "line 1, after 0 row.s."),
        ("[" + "1" * 5000 + "]", "line 1, after 0 row.s."),
    ],
)
def test_a_list_that_breaks_off_is_an_error_with_its_place(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DatasetError, match=f"its JSON list breaks off at .*{reason}"):
        load(tmp_path, text)


def test_an_empty_list_has_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no row"):
        load(tmp_path, " [ ] ")


# ---- CSV ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv(tmp_path: Path, end: str) -> None:
    lines = [
        "",
        "id, prompt,subject,target,target_true,paraphrase_prompts,neighborhood_prompts,probes",
        'a,{} is in,Paris,Rome,France,"[""p, 1"", ""p 2""]",Lyon is in,"[{""kind"": ""locality"", ""prompt"": ""q"", '
        '""answers"": [""x""]}]"',
        'b,"{} is, or',
        'was, in",Oslo\u2028,"""Rome""",,,,',
        "c,{} is in,Bonn",
        "d,no slot,Bonn,Rome,,,,",
        "",
        "e,{} is in,Bern,Rome,,[broken,,",
        'f,{} is in,Ulm,"Rome"x,,,,',
        "g,{} is in,Cork,Rome,,,,",
    ]
    loaded = load(tmp_path, "\ufeff" + end.join(lines))
    first, second, last = loaded.records
    assert first == EditRecord(
        EditRequest("{} is in", "Paris", "Rome", "a"),
        "France",
        ("p, 1", "p 2"),
        ("Lyon is in",),
        probes=(Probe("locality", "q", ("x",)),),
    )
    assert second == EditRecord(EditRequest(f"{{}} is, or{end}was, in", "Oslo\u2028", '"Rome"', "b"))
    assert last.request.id == "g"
    assert loaded.source["container"] == "csv"
    assert [(entry.line, entry.reason.split(":")[0]) for entry in loaded.rejected] == [
        (6, "the row has 3 cells, the header 8"),
        (7, "prompt must hold exactly one {} for the subject, found 0"),
        (9, "column paraphrase_prompts must hold a JSON list or one prompt"),
        (10, "not CSV"),
    ]


def test_a_published_flat_format_is_read_from_csv_too(tmp_path: Path) -> None:
    loaded = load(tmp_path, "prompt,subject,attribute,known_id\nOslo is in,Oslo,Norway,4\n")
    assert loaded.source["format"] == "known-facts"
    assert loaded.records[0].request == EditRequest("{} is in", "Oslo", "Norway", "4")


def test_a_quote_that_is_never_closed_costs_the_rows_after_it(tmp_path: Path) -> None:
    loaded = load(tmp_path, 'prompt,subject,target\n{} is,a,b\n{} is,"c,d\n{} is,e,f\n')
    assert subjects(loaded) == ["a"]
    assert loaded.rejected[0].line == 3
    assert loaded.rejected[0].reason.startswith("not CSV: ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prompt,subject,target,prompt\n", "column.s. 'prompt' are given more than once"),
        ("prompt,subject,target\n", "holds no row"),
        ("subject,colour\nsky,blue\n", "no known format; fields of the first: subject, colour"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DatasetError, match=reason):
        load(tmp_path, text)


# ---- files that are none -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n\n", "is empty"),
        (json.dumps(ROW).encode("utf-16")[:-1], "not UTF-16"),
        (b'{"a": "\xe9"}', r"not UTF-8 .*in Windows-1252.* line 1 reads .*\xe9.*iconv"),
        (b"# Title\n\nSome text, with a comma.\n", "none of its 1 row.s. is a JSON object; expected a JSON list"),
        (b'{\n "prompt": "{}",\n "subject": "s"\n}', "no known format; fields of the first: prompt, subject"),
        (b"PK\x03\x04\x14", "a zip archive or a spreadsheet"),
        (b"PAR1\x15", "begins like a Parquet file and cannot be read"),
        (gzip.compress(b"PAR1\x15", mtime=0), "a Parquet file in a gzip file: unpack it with gunzip"),
        (b"\x80\x04\x95\x10", "a Python pickle"),
        (b"\x1f\x8b\x08broken", "begins like a gzip file and cannot be unpacked"),
        (b"\x00\x01", "none of its 1 row"),
    ],
)
def test_data_that_is_no_data_set(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(DatasetError, match=reason):
        load(tmp_path, data)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    out = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return bytes(out.getvalue())


def test_a_parquet_file_gives_the_records_of_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow.parquet")
    rows = [row(paraphrase_prompts=None), row(subject="Rome", paraphrase_prompts=["It is in"])]
    found, expected = load(tmp_path, parquet(rows)), load(tmp_path, json.dumps(rows))
    assert [record.request for record in found.records] == [record.request for record in expected.records]
    assert found.records[1].paraphrase_prompts == ("It is in",)
    assert found.source["container"] == "parquet"


def test_a_parquet_file_without_pyarrow_or_with_too_much_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow.parquet")
    content = parquet([row(filler="x" * 1000, subject=str(number)) for number in range(3000)])
    monkeypatch.setattr(loading, "MOST_BYTES", 1_000_000)
    assert len(content) < 1_000_000
    with pytest.raises(DatasetError, match=r"unpacks to more than|unpacks to [\d,]+ bytes"):
        load(tmp_path, content)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match=r"needs the package pyarrow: pip install 'datasets"):
        load(tmp_path, content)


@pytest.mark.parametrize("name", ["missing.jsonl", "", "a\0b", "a\ud800", "x" * 5000])
def test_paths_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot read the data set|no path has|file system cannot"):
        load_records(f"{tmp_path}/{name}")
    with pytest.raises(DatasetError, match="for a dataset of the hub write hf:owner/name@COMMIT"):
        load_records("owner/name")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MOST_BYTES", 100)
    assert len(load(tmp_path, json.dumps(ROW).ljust(100)).records) == 1
    with pytest.raises(DatasetError, match=r"cannot read the data set .*it has more than 100 bytes"):
        load(tmp_path, json.dumps(ROW).ljust(101))


def test_an_error_quotes_some_bad_rows_and_counts_all(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none of its 50 row") as caught:
        load(tmp_path, "\n".join([json.dumps(row(prompt="x"))] * 50))
    assert len(caught.value.problems) == 4
    assert caught.value.problems[-1] == "and 47 more like these"


def test_an_error_quotes_bad_rows_of_every_kind(tmp_path: Path) -> None:
    rows = [row(prompt="x"), *[row(subject="")] * 25, *[{**row(), f"field{n}": 1} for n in range(4)]]
    with pytest.raises(DatasetError, match="none of its 30 row") as caught:
        load(tmp_path, "\n".join(map(json.dumps, rows)), format="emendo")
    found = caught.value.problems
    assert [problem for problem in found if "more" in problem][:1] == ["and 22 more like these"]
    assert len(found) <= 10
    for line in (1, 2, 4, 27):
        assert any(problem.startswith(f"line {line}:") for problem in found)


# ---- fuzz --------------------------------------------------------------------------------------------------

TEXTS = st.text(alphabet='{}[]":,;\n\r\u2028 subjectprompta\\1\x00é', max_size=60)


@settings(deadline=None, max_examples=300)
@given(TEXTS, st.sampled_from(["", "[", '[{"a": 1}', "prompt,subject,target\n", '{"a": 1}\n', "\ufeff"]))
def test_any_text_is_rows_or_a_dataset_error(text: str, begin: str) -> None:
    try:
        for found in split_rows(begin + text, "f")[1]:
            assert (found.value is None) == bool(found.reason)
            assert found.line >= 1
    except DatasetError:
        pass


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_records_or_a_dataset_error(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.raises(DatasetError):
        load(Path(folder), data)


@settings(deadline=None)
@given(st.lists(st.text(min_size=1).filter(lambda t: t.strip() and "{}" not in t), min_size=1, max_size=5))
def test_records_written_as_jsonl_come_back(names: list[str]) -> None:
    import tempfile

    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return
    rows = [EditRecord(EditRequest("{} is", name, name), probes=(Probe("locality", name, (name,)),)) for name in names]
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join(json.dumps(record.to_dict(), ensure_ascii=False) for record in rows)
        assert load(Path(folder), text).records == tuple(rows)
