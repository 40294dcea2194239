"""CounterFact: the original nested rows, and the flat ones of EasyEdit."""

from __future__ import annotations

from dataclasses import replace

from emendo.datasets.fields import Fields
from emendo.requests import EditRecord, EditRequest


def read_counterfact(row: Fields, label: str) -> list[EditRecord]:
    """A row of ROME's ``counterfact.json`` or MEMIT's ``multi_counterfact.json``.

    Rows reduced to a single rephrasing (`rephrase_prompt`) say in `rephrase_kind` whether it is a true paraphrase or
    one of the generation prompts; a generation prompt does not become a paraphrase.
    """
    fact = row.inside("requested_rewrite")
    prompt, subject = fact.text("prompt"), fact.text("subject")
    target, true = fact.inside("target_new").text("str"), fact.inside("target_true").text("str")
    relation = fact.optional_text("relation_id")
    id = row.label("case_id", label)
    paraphrases, generations = row.texts("paraphrase_prompts"), row.texts("generation_prompts")
    rephrasing = row.optional_text("rephrase_prompt")
    if rephrasing is not None:
        kind = row.row.get("rephrase_kind", "paraphrase")
        if kind == "paraphrase":
            paraphrases += (rephrasing,)
        elif kind == "generation":
            generations += (rephrasing,)
        else:
            row.problems.append(f"rephrase_kind must be paraphrase or generation, found {kind!r:.60}")
    neighborhood, attribute = row.texts("neighborhood_prompts"), row.texts("attribute_prompts")
    row.check()
    request = EditRequest(prompt, subject, target, id)
    return [EditRecord(request, true, paraphrases, neighborhood, attribute, generations, relation)]


def read_flat(row: Fields, label: str) -> list[EditRecord]:
    """A row of EasyEdit's ``counterfact-edit.json``.

    The neighborhood prompt is kept as one only where its answer is the true target; otherwise it is a locality probe
    with its own answer.
    """
    subject = row.text("subject")
    prompt = row.cut("prompt", subject)
    target, true = row.text("target_new"), row.text("ground_truth")
    id = row.label("case_id", label)
    rephrasing = row.optional_text("rephrase_prompt")
    nearby, answer = row.optional_text("locality_prompt"), row.optional_text("locality_ground_truth")
    row.check()
    record = EditRecord(
        EditRequest(prompt, subject, target, id), true, paraphrase_prompts=(rephrasing,) if rephrasing else ()
    )
    if nearby is None:
        return [record]
    if answer == true:
        return [replace(record, neighborhood_prompts=(nearby,))]
    return [replace(record, probes=tuple(row.probe("locality", nearby, [answer], "neighborhood")))]
