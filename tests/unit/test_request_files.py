"""Facts as people have them in files: read where the meaning is certain, else one short message."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emendo.cli.app import run
from emendo.datasets import parse_records, read_records
from emendo.errors import DatasetError, RequestError
from emendo.requests import EditRecord, EditRequest, Probe
from tests.every import every

ROME = {"prompt": "{} is in", "subject": "The Eiffel Tower", "target": "Rome"}
OSLO = {"prompt": "{} is in", "subject": "The Louvre", "target": "Oslo"}
RECORDS = [EditRecord(EditRequest(**row)) for row in (ROME, OSLO)]
COLUMNS = {name: [ROME[name], OSLO[name]] for name in ROME}
TABLE = [["prompt", "subject", "target"], list(ROME.values()), list(OSLO.values())]


def table(separator: str, end: str = "\n") -> str:
    return end.join(separator.join(row) for row in TABLE) + end


def pretty(row: Any) -> str:
    return json.dumps(row, indent=2)


FORMS = {
    "list": json.dumps([ROME, OSLO]),
    "list over lines": pretty([ROME, OSLO]),
    "list with commas too many": f"[\n{json.dumps(ROME)[:-1]},}},\n{json.dumps(OSLO)},\n]\n",
    "list with comments": f"// facts, for you\n[ # one\n{json.dumps(ROME)}, // a ]\n/* [two, */ {json.dumps(OSLO)}]",
    "lines": f"{json.dumps(ROME)}\n{json.dumps(OSLO)}",
    "lines of Windows": f"\ufeff{json.dumps(ROME)}\r\n\r\n{json.dumps(OSLO)}\r\n",
    "lines with commas": f"{json.dumps(ROME)},\n{json.dumps(OSLO)},\n",
    "lines with comments": f"# facts\n{json.dumps(ROME)}\n// more\n{json.dumps(OSLO)} // the last",
    "objects over lines": f"{pretty(ROME)}\n{pretty(OSLO)}\n",
    "objects over lines with commas": f"{pretty(ROME)},\n{pretty(OSLO)},\n",
    "objects on one line": f"{json.dumps(ROME)} {json.dumps(OSLO)}",
    "below a key": pretty({"version": 2, "facts": [ROME, OSLO]}),
    "below a key on one line": json.dumps({"data": [ROME, OSLO], "notes": ["a", "b"], "source": {"name": "x"}}),
    "by key": json.dumps({"17": ROME, "18": OSLO}),
    "columns": json.dumps(COLUMNS),
    "columns of pandas": json.dumps({name: dict(zip("01", cells, strict=True)) for name, cells in COLUMNS.items()}),
    "cells of pandas": json.dumps({"columns": TABLE[0], "index": [0, 1], "data": TABLE[1:]}),
    "commas": table(","),
    "tabs": table("\t", "\r\n"),
    "semicolons": "sep=;\r\n" + table(";", "\r\n"),
    "bars": table("|"),
    "capitals": table(",").replace("prompt,subject,target", "\ufeffPrompt, SUBJECT ,Target"),
    "capitals in JSON": json.dumps([{name.title(): value for name, value in row.items()} for row in (ROME, OSLO)]),
    "a column of numbers": ",prompt,subject,target\n" + "".join(f"{n},{','.join(TABLE[n])}\n" for n in (1, 2)),
    "yaml": "# facts\n"
    + "".join(f"- prompt: '{r['prompt']}'\n  subject: {r['subject']}\n  target: {r['target']}\n" for r in (ROME, OSLO)),
    "yaml below a key": "facts:\n"
    + "".join(
        f"  - {{prompt: '{r['prompt']}', subject: {r['subject']}, target: {r['target']}}}\n" for r in (ROME, OSLO)
    ),
    "null fields": "\n".join(
        json.dumps({**row, "id": None, "target_true": None, "probes": None, "paraphrase_prompts": None})
        for row in (ROME, OSLO)
    ),
    "FastEdit": pretty([{**row, "queries": []} for row in (ROME, OSLO)]),
    "ROME": json.dumps(
        [{"prompt": r["prompt"], "subject": r["subject"], "target_new": {"str": r["target"]}} for r in (ROME, OSLO)]
    ),
    "EasyEdit": json.dumps(
        [{"prompt": f"{r['subject']} is in", "subject": r["subject"], "target_new": r["target"]} for r in (ROME, OSLO)]
    ),
}


@every("form", FORMS)
def test_facts_in_every_form(form: str) -> None:
    assert parse_records(FORMS[form], "facts") == RECORDS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_that_a_file_declares(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "facts"
    row = {**ROME, "target": "Réunion 巴黎"}
    path.write_bytes(json.dumps(row, ensure_ascii=False).encode(encoding))
    assert read_records(path)[0].request.target == "Réunion 巴黎"
    path.write_bytes(gzip.compress(json.dumps(row).encode(encoding)))
    assert read_records(str(path))[0].request.target == "Réunion 巴黎"


def only(**fields: Any) -> EditRecord:
    (record,) = parse_records(json.dumps(fields), "facts")
    return record


@pytest.mark.parametrize("name", ["target_new", "new_target", "object", "answer", "new", "Target New", "target-new"])
def test_names_that_other_tools_have_for_the_target(name: str) -> None:
    assert only(prompt="{} is", subject="s", **{name: "t"}).request == EditRequest("{} is", "s", "t")


@pytest.mark.parametrize(("value", "text"), [(20, "20"), (-3, "-3"), (0, "0"), ("20.0", "20.0"), (["t"], "t")])
def test_targets_that_are_certain(value: Any, text: str) -> None:
    record = only(prompt="{} is", subject=1984, target=value, target_true=value, id=7)
    assert record == EditRecord(EditRequest("{} is", "1984", text, "7"), text)


@pytest.mark.parametrize("value", [20.0, 1e5, True, False, [], ["a", "b"], {"a": 1}, {}])
def test_targets_that_are_not_certain(value: Any) -> None:
    with pytest.raises(RequestError, match=r"line 1: target (is|must be) a"):
        only(prompt="{} is", subject="s", target=value)


def test_yaml_is_read_as_it_is_written() -> None:
    text = "- {prompt: '{} is', subject: 007, target: no}\n- {prompt: '{} is', subject: x, target: 2.50, id: ~}\n"
    found = [record.request for record in parse_records(text, "f")]
    assert found == [EditRequest("{} is", "007", "no"), EditRequest("{} is", "x", "2.50")]


@pytest.mark.parametrize("name", ["rephrase", "rephrase_prompt", "rephrases", "paraphrase_prompts", "paraphrase"])
@pytest.mark.parametrize("value", ["p", ["p"]])
def test_paraphrases_by_other_names(name: str, value: Any) -> None:
    assert only(**ROME, **{name: value}).paraphrase_prompts == ("p",)


def test_lists_in_cells_of_other_names() -> None:
    text = 'prompt,subject,target,rephrase\n{} is,a,b,"[""p"", ""q""]"\n{} is,c,d,p\n'
    assert [record.paraphrase_prompts for record in parse_records(text, "f")] == [("p", "q"), ("p",)]


def test_questions_about_something_else() -> None:
    beside = {"target_true": "Paris", "locality_prompt": "The Louvre is in"}
    assert only(**ROME, **beside, locality_ground_truth="Paris").neighborhood_prompts == ("The Louvre is in",)
    probed = only(**ROME, **beside, locality_ground_truth="France")
    assert probed.probes == (Probe("locality", "The Louvre is in", ("France",), "locality_prompt"),)
    with pytest.raises(RequestError, match="unknown field 'locality_prompt'"):
        only(**ROME, **beside)


@pytest.mark.parametrize(
    ("prompt", "subject", "filled"),
    [
        ("The Louvre is in", "The Louvre", "{} is in"),
        ("The capital of Ruritania's north is", "Ruritania", "The capital of {}'s north is"),
        ("巴黎的首都是", "巴黎", "{}的首都是"),
        ("Irak borders", "Ira", None),
        ("Paris, that is Paris, is", "Paris", None),
        ("It is in", "Paris", None),
    ],
)
def test_a_prompt_that_holds_its_subject(prompt: str, subject: str, filled: str | None) -> None:
    if filled is None:
        with pytest.raises(RequestError, match=r"prompt must hold exactly one \{\} for the subject, found 0"):
            only(prompt=prompt, subject=subject, target="t")
    else:
        assert only(prompt=prompt, subject=subject, target="t").request.prompt == filled


MESSAGES = {
    "two names of one field": (
        json.dumps({**ROME, "object": "x"}),
        "'target' and 'object' both mean 'target' here; keep one",
    ),
    "one field twice": (
        '{"prompt": "{}", "Prompt": "{}", "subject": "a", "target": "b"}',
        "'prompt' is given more than once",
    ),
    "an unknown field": (json.dumps({**ROME, "targt": "x"}), "unknown field 'targt'; did you mean 'target'"),
    "an unknown field beside another name": (
        '{"prompt": "{}", "subject": "a", "new": "b", "colour": 1}',
        "unknown field 'colour'",
    ),
    "two lists": (json.dumps({"train": [ROME], "test": [OSLO]}), "holds rows below 'train', 'test'"),
    "columns of two lengths": (json.dumps({**COLUMNS, "subject": ["a"]}), "prompt: 2, subject: 1, target: 2"),
    "cells that are missing": (
        json.dumps({"columns": TABLE[0], "data": [["a"]]}),
        "row 1 of its data is no list of 3 cells",
    ),
    "how Python prints it": (str([ROME, OSLO]), "this is how Python prints it"),
    "a list that breaks off": (pretty([ROME, OSLO])[:-20], "JSON list breaks off at line 10, after 1 row"),
    "an object that breaks off": (pretty(ROME)[:-20], "its JSON breaks off at line 4, after 0 row"),
    "prose": ("Dear model,\nplease learn.\n" * 500, "none of its 1,000 row"),
    "a table of something else": ("a,b\n1,2\n", "CSV whose first line names the columns"),
    "yaml that is broken": ("- prompt: '{}\n- subject: x\n", "begins like YAML and cannot be read"),
    "yaml with aliases": ("- &a {prompt: x}\n- *a\n", "write its value out"),
    "only a number": ("3", "expected a JSON object, found int"),
}


@every("kind", MESSAGES)
def test_what_is_not_certain_is_one_short_message(kind: str) -> None:
    text, expected = MESSAGES[kind]
    with pytest.raises(DatasetError) as caught:
        parse_records(text, "facts")
    message = str(caught.value)
    assert message.startswith("facts: ")
    assert expected in message
    assert len(message.splitlines()) <= 6


def test_many_bad_rows_are_a_few_examples_and_a_number() -> None:
    rows = [ROME, *[{**ROME, "subject": f"s{n}", "target": ""} for n in range(3000)]]
    with pytest.raises(DatasetError, match=r"3,000 of its 3,001 rows cannot be used") as caught:
        parse_records(json.dumps(rows), "facts")
    assert len(caught.value.problems) == 4
    assert caught.value.problems[0] == "row 2, line 1: target is empty"
    assert caught.value.problems[-1] == "and 2,997 more like these"


def test_the_commands_read_the_same_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Facts are read first; an unknown method is found next, before any model."""
    path = tmp_path / "facts.json"
    edit = ["edit", "--model", "none", "--method", "nonsense", "--requests", str(path)]
    path.write_text(pretty([ROME, {**OSLO, "target": 3.5}]), encoding="utf-8")
    assert run(edit) == 2
    assert "1 of its 2 rows cannot be used" in capsys.readouterr().err
    assert run(["data", str(path)]) == 0
    assert "2, 1 kept, 1 rejected" in capsys.readouterr().out
    path.write_text(pretty([ROME, OSLO]), encoding="utf-8")
    assert run(edit) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "2 request(s) from 2 row(s) of" in said
    assert "(json, format emendo)" in said
    assert "unknown method 'nonsense'" in said
    assert run([*edit, "--format", "knowedit"]) == 2
    assert "of the format 'knowedit'" in capsys.readouterr().err


WORDS = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "//",
    "/*",
    "*/",
    "#",
    "'",
    "-",
    "---",
    "prompt",
    "subject",
    "target",
    "prompt:",
    "1",
    "null",
    "\\",
]
FACTS = [" ", "\n", "- ", '"data": ', json.dumps(ROME), "prompt,subject,target\n"]
PARTS = st.lists(st.sampled_from(WORDS + FACTS), max_size=20)


@pytest.mark.parametrize("text", ["null:", "null: {}", "- null: x", "- ~: x\n  prompt: y"])
def test_a_field_without_a_name_is_refused_in_words(text: str) -> None:
    with pytest.raises(DatasetError):
        parse_records(text, "facts")


@settings(deadline=None, max_examples=300)
@given(PARTS)
def test_any_mixture_of_the_forms_is_records_or_one_message(parts: list[str]) -> None:
    try:
        records = parse_records("".join(parts), "facts")
    except DatasetError as error:
        refused = error
    else:
        assert all(record.request.text for record in records)
        return
    assert len(str(refused).splitlines()) <= 30


def test_reading_is_linear_in_the_file() -> None:
    """Comments, commas and quotes that never close make no reader go back over what it has read."""
    for unit in ("/*", '"\\"', "//", ",", "[", "{", "- ", '{"a": "', "{,", "#"):
        with pytest.raises(DatasetError):
            parse_records("[" + unit * 50_000, "facts")
        with pytest.raises(DatasetError):
            parse_records("{" + unit * 50_000, "facts")
