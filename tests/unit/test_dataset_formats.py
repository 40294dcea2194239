"""Every format of data sets: what its rows become, what is said of bad ones, and that no JSON row does worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emendo.datasets import FORMATS, Rejected, Row, load_records, read_rows, recognise
from emendo.errors import DatasetError, InputError, RequestError
from emendo.requests import EditRecord, EditRequest, Probe
from tests.dataset_rows import COUNTERFACT, FLAT, KNOWEDIT, KNOWN, MQUAKE, OWN, ROWS, ZSRE
from tests.every import every


def read(format: str, row: object) -> list[EditRecord] | str:
    """The records of one row, or the reason why it has none."""
    (result,) = read_rows([Row(1, row)], FORMATS[format], [])  # type: ignore[arg-type]
    return result.reason if isinstance(result, Rejected) else result


def test_there_is_a_row_of_every_format_here() -> None:
    assert set(ROWS) == set(FORMATS)


# ---- what rows become --------------------------------------------------------------------------------------


def test_counterfact() -> None:
    assert read("counterfact", COUNTERFACT) == [
        EditRecord(
            EditRequest("The capital of {} is", "Ruritania", "Zenda", "12"),
            target_true="Strelsau",
            paraphrase_prompts=("It rained. Ruritania's capital is", "Ruritania is governed from"),
            neighborhood_prompts=("The capital of Lower Ruritania is",),
            attribute_prompts=("The capital of Zendaland is",),
            generation_prompts=("Ruritania's best known square is in",) * 2,
            relation="P36",
        )
    ]


@pytest.mark.parametrize(
    ("kind", "paraphrases", "generations"), [("paraphrase", ("r",), ()), ("generation", (), ("r",)), (None, ("r",), ())]
)
def test_a_single_rephrasing_goes_where_its_kind_says(
    kind: str | None, paraphrases: tuple[str, ...], generations: tuple[str, ...]
) -> None:
    row = {name: COUNTERFACT[name] for name in ("case_id", "requested_rewrite")}
    result = read("counterfact", {**row, "rephrase_prompt": "r", "rephrase_kind": kind})
    assert isinstance(result, list)
    assert (result[0].paraphrase_prompts, result[0].generation_prompts) == (paraphrases, generations)
    assert "rephrase_kind must be" in str(read("counterfact", {**row, "rephrase_prompt": "r", "rephrase_kind": "x"}))


def test_flat_counterfact() -> None:
    record = EditRecord(
        EditRequest("The capital of {} is", "Ruritania", "Zenda", "7"),
        target_true="Strelsau",
        paraphrase_prompts=("Ruritania is governed from",),
        neighborhood_prompts=("The capital of Lower Ruritania is",),
    )
    assert read("counterfact-easyedit", FLAT) == [record]
    other = read("counterfact-easyedit", {**FLAT, "locality_ground_truth": "Dresden"})
    assert isinstance(other, list)
    assert other[0].neighborhood_prompts == (), "NS would ask for the wrong answer"
    assert other[0].probes == (Probe("locality", "The capital of Lower Ruritania is", ("Dresden",), "neighborhood"),)


def test_zsre_writes_the_true_answer() -> None:
    assert read("zsre", ZSRE) == [
        EditRecord(
            EditRequest("What is the capital of {}?", "Ruritania", "Strelsau", "zsre-1"),
            target_true=None,
            paraphrase_prompts=("From where is Ruritania governed?",),
            probes=(Probe("locality", "nq question: who wrote the prisoner of zenda?", ("Anthony Hope",), "nq"),),
        )
    ]


def test_zsre_of_easyedit_writes_the_alternative_over_the_true_answer() -> None:
    further = {"Recalled Relation": "(a, b)", "New Question": "Which river is there?", "New Answer": "Hen"}
    result = read("zsre-easyedit", {**ZSRE, "portability": further})
    assert isinstance(result, list)
    assert (result[0].request.target, result[0].target_true) == ("Hentzau", "Strelsau")
    assert result[0].probes[1] == Probe("portability", "Which river is there?", ("Hen",), "Recalled Relation")


def test_knowedit() -> None:
    assert read("knowedit", KNOWEDIT) == [
        EditRecord(
            EditRequest("The capital of {} is", "Ruritania", "Zenda", "knowedit-1"),
            probes=(
                Probe("portability", "The capital of the Elphberg realm is", ("Zenda",), "Subject_Aliasing"),
                Probe("portability", "The river through its capital is", ("Zen", "River Zen", "the Zen"), "Reasoning"),
                Probe("locality", "Ruritania's king is", ("Rudolf",), "Relation_Specificity"),
            ),
        )
    ]
    result = read("knowedit", {**KNOWEDIT, "ground_truth": ["Strelsau"], "rephrase_prompt": "r"})
    assert isinstance(result, list)
    assert (result[0].target_true, result[0].paraphrase_prompts) == ("Strelsau", ("r",))


def test_a_probe_without_an_answer_is_left_out_and_reported() -> None:
    bad = [{"prompt": "x is", "ground_truth": [[]]}, {"ground_truth": ["y"]}, 3]
    dropped: list[Rejected] = []
    row = {**KNOWEDIT, "locality": {"Forgetfulness": [*bad, {"prompt": ["z is"], "ground_truth": "z"}]}}
    (records,) = read_rows([Row(9, row)], FORMATS["knowedit"], dropped)
    assert isinstance(records, list)
    assert records[0].probes[-1] == Probe("locality", "z is", ("z",), "Forgetfulness")
    assert len(records[0].probes) == 3
    assert [entry.line for entry in dropped] == [9, 9, 9]
    assert all(entry.reason.startswith("locality probe 'Forgetfulness' left out: ") for entry in dropped)


def test_mquake_is_one_record_a_fact_and_one_case() -> None:
    first, second = read("mquake", MQUAKE)
    assert isinstance(first, EditRecord)
    assert isinstance(second, EditRecord)
    assert first.request == EditRequest("The king of {} is", "Ruritania", "Michael", "3.1")
    assert second.request == EditRequest("{} is married to", "Michael", "Antoinette", "3.2")
    assert (first.case, second.case) == ("3", "3")
    assert (first.target_true, second.target_true, second.relation) == ("Rudolf", "nobody", "P26")
    wife = ("Antoinette", "Antoinette de Mauban")
    assert first.probes == (
        Probe("multi_hop", "Who is the wife of the king of Ruritania?", wife),
        Probe("multi_hop", "Whom did Ruritania's king marry?", wife),
        Probe("single_hop", "Who is the king of Ruritania?", ("Michael", "Black Michael")),
        Probe("single_hop", "Whom did Michael marry?", ("Antoinette",)),
    )
    assert second.probes == ()
    (only,) = read("mquake", {**MQUAKE, "requested_rewrite": MQUAKE["requested_rewrite"][:1]})
    assert isinstance(only, EditRecord)
    assert only.request.id == "3"


def test_known_facts_use_the_prompt_not_the_template() -> None:
    request = EditRequest("{}'s capital is called", "Ruritania", "Strelsau", "5")
    assert read("known-facts", KNOWN) == [EditRecord(request, "Strelsau", relation="P36")]


def test_own_rows() -> None:
    assert read("emendo", OWN) == [EditRecord(EditRequest("{} is", "Ruritania", "small"), relation="P1")]
    assert read("emendo", {**OWN, "target_true": None, "probes": None}) == read("emendo", OWN)


# ---- the subject in the prompt -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "subject", "expected"),
    [
        ("Is Ira in Irak?", "Ira", "Is {} in Irak?"),
        ("Ruritania's king", "Ruritania", "{}'s king"),
        ("東京の知事は", "東京", "{}の知事は"),
        ("a.c or abc", "a.c", "{} or abc"),
        ("Where is Irak?", "Ira", "Where is {}k?"),
    ],
)
def test_the_subject_is_cut_out_where_it_is_a_word(prompt: str, subject: str, expected: str) -> None:
    result = read("known-facts", {**KNOWN, "prompt": prompt, "subject": subject})
    assert isinstance(result, list)
    assert result[0].request.prompt == expected
    assert result[0].request.text == prompt


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("Its capital is", "prompt must hold the subject once, found 0 times: 'Ruritania' in 'Its capital is'"),
        ("Ruritania or Ruritania", "prompt must hold the subject once, found 2 times"),
        ("Ruritaniaa or Ruritaniab", "prompt must hold the subject once, found 0 times"),
        ("Ruritania {} is", "prompt must not hold {} and the subject: 'Ruritania {} is'"),
    ],
)
def test_a_prompt_without_a_clear_subject_is_rejected(prompt: str, reason: str) -> None:
    assert str(read("knowedit", {**KNOWEDIT, "prompt": prompt})).startswith(reason)


# ---- bad rows ----------------------------------------------------------------------------------------------


@every(
    ("format", "changes", "reason"),
    [
        ("counterfact", {"requested_rewrite": 3}, "requested_rewrite must be an object, found 3"),
        ("counterfact", {"requested_rewrite": None}, "requested_rewrite is missing"),
        ("counterfact", {"paraphrase_prompts": ["a", " "]}, "paraphrase_prompts must be a list of non-empty strings"),
        ("counterfact", {"case_id": [1]}, "case_id must be a number or a string, found [1]"),
        ("counterfact", {"case_id": True}, "case_id must be a number or a string, found True"),
        ("counterfact-easyedit", {"target_new": " "}, "target_new must be a non-empty string, found ' '"),
        ("zsre", {"answers": []}, "answers holds no answer"),
        ("zsre", {"answers": "Strelsau"}, "answers must be a list of non-empty strings, found 'Strelsau'"),
        ("zsre-easyedit", {"alt": None}, "alt is missing"),
        ("zsre-easyedit", {"portability": 3}, "portability must be an object, found 3"),
        ("knowedit", {"locality": {"a": 3}}, "locality.a must be a list of probes, found int"),
        ("knowedit", {"portability": [1]}, "portability must be an object, found [1]"),
        ("mquake", {"requested_rewrite": []}, "requested_rewrite must be a list of objects, found []"),
        ("mquake", {"requested_rewrite": [{}]}, "requested_rewrite[0].prompt is missing; requested_rewrite[0].subject"),
        ("mquake", {"questions": []}, "questions holds no question"),
        ("mquake", {"new_single_hops": [{"question": "q"}]}, "new_single_hops[0].answer is missing"),
        ("known-facts", {"attribute": 3.0}, "attribute must be a non-empty string, found 3.0"),
        ("emendo", {"target": None}, "target is missing"),
        ("emendo", {"targt": "x"}, "unknown field 'targt'; did you mean 'target'?"),
    ],
)
def test_a_bad_row_is_rejected_with_the_field_that_is_wrong(format: str, changes: dict[str, Any], reason: str) -> None:
    assert str(read(format, {**ROWS[format], **changes})).startswith(reason)


def test_surrogates_and_slots_in_subjects_are_rejected() -> None:
    rewrite = {**COUNTERFACT["requested_rewrite"], "subject": "a {} b"}
    assert "subject must not hold {}" in str(read("counterfact", {**COUNTERFACT, "requested_rewrite": rewrite}))
    rewrite = {**COUNTERFACT["requested_rewrite"], "subject": "\ud800"}
    assert "half of a surrogate pair" in str(read("counterfact", {**COUNTERFACT, "requested_rewrite": rewrite}))


def test_an_id_names_one_row() -> None:
    rows = [Row(1, COUNTERFACT), Row(5, COUNTERFACT), Row(7, {**COUNTERFACT, "case_id": 13})]
    results = list(read_rows(rows, FORMATS["counterfact"], []))
    assert results[1] == Rejected(5, "its id is taken: '12' names the row of line 1")
    assert [isinstance(result, list) for result in results] == [True, False, True]
    assert all(isinstance(result, list) for result in read_rows([Row(1, OWN), Row(2, OWN)], FORMATS["emendo"], []))


# ---- recognition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, entry in FORMATS.items() if not entry.by_name_only])
def test_a_row_is_recognised_as_its_format_and_no_other(name: str) -> None:
    assert recognise([ROWS[name]], "f").name == name
    assert [entry.name for entry in FORMATS.values() if entry.recognises(ROWS[name])] == [name]


def test_most_rows_decide_and_the_file_name_does_not(tmp_path: Path) -> None:
    path = tmp_path / "zsre_mquake_knowedit.csv"
    path.write_text("\n".join(map(json.dumps, [ZSRE, COUNTERFACT, {**COUNTERFACT, "case_id": 1}])), encoding="utf-8")
    loaded = load_records(path)
    assert (loaded.source["format"], loaded.source["container"], len(loaded.records)) == ("counterfact", "jsonl", 2)
    assert loaded.rejected[0].line == 1


def test_a_named_format_is_used_and_an_unknown_one_suggests(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(ZSRE), encoding="utf-8")
    assert load_records(path, format="zsre-easyedit").records[0].request.target == "Hentzau"
    with pytest.raises(
        DatasetError, match=r"unknown data format 'zsr'; did you mean 'zsre'\? Known: auto, emendo.*--format"
    ):
        load_records(path, format="zsr")
    with pytest.raises(
        DatasetError, match=r"none of its 1 row\(s\) is a record of the format 'mquake'.*--format NAME"
    ) as e:
        load_records(path, format="mquake")
    assert any(problem.startswith("line 1: requested_rewrite is missing") for problem in e.value.problems)


def test_rows_of_no_known_format_are_an_error_that_lists_the_formats(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "q", "answer": 3}\n', encoding="utf-8")
    with pytest.raises(DatasetError, match="fields of the first: question, answer") as caught:
        load_records(path)
    assert [problem.split(":")[0] for problem in caught.value.problems] == list(FORMATS)
    assert isinstance(caught.value, (RequestError, InputError))


# ---- fuzz --------------------------------------------------------------------------------------------------

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["{}", "{} is", "a"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def nodes(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place within a row."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(place for key, entry in inner for place in nodes(entry, (*path, key)))]


def with_value(row: Any, path: tuple[Any, ...], value: object) -> Any:
    if not path:
        return value
    copy = dict(row) if isinstance(row, dict) else list(row)
    copy[path[0]] = with_value(row[path[0]], path[1:], value)
    return copy


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_row_with_any_value_anywhere_is_a_record_or_rejected(data: st.DataObject) -> None:
    """Each format's good row, with one to three places overwritten by arbitrary JSON."""
    format = data.draw(st.sampled_from(sorted(FORMATS)))
    row: Any = ROWS[format]
    for _ in range(data.draw(st.integers(1, 3))):
        row = with_value(row, data.draw(st.sampled_from(nodes(row)[1:])), data.draw(VALUES)) if row else row
    result = read(format, row)
    if isinstance(result, str):
        assert result.strip()
        assert len(result) < 4000
    else:
        for record in result:
            assert record.request.text.encode()
            assert all(isinstance(probe, Probe) for probe in record.probes)
            json.dumps(record.to_dict()).encode()


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([name for row in ROWS.values() for name in row]) | st.text(), VALUES), st.data())
def test_any_object_is_a_record_or_rejected(row: dict[str, Any], data: st.DataObject) -> None:
    for format in FORMATS:
        result = read(format, row)
        assert result
        FORMATS[format].recognises(row)


@settings(deadline=None)
@given(st.lists(st.one_of(*map(st.just, ROWS.values()), VALUES), max_size=6), st.booleans())
def test_any_json_file_is_accounted_for_or_a_dataset_error(rows: list[Any], as_list: bool) -> None:
    import tempfile

    text = json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        path.write_text(text, encoding="utf-8")
        try:
            loaded = load_records(path)
        except DatasetError:
            return
    source = loaded.source
    assert source["rows"] == len(rows) == source["kept"] + len(loaded.rejected)
    assert source["records"] == len(loaded.records) > 0
    assert sum(source["rejected"].values()) == len(loaded.rejected)
