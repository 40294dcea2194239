"""The demo facts asked in chat and as raw text, after edits that were made as raw text, in chat, or as both.

python benchmarks/chat.py --out benchmarks/results/chat.jsonl
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import emendo
from emendo.datasets import parse_records
from emendo.editing.value_cache import remembered_targets
from emendo.evaluate import generation_scores, said_means, said_records, score_records
from emendo.evaluate.aggregate import EditScores
from emendo.evaluate.held_out import packaged_perplexity
from emendo.requests import EditRecord, same_text

ANSWER_TOKENS = 12
NEIGHBORS = 2
"""Neighbors of each fact whose answers are generated; scores are over all of them."""


@dataclass(frozen=True)
class Edit:
    """How the facts are written.

    Attributes:
        name: Of the row.
        forms: Which requests: ``"raw"`` prompts, chat ``"questions"``, or both.
        scheme: `contexts.scheme`; None: the method's own.
    """

    name: str
    forms: tuple[str, ...]
    scheme: str | None = None


EDITS = (
    Edit("no edit", ()),
    Edit("raw prompts", ("raw",)),
    Edit("raw prompts, chat", ("raw",), "chat"),
    Edit("raw prompts, chat+raw", ("raw",), "chat+raw"),
    Edit("questions", ("questions",)),
    Edit("questions, chat", ("questions",), "chat"),
    Edit("questions, chat+raw", ("questions",), "chat+raw"),
    Edit("raw prompts and questions", ("raw", "questions")),
)


def packaged(name: str) -> list[EditRecord]:
    """The records of a packaged file."""
    return parse_records((resources.files("emendo") / "data" / name).read_text(encoding="utf-8"), name)


def answers(lm: emendo.EditableModel, records: Sequence[EditRecord]) -> dict[str, Any]:
    """What is generated in chat: shares that hold the new answer, and every neighbor's answer with its truth."""
    records = [
        replace(record, paraphrase_prompts=(), neighborhood_prompts=record.neighborhood_prompts[:NEIGHBORS])
        for record in records
    ]
    found = generation_scores(lm, records, chat=True, new_tokens=ANSWER_TOKENS, n_resamples=10)
    return {
        "new": [record.efficacy[0].contained for record in found.records],
        "neighbors": [answer.contained for record in found.records for answer in record.neighborhood],
        "texts": [record.efficacy[0].text for record in found.records],
    }


def scores(lm: emendo.EditableModel, records: Sequence[EditRecord]) -> dict[str, Any]:
    """Percent of the usual scores, and of what is said."""
    scored = EditScores.from_records(score_records(lm, records), n_resamples=10).to_dict()
    said = said_means(said_records(lm, records)).values
    return {name: scored[name] for name in ("ES", "PS", "NS", "EA", "PA", "NA")} | {"said": said["said"]}


def measured(lm: emendo.EditableModel, records: dict[str, list[EditRecord]]) -> dict[str, Any]:
    """Everything that is asked of one state of the model."""
    return {
        "chat": answers(lm, records["questions"]),
        "scores": {form: scores(lm, found) for form, found in records.items()},
        "perplexity": packaged_perplexity(lm).value,
    }


def main() -> None:
    """Append one line of JSON for each edit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--edits", nargs="+", default=[edit.name for edit in EDITS])
    parser.add_argument("--facts", type=int, default=58, help="How many of the facts, from the first.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="emendo")
    chosen = parser.parse_args()
    lm = emendo.load("demo")
    files = {"raw": "demo_facts.jsonl", "questions": "demo_questions.jsonl"}
    records = {form: packaged(name)[: chosen.facts] for form, name in files.items()}
    for raw, asked in zip(records["raw"], records["questions"], strict=True):
        assert same_text(raw.request.target) == same_text(asked.request.target)
    known = {edit.name: edit for edit in EDITS}
    for edit in (known[name] for name in chosen.edits):
        row: dict[str, Any] = {"edit": edit.name, "method": chosen.method, "seed": chosen.seed, "facts": chosen.facts}
        if edit.forms:
            requests = [record.request for form in edit.forms for record in records[form]]
            settings = {} if edit.scheme is None else {"contexts.scheme": edit.scheme}
            targets = remembered_targets(requests)
            session = emendo.EditSession(lm, seed=chosen.seed, targets=targets)
            begin = time.process_time()
            plan = session.plan(requests, chosen.method, settings=settings)
            row["cpu_seconds"] = round(time.process_time() - begin, 1)
            row["searched"], row["found_searched"], row["requests"] = targets.searched, targets.shared, len(requests)
            row["steps"] = [len(trace.losses) for trace in plan.targets]
            row["contexts"] = plan.update.info["contexts"]
            row["relative_norms"] = [layer.relative_norm for layer in plan.layers]
            with session.preview([plan.update]) as edited:
                row |= measured(edited, records)
        else:
            row |= measured(lm, records)
        with chosen.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(row["edit"], row.get("cpu_seconds"), sum(row["chat"]["new"]), flush=True)


if __name__ == "__main__":
    main()
