"""What the gate measures on sound and on bad edits: the numbers behind its default limits.

    python benchmarks/gate_sound.py --out edits
    python benchmarks/gate_bad.py --out edits
    python benchmarks/gate.py --edits edits --held-out --out benchmarks/results/gate_edits.jsonl

    python benchmarks/gate.py --edits edits --firing --out benchmarks/results/gate_firing.jsonl

One line for each edit, with every check that needs no records (what an edit is for is measured where it is made), each
kind of canary text, and with `--held-out` the kinds of `benchmarks/data/gate_texts.jsonl`, which the gate never sees. A
run that is taken up measures only what is missing. `--only NAME ...` takes some edits, in that order. `--table FILE`
prints such a file as Markdown; what is over its limit for so many facts is bold. `--firing` measures `text_firing`
alone, over all kinds of text, in two seconds an edit.
`benchmarks/results/gate.jsonl` is of an earlier gate, which had no texts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gate_bad import load_edit
from benchmarks.machine import describe_machine
from emendo import EditSession, ModelUpdate, load
from emendo.evaluate import Snapshot
from emendo.gate import GateConfig, default_config, reference_snapshot, run_gate
from emendo.gate.canaries import PACKAGED, read_canaries
from emendo.gate.firing import fact_firings

HELD_OUT = Path(__file__).parent / "data" / "gate_texts.jsonl"
WITHOUT_RECORDS = ("efficacy", "paraphrase", "neighborhood_flips", "neighborhood_lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=Path, help="As gate_sound.py and gate_bad.py wrote them.")
    parser.add_argument("--only", nargs="*", help="Names such as sound/10-0; default: all.")
    parser.add_argument("--held-out", action="store_true", help="Also read texts that the gate does not have.")
    parser.add_argument("--firing", action="store_true", help="Only how far single facts fire.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="Print the rows of a file, and do nothing else.")
    args = parser.parse_args()
    if args.table is not None:
        print(markdown([json.loads(line) for line in args.table.read_text(encoding="utf-8").splitlines()[1:]]))
        return
    if args.edits is None or args.out is None:
        parser.error("--edits and --out are needed")
    known = {json.loads(line).get("edit") for line in args.out.open(encoding="utf-8")} if args.out.exists() else set()
    every = sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in args.edits.glob("*/*/records.jsonl"))
    names = [name for name in args.only or every if name not in known]
    session = EditSession(load("demo"))
    if args.firing:
        with args.out.open("a", encoding="utf-8") as stream:
            for name in names:
                updates, records = load_edit(args.edits / name)
                row = {"edit": name, "facts": len(records), "firing": firing(session, updates)}
                print(json.dumps(row, ensure_ascii=False), file=stream, flush=True)
        return
    gates = [default_gate(), *([held_out_gate()] if args.held_out else [])]
    befores = [reference_snapshot(session, [], gate) for gate in gates]
    with args.out.open("a", encoding="utf-8") as stream:
        if not known:
            print(json.dumps({"machine": describe_machine(), "model": session.lm.name}), file=stream)
        for name in names:
            updates, records = load_edit(args.edits / name)
            row = {"edit": name, "facts": len(records), **measured(session, updates, gates, befores)}
            print(json.dumps(row, ensure_ascii=False), file=stream, flush=True)


def default_gate() -> GateConfig:
    """The default gate without what needs records."""
    config = default_config()
    return config.model_copy(update={"checks": config.checks.model_copy(update=dict.fromkeys(WITHOUT_RECORDS))})


def held_out_gate() -> GateConfig:
    """Only the texts that the gate does not have."""
    checks = default_config().checks
    text = {name: check if name.startswith("text_") else None for name, check in checks}
    config = default_config()
    canaries = config.canaries.model_copy(update={"files": [str(HELD_OUT)]})
    return config.model_copy(update={"checks": checks.model_copy(update=text), "canaries": canaries})


def measured(
    session: EditSession, updates: Sequence[ModelUpdate], gates: Sequence[GateConfig], befores: Sequence[Snapshot]
) -> dict[str, Any]:
    """What the gates measure on an edit."""
    reports = [run_gate(session, updates, [], gate, before=before) for gate, before in zip(gates, befores, strict=True)]
    row: dict[str, Any] = {
        "checks": {check.name: check.measured for check in reports[0].checks},
        "moved_most": reports[0].moved_most,
        "seconds": reports[0].seconds,
    }
    for kind, report in zip(("texts", "held_out"), reports, strict=False):
        row[kind] = {
            topic.topic: {"ratio": topic.ratio, "kl": topic.kl, "flipped": topic.flipped, "confident": topic.confident}
            for topic in report.topics
        }
    return row


def firing(session: EditSession, updates: Sequence[ModelUpdate]) -> list[dict[str, Any]]:
    """The facts that fire most, on all packaged kinds of text; none of updates that do not keep them apart."""
    texts = read_canaries([PACKAGED]).texts
    with session.preview(updates) as lm:
        return [asdict(one) for one in fact_firings(lm, updates, texts, [text.topic for text in texts])]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The measured checks as a table."""
    checks = default_gate().checks.declared()
    lines = [f"| edit | facts | {' | '.join(f'`{name}`' for name in checks)} |", "|---" * (2 + len(checks)) + "|"]
    for row in rows:
        cells = []
        for name, check in checks.items():
            value = row["checks"].get(name)
            told = "–" if value is None else f"{value:{'.4f' if 'perplexity' in name else '.3g'}}"
            cells.append(f"**{told}**" if value is not None and value > check.limit_for(row["facts"]) else told)
        lines.append(f"| {row['edit']} | {row['facts'] or '–'} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
