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
    return "\n".join([*head, *body, *_facts(updates), *_origin(updates)])


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
    return "\n".join([*head, *body, *_facts(updates), *_origin(updates)])


def _front_matter(library: str, relation: str, base_name: str, tags: list[str]) -> list[str]:
    """The YAML that the hub reads. A base that is no hub id, a folder for instance, cannot be linked."""
    linked = []
    if _HUB_ID.fullmatch(base_name):
        linked = [f"base_model: {json.dumps(base_name)}", f"base_model_relation: {relation}"]
    marks = ["emendo", "model-editing", "knowledge-editing", *tags]
    lines = [f"library_name: {library}", "pipeline_tag: text-generation", *linked]
    return ["---", *lines, "tags:", *(f"- {mark}" for mark in marks), "---", ""]


def _facts(updates: Sequence[ModelUpdate]) -> list[str]:
    rows = [row for update in updates for row in _requests(update)]
    lines = ["## Facts", "", "| prompt | now continues with |", "|---|---|"]
    for row in rows[:SHOWN_FACTS]:
        prompt = str(row.get("prompt", "")).replace("{}", str(row.get("subject", "")))
        lines.append(f"| {_text(prompt)} | {_text(str(row.get('target', '')))} |")
    if len(rows) > SHOWN_FACTS:
        lines += ["", f"… and {len(rows) - SHOWN_FACTS} more."]
    if not rows:
        return ["## Facts", "", "The updates do not record them.", ""]
    return [*lines, ""]


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
        "The licence and the limits of the base model hold here too. An edit can change answers that nobody checked: "
        "see the report that came with the update for what was measured.",
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
