"""zsRE in the fields of the MEND release, read for either of the two tasks that go by this name."""

from __future__ import annotations

from emendo.datasets.fields import Fields
from emendo.requests import EditRecord, EditRequest, Probe

_PORTABILITY = ("New Question", "New Answer")


def read_zsre(row: Fields, label: str) -> list[EditRecord]:
    """ROME's and MEMIT's task: write the true answer.

    `target_true` stays unknown: there is no other answer to compare with. The locality probe is scored against the
    answer of Natural Questions, as published, not against what the model said before.

    Source: ROME (arXiv 2202.05262), appendix; the question mark after `loc` is that of its evaluation.
    """
    request, paraphrases, probes = _common(row, label, _first_answer(row))
    return [EditRecord(request, None, paraphrases, probes=probes)]


def read_zsre_alternative(row: Fields, label: str) -> list[EditRecord]:
    """EasyEdit's task: write the alternative answer `alt` where the true one stood; with its portability question."""
    true = _first_answer(row)
    request, paraphrases, probes = _common(row, label, row.text("alt"))
    further = row.row.get("portability")
    if further is not None:
        question, answer = (row.inside("portability").row.get(name) for name in _PORTABILITY)
        probes += tuple(row.probe("portability", question, [answer], "Recalled Relation"))
        row.check()
    return [EditRecord(request, true, paraphrases, probes=probes)]


def _first_answer(row: Fields) -> str:
    answers = row.texts("answers")
    if not answers and not any(problem.startswith("answers") for problem in row.problems):
        row.problems.append("answers holds no answer")
    return answers[0] if answers else ""


def _common(row: Fields, label: str, target: str) -> tuple[EditRequest, tuple[str, ...], tuple[Probe, ...]]:
    subject = row.text("subject")
    prompt = row.cut("src", subject)
    rephrasing = row.optional_text("rephrase")
    question, answer = row.optional_text("loc"), row.optional_text("loc_ans")
    row.check()
    probes: list[Probe] = []
    if question is not None:
        question = question if question.endswith("?") else question + "?"
        probes = row.probe("locality", question, [answer], "nq")
    return EditRequest(prompt, subject, target, label), (rephrasing,) if rephrasing else (), tuple(probes)
