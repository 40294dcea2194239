"""Requests and files of them: whatever the input, records or one RequestError that names every bad row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emendo.datasets import parse_records, read_records
from emendo.errors import InputError, RequestError
from emendo.requests import (
    ASKED_FIELDS,
    FIELDS,
    PROMPT_LISTS,
    EditRecord,
    EditRequest,
    Probe,
    check_requests,
    record_from_dict,
)
from tests.every import every

ROW: dict[str, Any] = {"prompt": "{} is in", "subject": "The Eiffel Tower", "target": "Rome"}
PROBE: dict[str, Any] = {"kind": "locality", "prompt": "Rome is in", "answers": ["Italy", "Italia"], "group": "nq"}


def line(**changes: Any) -> str:
    return json.dumps({**ROW, **changes})


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(RequestError) as caught:
        parse_records(text, "facts.jsonl")
    assert str(caught.value).startswith("facts.jsonl: ")
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    return caught.value.problems


# ---- lines -------------------------------------------------------------------------------------------------


def test_a_full_row_and_a_bare_row() -> None:
    full = line(id="a", target_true="Paris", paraphrase_prompts=["p"], neighborhood_prompts=["n", "m"])
    records = parse_records(f"{full}\n\n   \n{line()}\n", "f")
    request = EditRequest("{} is in", "The Eiffel Tower", "Rome", "a")
    assert records == [
        EditRecord(request, "Paris", ("p",), ("n", "m")),
        EditRecord(EditRequest("{} is in", "The Eiffel Tower", "Rome")),
    ]


def test_every_field_of_a_record_is_read_and_written_back() -> None:
    row = {
        **ROW,
        "id": "a",
        "join": "none",
        "target_true": "Paris",
        **{name: [f"{name} 1", f"{name} 2"] for name in PROMPT_LISTS},
        "relation": "P131",
        "case": "7",
        "probes": [PROBE, {"kind": "portability", "prompt": "p", "answers": ["a"], "chat": True}],
        "guessed": ["paraphrase_prompts", "probes"],
    }
    assert {*row, *ASKED_FIELDS} == set(FIELDS)  # a question: test_chat_requests.py
    record = record_from_dict(row)
    assert record.attribute_prompts == ("attribute_prompts 1", "attribute_prompts 2")
    assert record.generation_prompts == ("generation_prompts 1", "generation_prompts 2")
    assert (record.relation, record.case) == ("P131", "7")
    assert record.probes == (
        Probe("locality", "Rome is in", ("Italy", "Italia"), "nq"),
        Probe("portability", "p", ("a",), chat=True),
    )
    assert record.guessed == ("paraphrase_prompts", "probes")
    assert record.to_dict() == row
    assert record_from_dict(ROW).to_dict() == ROW


@pytest.mark.parametrize(
    ("probes", "expected"),
    [
        ("p", "probes must be a list of objects, found 'p'"),
        (["p"], "probe 1 must be an object, found 'p'"),
        ([PROBE, {"kind": "locality", "prompt": "p"}], "probe 2: answers is missing"),
        ([{**PROBE, "kind": "localty"}], "probe 1: kind must be one of portability, multi_hop, single_hop, locality"),
        ([{**PROBE, "kind": ["locality"]}], "probe 1: kind must be one of"),
        ([{**PROBE, "prompt": " "}], "probe 1: prompt must be a non-empty string, found ' '"),
        ([{**PROBE, "answers": []}], "probe 1: answers must be one or more non-empty strings, found ()"),
        ([{**PROBE, "answers": "Italy"}], "probe 1: answers must be one or more non-empty strings, found 'Italy'"),
        ([{**PROBE, "answers": ["Italy", ""]}], "probe 1: answers must be one or more"),
        ([{**PROBE, "group": 3}], "probe 1: group must be a string, found 3"),
        ([{**PROBE, "answer": ["x"]}], "probe 1: unknown field 'answer'; did you mean 'answers'?"),
    ],
)
def test_a_bad_probe_is_named_with_its_place(probes: object, expected: str) -> None:
    (problem,) = problems_of(line(probes=probes))
    assert problem.startswith(f"line 1: {expected}")


@pytest.mark.parametrize(("name", "value"), [("relation", ""), ("relation", 7), ("case", 7.5), ("case", ["x"])])
def test_relation_and_case_are_strings(name: str, value: object) -> None:
    (problem,) = problems_of(line(**{name: value}))
    assert problem.startswith(f"line 1: {name} must be a ")


def test_all_bad_lines_at_once_with_number_and_reason() -> None:
    lines = [
        line(),
        "{",
        "[1]",
        "",
        "null",
        line(prompt={}, subject="", target=[]),
        line(target_true=" "),
        line(paraphrase_prompts="p", neighborhood_prompts=["ok", ""]),
        '{"prompt": "no slot", "subject": 3.5}',
        '{"prompt": "{} a", "prompt": "{} b", "subject": "s", "target": "t"}',
    ]
    found = problems_of("\n".join(lines))
    expected = [
        "line 2: not JSON: ",
        "line 3: expected a JSON object, found list",
        "line 5: expected a JSON object, found NoneType",
        "line 6: prompt must be a string, found dict: {}; subject is empty; target must be a string, found list: []",
        "line 7: target_true must be a non-empty string, found ' '",
        "line 8: neighborhood_prompts must be a list of non-empty strings, found ['ok', '']",
        "line 9: target is missing; subject must be a string, found float: 3.5; prompt must hold exactly one {}",
        "line 10: field 'prompt' is given more than once",
    ]
    assert len(found) == len(expected)
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(start)


@every("name", PROMPT_LISTS)
@every("value", [{"a": 1}, [1], [" "], ["\t\n"], [["p"]], [None], 3, " "])
def test_probes_are_lists_of_visible_strings(name: str, value: object) -> None:
    (problem,) = problems_of(line(**{name: value}))
    assert problem.startswith(f"line 1: {name} must be a list of non-empty strings")


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("subjct", "did you mean 'subject'?"),
        ("paraphrases_prompts", "did you mean 'paraphrase_prompts'?"),
        ("zzz", "known: id, prompt"),
    ],
)
def test_unknown_fields_are_refused_with_a_suggestion(field: str, hint: str) -> None:
    (problem,) = problems_of(line(**{field: "x"}))
    assert f"unknown field {field!r}" in problem
    assert hint in problem


def test_two_unknown_fields_are_two_problems() -> None:
    (problem,) = problems_of(line(foo=1, bar=2))
    assert "unknown field 'foo'" in problem
    assert "unknown field 'bar'" in problem


def test_an_id_names_one_line_only() -> None:
    text = "\n".join([line(id="a"), line(id=""), line(id=""), line(id="b"), line(id="a")])
    (problem,) = problems_of(text)
    assert problem.startswith("line 5: its id is taken: 'a' names the row of line 1")


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": NaN, "subject": Infinity, "target": -Infinity}',
        "NaN",
        "1" * 5000,
        '{"prompt": ' + "1" * 5000 + "}",
        "[" * 100_000,
        '{"prompt":' + "[" * 900 + "]" * 900 + ', "subject": "s", "target": "t"}',
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        '{"prompt": "{} \\ud800", "subject": "s", "target": "t"}',
        '{"prompt": "{}", "subject": "s", "target": "t"} {}',
        "{'prompt': '{}'}",
        "\x00",
    ],
)
def test_hostile_json_is_a_request_error(text: str) -> None:
    with pytest.raises(RequestError, match=r"^f: ") as caught:
        parse_records(text, "f")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("new_target", "did you mean 'target'?"),
        ("ground_truth", "did you mean 'target_true'?"),
        ("rephrase_prompt", "did you mean 'paraphrase_prompts', which is a list?"),
        ("Rephrase", "did you mean 'paraphrase_prompts', which is a list?"),
        ("locality_prompts", "did you mean 'neighborhood_prompts'?"),
        ("neighbours", "did you mean 'neighborhood_prompts'?"),
        ("targt", "did you mean 'target'?"),
        ("colour", "known: id, prompt, question"),
    ],
)
def test_a_field_of_another_tool_is_known(field: str, hint: str) -> None:
    with pytest.raises(RequestError) as raised:
        record_from_dict({**ROW, field: "Rome"})
    (problem,) = raised.value.problems
    assert problem.startswith(f"unknown field {field!r}; {hint}")


@pytest.mark.parametrize(
    ("prompt", "subject", "hint"),
    [
        ("The Louvre is in", "The Louvre", "found 0: 'The Louvre is in'; expected '{} is in'"),
        ("Paris, that is Paris, is in", "Paris", "found 0: 'Paris, that is Paris, is in'"),
        ("It is in", "The Louvre", "found 0: 'It is in'"),
        ("It is in", 7, "found 0: 'It is in'"),
        ("It is in", " ", "found 0: 'It is in'"),
        ("The Louvre {} {}", "The Louvre", "found 2: 'The Louvre {} {}'"),
    ],
)
def test_a_prompt_that_holds_its_subject_is_shown_with_a_slot(prompt: str, subject: Any, hint: str) -> None:
    with pytest.raises(RequestError) as raised:
        record_from_dict({**ROW, "prompt": prompt, "subject": subject})
    (problem,) = (problem for problem in raised.value.problems if problem.startswith("prompt must hold"))
    assert problem.endswith(hint)


def test_no_slot_is_suggested_for_a_subject_that_is_missing() -> None:
    with pytest.raises(RequestError) as raised:
        record_from_dict({"prompt": "A well-known tower is in", "target": "Rome"})
    assert raised.value.problems[-1].endswith("found 0: 'A well-known tower is in'")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_only_line_breaks_end_a_line(separator: str) -> None:
    """JSON strings may hold U+2028 and U+0085 as they are; str.splitlines would cut them."""
    if separator in "\u2028\u2029\x85":
        row = json.dumps({**ROW, "subject": f"a{separator}b"}, ensure_ascii=False)
        (record,) = parse_records(row, "f")
        assert record.request.subject == f"a{separator}b"
    (problem,) = problems_of(f"{line()}\n{line()}{separator}{line()}\n")
    assert problem.startswith("line 2: not JSON: Extra data")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system(tmp_path: Path, end: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(end.join([line(), line(subject="Rome"), "", "{", ""]).encode())
    with pytest.raises(RequestError) as caught:
        read_records(path)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["line 4"]
    path.write_bytes(end.join([line(), line(subject="Rome")]).encode())
    assert [record.request.subject for record in read_records(path)] == ["The Eiffel Tower", "Rome"]


# ---- files -------------------------------------------------------------------------------------------------


def test_a_bom_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line().encode())
    assert read_records(str(path))[0].request.prompt == "{} is in"


@pytest.mark.parametrize(
    "data", [line().encode("utf-16")[:-1], line(subject="é").encode() + b"\xff", '{"a": "é"}'.encode("latin-1")]
)
def test_damaged_and_undeclared_encodings_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(data)
    with pytest.raises(RequestError, match="is not UTF-"):
        read_records(path)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf\r\n  \t", b"[]", b"# nothing\n"])
def test_a_file_without_requests_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(data)
    with pytest.raises(RequestError, match=r"is empty|holds no row"):
        read_records(path)


@pytest.mark.parametrize("name", ["missing.jsonl", "", "a\0b", "a\ud800", "x" * 5000, "missing/facts.jsonl"])
def test_paths_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot read the data set|no path has|file system cannot"):
        read_records(f"{tmp_path}/{name}")


def test_the_packaged_facts_are_records() -> None:
    import emendo

    path = Path(emendo.__file__).parent / "data" / "demo_facts.jsonl"
    records = read_records(path)
    assert len(records) == len({record.request.id for record in records}) > 10
    check_requests([record.request for record in records])


# ---- fuzz --------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["{}", "{} is"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), VALUES, max_size=8)


def assert_records_or_request_error(text: str) -> None:
    try:
        records = parse_records(text, "f")
    except RequestError:
        return
    assert records
    assert all(isinstance(record, EditRecord) for record in records)


@settings(deadline=None)
@given(st.lists(st.text(alphabet='{}[]":,\\ud8\n\r\u2028 1eE-tfnpromptsubjecta', max_size=40), max_size=4))
def test_arbitrary_text_never_raises_anything_else(parts: list[str]) -> None:
    assert_records_or_request_error("\n".join(parts))


@settings(deadline=None)
@given(st.lists(ROWS | VALUES, min_size=1, max_size=4), st.booleans())
def test_arbitrary_json_never_raises_anything_else(rows: list[Any], ascii_only: bool) -> None:
    assert_records_or_request_error("\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows))


@settings(deadline=None)
@given(ROWS)
def test_arbitrary_rows_never_raise_anything_else(row: dict[str, Any]) -> None:
    try:
        record = record_from_dict({**ROW, **row})
    except RequestError:
        return
    assert set(row) <= set(FIELDS)
    assert record_from_dict(record.to_dict()) == record


@settings(deadline=None)
@given(
    st.binary(max_size=60)
    | st.tuples(st.binary(max_size=4), st.binary(max_size=4)).map(lambda p: p[0] + b'{"id":' + p[1])
)
def test_arbitrary_bytes_never_raise_anything_else(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "facts.jsonl"
        path.write_bytes(data)
        with pytest.raises(RequestError):
            read_records(path)


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({"subject": st.text(min_size=1), "target": st.text(min_size=1)}).filter(
            lambda row: all(v.strip() and "{}" not in v for v in row.values())
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_what_was_written_is_what_is_read(rows: list[dict[str, str]], ascii_only: bool) -> None:
    """Any strings, whatever breaks or controls they hold, come back as they were."""
    try:
        text = "\n".join(json.dumps({"prompt": "{} is", **row}, ensure_ascii=ascii_only) for row in rows)
        text.encode()
        [value.encode() for row in rows for value in row.values()]
    except UnicodeEncodeError:
        return
    records = parse_records(text, "f")
    assert [(r.request.subject, r.request.target) for r in records] == [(r["subject"], r["target"]) for r in rows]
