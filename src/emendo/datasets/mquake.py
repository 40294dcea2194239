"""MQuAKE: cases of one or more facts, and questions whose answer needs all of them."""

from __future__ import annotations

from emendo.datasets.fields import Fields
from emendo.requests import EditRecord, EditRequest, Probe


def read_mquake(row: Fields, label: str) -> list[EditRecord]:
    """One record for each fact of a case; the questions hang on the first, and `case` keeps the records together.

    The multi-hop questions and the single steps have the answers that hold after all edits of the case, those of
    other spelling included.

    Source: MQuAKE (arXiv 2305.14795).
    """
    case = row.label("case_id", label)
    facts = []
    for fact in row.objects("requested_rewrite"):
        request = fact.text("prompt"), fact.text("subject"), fact.inside("target_new").text("str")
        facts.append((request, fact.inside("target_true").text("str"), fact.optional_text("relation_id")))
    answers = (row.text("new_answer"), *row.texts("new_answer_alias"))
    questions = row.texts("questions")
    if not questions and not row.problems:
        row.problems.append("questions holds no question")
    steps = row.objects("new_single_hops") if "new_single_hops" in row.row else []
    row.check()
    probes = [probe for question in questions for probe in row.probe("multi_hop", question, answers, "")]
    probes += [probe for step in steps for probe in _single_hop(step)]
    row.check()
    return [
        EditRecord(
            EditRequest(*request, case if len(facts) == 1 else f"{case}.{place}"),
            true,
            relation=relation,
            case=case,
            probes=tuple(probes) if place == 1 else (),
        )
        for place, (request, true, relation) in enumerate(facts, start=1)
    ]


def _single_hop(step: Fields) -> list[Probe]:
    return step.probe("single_hop", step.text("question"), (step.text("answer"), *step.texts("answer_alias")), "")
