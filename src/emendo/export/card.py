"""Model cards: what was edited, in what, with what, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from emendo.io.versions import __version__
from emendo.updates.update import ModelUpdate

SHOWN_FACTS = 200
"""Facts that a card lists; the update files hold all of them."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def adapter_card(base_name: str, updates: Sequence[ModelUpdate], *, name: str, rank: int, lost: float) -> str:
    """The README.md of a LoRA adapter.

    Args:
        base_name: The base model, as the adapter's configuration names it.
        updates: What the adapter holds, in order.
        name: The adapter's name.
        rank: Its r.
        lost: Relative distance that folding cost; 0 where nothing was folded.
    """
    exact = "exactly" if lost == 0 else f"up to a relative distance of {lost:.1e} in a layer's ΔW"
    body = [
        f"# {name}",
        "",
        f"Facts edited in {_text(base_name)}, as a LoRA adapter of rank {rank} at scale 1: base and adapter together "
        f"compute {exact} what the edited model computes, to rounding.",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base_name)})",
        'model = PeftModel.from_pretrained(base, "FOLDER OR REPOSITORY OF THIS ADAPTER")',
        "```",
        "",
    ]
    head = _front_matter("peft", "adapter", base_name, ["lora"])
    return "\n".join([*head, *body, *_facts(updates), *_measured(updates), *_origin(updates)])


def checkpoint_card(base_name: str, updates: Sequence[ModelUpdate], *, dtype: str) -> str:
    """The README.md of a whole checkpoint.

    Args:
        base_name: The base model.
        updates: What was written into it, in order.
        dtype: Of the weights, such as ``"bfloat16"``.
    """
    body = [
        f"# {_text(base_name)}, edited",
        "",
        f"Facts edited in the weights of {_text(base_name)}, stored in {dtype}. No Emendo is needed to run it:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "FOLDER OR REPOSITORY OF THIS MODEL"',
        f'model = AutoModelForCausalLM.from_pretrained(folder, dtype="{dtype}")',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "```",
        "",
    ]
    head = _front_matter("transformers", "finetune", base_name, [])
    return "\n".join([*head, *body, *_facts(updates), *_measured(updates), *_origin(updates)])


def recorded_facts(updates: Sequence[ModelUpdate]) -> list[dict[str, str]]:
    """Prompt, subject and target of the recorded requests, for files without a card; the first `SHOWN_FACTS`."""
    rows = [row for update in updates for row in _requests(update)]
    fields = ("prompt", "subject", "target")
    return [{name: str(row.get(name, "")) for name in fields} for row in rows[:SHOWN_FACTS]]


def _front_matter(library: str, relation: str, base_name: str, tags: list[str]) -> list[str]:
    """The YAML that the hub reads. A base that is no hub id, a folder for instance, cannot be linked."""
    linked = []
    if _HUB_ID.fullmatch(base_name):
        linked = [f"base_model: {json.dumps(base_name)}", f"base_model_relation: {relation}"]
    marks = ["emendo", "model-editing", "knowledge-editing", *tags]
    lines = [f"library_name: {library}", "pipeline_tag: text-generation", *linked]
    return ["---", *lines, "tags:", *(f"- {mark}" for mark in marks), "---", ""]


def _facts(updates: Sequence[ModelUpdate]) -> list[str]:
    """What each fact's prompt was asked to say, and what it says where that was measured."""
    rows = [
        (row, answer) for update in updates for row, answer in zip(_requests(update), _answers(update), strict=True)
    ]
    if not rows:
        return ["## Facts", "", "The updates do not record them.", ""]
    lines = ["## Facts", "", "| prompt | asked for | says | said |", "|---|---|---|---|"]
    for row, answer in rows[:SHOWN_FACTS]:
        prompt = str(row.get("prompt", "")).replace("{}", str(row.get("subject", "")))
        says, hit = ("not measured", "not measured") if answer is None else answer
        lines.append(f"| {_text(prompt)} | {_text(str(row.get('target', '')))} | {_text(says)} | {hit} |")
    if len(rows) > SHOWN_FACTS:
        lines += ["", f"… and {len(rows) - SHOWN_FACTS} more."]
    return [*lines, ""]


def _measured(updates: Sequence[ModelUpdate]) -> list[str]:
    """Scores, perplexity and gate of each update, as measured when it was made; and what was not measured."""
    lines = ["## What was measured", ""]
    for update in updates:
        found = update.info.get("measured")
        told = _scores(found) if isinstance(found, dict) else "nothing was judged"
        lines.append(f"* Update `{update.id[:16]}`, when it was made: {told}; {_gate(update.info.get('gate'))}.")
    return [*lines, ""]


def _scores(found: dict[str, Any]) -> str:
    """Shares in percent, neighbors and perplexity; a value of another kind than expected is left out."""
    shares = {**_dict(found.get("scores")), **_dict(found.get("said"))}
    parts = [
        f"{_text(str(name)).replace('_', ' ')} {value:.1f} %"
        for name, value in shares.items()
        if isinstance(value, float) and name in _SHOWN_SCORES
    ]
    neighbors, ppl = _dict(found.get("neighbors")), _dict(found.get("perplexity"))
    kept, of = neighbors.get("kept"), neighbors.get("of")
    if isinstance(kept, int) and isinstance(of, int):
        parts.append(f"neighbors {kept} of {of} kept" if of else "neighbors not measured")
    before, after = ppl.get("before"), ppl.get("after")
    if isinstance(before, float) and isinstance(after, float):
        parts.append(f"perplexity {before:.2f} → {after:.2f}")
    return ", ".join(parts) or "nothing was judged"


def _gate(found: Any) -> str:
    if not isinstance(found, dict):
        return "no gate"
    checks = [check for check in found.get("checks", []) if isinstance(check, dict)]
    failed = [_text(str(check.get("name"))) for check in checks if not check.get("passed")]
    unknown = [_text(str(check.get("name"))) for check in checks if check.get("measured") is None]
    verdict = "passed" if found.get("passed") else "failed and overridden" if found.get("forced") else "failed"
    named = f" ({', '.join(failed)})" if failed else ""
    left = f", not measured: {', '.join(unknown)}" if unknown else ""
    return f"gate {verdict}{named}{left}"


_SHOWN_SCORES = ("ES", "PS", "NS", "S", "EA", "PA", "NA", "said", "said_paraphrase", "said_chat")


def _answers(update: ModelUpdate) -> list[tuple[str, str] | None]:
    """What the model says to each request, and whether it is the new target; None where that was not measured."""
    requests = _requests(update)
    found = _dict(update.info.get("measured")).get("answers")
    if not isinstance(found, list) or len(found) != len(requests):
        return [None] * len(requests)
    return [
        (str(answer.get("says", "")), "yes" if answer.get("said") is True else "**no**")
        if isinstance(answer, dict)
        else None
        for answer in found
    ]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _origin(updates: Sequence[ModelUpdate]) -> list[str]:
    base = updates[0].base
    lines = ["## Where it comes from", "", f"* Base weights: SHA-256 `{_code(base.get('weights_sha256', 'unknown'))}`"]
    for update in updates:
        method = update.info.get("method")
        name = method.get("name") if isinstance(method, dict) else None
        layers = ", ".join(str(part.layer) for part in update.layers)
        lines.append(f"* Update `{update.id}`: {_text(str(name or 'unknown method'))}, layers {layers}")
    lines += [
        f"* Written by Emendo {__version__}",
        "",
        "The licence and the limits of the base model hold here too. An edit can change answers that nobody checked. "
        "Answers and scores are of the model right after each update, in its own dtype.",
        "",
    ]
    return lines


def _requests(update: ModelUpdate) -> list[dict[str, Any]]:
    """The recorded requests; whatever else an update's info holds under that name is left out."""
    rows = update.info.get("requests")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _text(value: str) -> str:
    """Text that Markdown shows as it is, on one line of a table."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!&~$])", r"\\\1", " ".join(value.split()))


def _code(value: str) -> str:
    return re.sub(r"[^\w.-]", "?", str(value))
