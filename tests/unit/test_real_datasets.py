"""The real data sets, where they are at hand: every row is accounted for, and what is known of them holds."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from emendo.datasets import LoadedRecords, load_records, part_of, select
from emendo.requests import check_requests

FOLDER = os.environ.get("EMENDO_DATA", "")


def loaded(name: str, format: str = "auto") -> LoadedRecords:
    if not FOLDER:
        pytest.skip("EMENDO_DATA does not name a folder with the real data sets")
    path = Path(FOLDER) / name
    if not path.is_file():
        pytest.skip(f"there is no {name} in EMENDO_DATA")
    return load_records(path, format=format)


@pytest.mark.parametrize(
    ("name", "format", "records"),
    [
        ("counterfact.jsonl", "counterfact", 1),
        ("counterfact_rewrites.jsonl", "counterfact", 1),
        ("zsre.jsonl", "zsre", 1),
        ("known_facts.jsonl", "known-facts", 1),
        ("knowedit_wiki_recent.jsonl", "knowedit", 1),
        ("mquake_hard.jsonl", "mquake", 4),
    ],
)
def test_every_row_is_a_record(name: str, format: str, records: int) -> None:
    found = loaded(name)
    data = (Path(FOLDER) / name).read_bytes()
    rows = data.count(b"\n") + (not data.endswith(b"\n"))
    assert found.rejected == ()
    assert found.source["format"] == format
    assert (found.source["rows"], found.source["kept"], len(found.records)) == (rows, rows, rows * records)
    assert found.source["sha256"] == hashlib.sha256(data).hexdigest()
    check_requests([record.request for record in select(found.records)])


def test_counterfact_has_its_probes() -> None:
    for record in loaded("counterfact.jsonl").records:
        assert record.target_true
        assert record.relation
        sizes = [
            len(prompts)
            for prompts in (
                record.paraphrase_prompts,
                record.neighborhood_prompts,
                record.attribute_prompts,
                record.generation_prompts,
            )
        ]
        assert sizes == [2, 10, 10, 10]


def test_the_multi_counterfact_filter_keeps_what_the_published_one_keeps() -> None:
    """The file marks its members; where the other record of a pair is not in the file, ours has more."""
    found = loaded("counterfact_rewrites.jsonl")
    lines = (Path(FOLDER) / "counterfact_rewrites.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    marked = {str(row["case_id"]) for row in rows if row["in_multi_counterfact"]}
    ours = select(found.records, multi_counterfact=True, unique_subjects=False)
    extra = {record.request.id for record in ours} - marked
    missing = marked - {record.request.id for record in ours}
    assert len(extra) <= 0.002 * len(rows)
    assert missing <= {record.request.id for record in found.records}
    assert len(missing) <= 0.0005 * len(rows), "only those whose prompt another record asks too"


def test_the_two_tasks_called_zsre_differ_in_their_target() -> None:
    plain, other = loaded("zsre.jsonl").records, loaded("zsre.jsonl", "zsre-easyedit").records
    for one, two in zip(plain, other, strict=True):
        assert one.request.target == two.target_true
        assert one.target_true is None
        assert one.probes[0].prompt.endswith("?")


def test_known_facts_prompts_are_kept_whole() -> None:
    found = loaded("known_facts.jsonl")
    lines = (Path(FOLDER) / "known_facts.jsonl").read_text(encoding="utf-8").split("\n")
    asked = [json.loads(line)["prompt"] for line in lines if line]
    assert [record.request.text for record in found.records] == asked


def test_knowedit_probes_are_kept_or_reported() -> None:
    found = loaded("knowedit_wiki_recent.jsonl")
    lines = (Path(FOLDER) / "knowedit_wiki_recent.jsonl").read_text(encoding="utf-8").split("\n")
    given = 0
    for line in filter(None, lines):
        row = json.loads(line)
        given += sum(len(entries) for kind in ("portability", "locality") for entries in row[kind].values())
    assert sum(len(record.probes) for record in found.records) + len(found.dropped) == given


def test_mquake_cases_stay_together() -> None:
    found = loaded("mquake_hard.jsonl").records
    chosen = select(found, n=20, unique_subjects=False)
    assert len(chosen) == 80
    assert len({record.case for record in chosen}) == 20
    assert sum(probe.kind == "multi_hop" for record in chosen for probe in record.probes) == 60


def test_the_parts_of_counterfact_share_no_subject() -> None:
    found = loaded("counterfact.jsonl").records
    dev = {record.request.subject for record in select(found, part="dev")}
    report = {record.request.subject for record in select(found, part="report")}
    assert dev
    assert report
    assert not dev & report
    assert all(part_of(subject) == "dev" for subject in dev)
