"""What a message suggests in place of a field or a prompt that cannot be used."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from emendo.arguments.words import shown

SLOT = "{}"

NAMES_ELSEWHERE = {
    "target_new": "target",
    "new_target": "target",
    "new_answer": "target",
    "answer": "target",
    "alt": "target",
    "object": "target",
    "new_object": "target",
    "new": "target",
    "ground_truth": "target_true",
    "target_old": "target_true",
    "old_target": "target_true",
    "true_target": "target_true",
    "old_answer": "target_true",
    "true_answer": "target_true",
    "old_object": "target_true",
    "old": "target_true",
    "rephrase": "paraphrase_prompts",
    "rephrases": "paraphrase_prompts",
    "rephrase_prompt": "paraphrase_prompts",
    "rephrase_prompts": "paraphrase_prompts",
    "paraphrase": "paraphrase_prompts",
    "paraphrases": "paraphrase_prompts",
    "paraphrase_prompt": "paraphrase_prompts",
    "locality_prompt": "neighborhood_prompts",
    "locality_prompts": "neighborhood_prompts",
    "loc": "neighborhood_prompts",
    "neighbors": "neighborhood_prompts",
    "neighbours": "neighborhood_prompts",
    "neighborhood": "neighborhood_prompts",
    "neighbourhood_prompts": "neighborhood_prompts",
    "queries": "generation_prompts",
    "conversation": "messages",
    "system_prompt": "system",
    "query": "prompt",
    "src": "prompt",
    "template": "prompt",
    "subj": "subject",
    "entity": "subject",
    "case_id": "id",
    "known_id": "id",
    "relation_id": "relation",
}
"""Fields of other editing tools and data sets, and what they are called here. Files are read by it, and messages
suggest by it: spelling alone would take target_new for target_true, which is its opposite."""


def unknown_field(name: object, known: Sequence[str]) -> str:
    """The problem of a field that rows do not have, with the one that was probably meant.

    Args:
        name: What was found.
        known: The fields that there are.
    """
    elsewhere = NAMES_ELSEWHERE.get(str(name).lower(), "")
    # The fields of a probe are fewer than the table has.
    near = [elsewhere] if elsewhere in known else difflib.get_close_matches(str(name), known, n=1)
    if not near:
        return f"unknown field {shown(name)}; known: {', '.join(known)}"
    one_for_list = near[0].endswith("_prompts") and not str(name).endswith("s")
    return f"unknown field {shown(name)}; did you mean {near[0]!r}{', which is a list' if one_for_list else ''}?"


def with_slot(prompt: str, subject: object) -> str:
    """What to write for a prompt without a slot: the same with ``{}`` for its subject, if that stands in it once.

    Args:
        prompt: Has no slot.
        subject: Of the same request; may be anything.

    Returns:
        The end of a message; empty where nothing can be suggested.
    """
    if not isinstance(subject, str) or not subject.strip() or prompt.count(subject) != 1:
        return ""
    return f"; expected {shown(prompt.replace(subject, SLOT))}"
