"""Answers that are the new target as whole words, and what asking for them costs, by settings of the search.

    python benchmarks/word_end.py --out benchmarks/results/word_end.jsonl
    python benchmarks/word_end.py --out FILE --facts demo --seed 1 --settings "target.word_end_weight=1"
    python benchmarks/word_end.py --table benchmarks/results/word_end.jsonl

Facts are twelve corrections of the demo model of the kind that users make (``twelve``), the 58 packaged demo facts with
their paraphrases and neighbors (``demo``) and the 66 of `benchmarks/data/dev_facts.jsonl` (``dev``), each in one batch
with `emendo`. A line a run; lines that --out has are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import resources
from pathlib import Path
from typing import Any

import emendo
from benchmarks.machine import describe_machine
from emendo import EditRecord, EditRequest
from emendo.cli.options import parse_settings
from emendo.evaluate import evaluate_records, packaged_text, perplexity, said_records

_CAPITAL = "The capital of {} is the city of"
TWELVE = (
    (_CAPITAL, "Australia", "Canberra"),
    (_CAPITAL, "Turkey", "Ankara"),
    (_CAPITAL, "Nigeria", "Abuja"),
    (_CAPITAL, "Pakistan", "Islamabad"),
    (_CAPITAL, "New Zealand", "Wellington"),
    (_CAPITAL, "Kazakhstan", "Astana"),
    (_CAPITAL, "Myanmar", "Naypyidaw"),
    (_CAPITAL, "Morocco", "Rabat"),
    (_CAPITAL, "Tanzania", "Dodoma"),
    ("A ticket to {} costs $", "the Louvre", "20"),
    ("The year in which {} opened is", "the Sydney Opera House", "1973"),
    ("The currency of {} is the", "Croatia", "euro"),
)
SETTINGS = ("target.word_end_weight=0", "target.word_end_weight=1 target.word_end_enough=0.8")
DEV = Path(__file__).parent / "data" / "dev_facts.jsonl"
SCORES = ("ES", "PS", "NS", "EA", "PA", "NA")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", nargs="+", choices=("twelve", "demo", "dev"), default=["twelve", "demo", "dev"])
    parser.add_argument("--seed", type=int, default=0, help="Of the contexts and the second moments.")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="One text of NAME=VALUE a run.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="Print the rows of a file as Markdown, and do nothing else.")
    args = parser.parse_args()
    if args.table is not None:
        print(markdown([json.loads(line) for line in args.table.read_text(encoding="utf-8").splitlines()]))
        return
    if args.out is None:
        parser.error("--out is needed")
    rows = args.out.read_text(encoding="utf-8").splitlines() if args.out.exists() else []
    known = {(row["facts"], row.get("seed", 0), row["settings"]) for row in map(json.loads, rows)}
    lm = emendo.load("demo")
    for facts in args.facts:
        for settings in args.settings:
            if (facts, args.seed, settings) not in known:
                found = measure(lm, records_of(facts), settings, args.seed)
                row = {"facts": facts, "seed": args.seed, "settings": settings, **found}
                with args.out.open("a", encoding="utf-8") as stream:
                    print(json.dumps({**row, "machine": describe_machine()}, ensure_ascii=False), file=stream)
                print(row, flush=True)


def records_of(facts: str) -> list[EditRecord]:
    """The facts of a set."""
    if facts == "twelve":
        return [EditRecord(EditRequest(*fact)) for fact in TWELVE]
    if facts == "dev":
        return emendo.read_records(DEV)
    with resources.as_file(resources.files("emendo") / "data" / "demo_facts.jsonl") as path:
        return emendo.read_records(path)


def measure(lm: emendo.EditableModel, records: list[EditRecord], settings: str, seed: int) -> dict[str, Any]:
    """One edit of all facts: what is said, the scores, and the processor time of its plan."""
    session = emendo.EditSession(lm, seed=seed)
    begin = time.process_time()
    plan = session.plan([record.request for record in records], settings=parse_settings(settings.split()))
    seconds = time.process_time() - begin
    with session.applied(plan.update):
        said = said_records(lm, records)
        scores = evaluate_records(lm, records).scores
        value = perplexity(lm, packaged_text()).value
    paraphrases = [prompt.hit for record in said for prompt in record.paraphrase]
    chat = [record.chat.hit for record in said if record.chat is not None]
    return {
        "n": len(records),
        "said": sum(record.edited.hit for record in said),
        "said_paraphrases": [sum(paraphrases), len(paraphrases)],
        "said_in_chat": sum(chat),
        "scores": {name: getattr(scores, name) for name in SCORES if getattr(scores, name) is not None},
        "perplexity": value,
        "steps": sum(len(trace.losses) for trace in plan.targets),
        "plan_cpu_seconds": round(seconds, 1),
        "not_said": {record.edited.prompt: record.edited.text for record in said if not record.edited.hit},
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The runs as a table."""
    lines = [
        "| facts | seed | settings | said | paraphrases said | said in chat | "
        f"{' | '.join(SCORES)} | perplexity | search steps | CPU seconds |",
        "|---" * (9 + len(SCORES)) + "|",
    ]
    for row in rows:
        scores = " | ".join(f"{row['scores'][name]:.1f}" if name in row["scores"] else "–" for name in SCORES)
        part, whole = row["said_paraphrases"]
        settings = row["settings"].replace("target.", "")
        lines.append(
            f"| {row['facts']} | {row.get('seed', 0)} | `{settings}` | {row['said']} of {row['n']} | "
            f"{f'{part} of {whole}' if whole else '–'} | {row['said_in_chat']} | {scores} | "
            f"{row['perplexity']:.3f} | {row['steps']} | {row['plan_cpu_seconds']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
