"""Every method on every family, with facts that the models know (`emendo worlds`).

    python benchmarks/worlds.py --out benchmarks/results/worlds.jsonl
    python benchmarks/worlds.py --table benchmarks/results/worlds.jsonl        # what is there, as Markdown

One JSON line for each family, method and mode; lines already in --out are not run again. In mode "single" each fact is
written by itself on the unedited model, scored, and taken back; in mode "batch" all facts are written together. Facts
are those of the world that the model answers (argmax), in the order of the data set, in which subjects differ. A method
that a family does not take is a line with the reason. Target searches that are equal are made once, beside --out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import emendo
from benchmarks.machine import describe_machine
from emendo.cli.options import parse_layers, parse_settings
from emendo.editing.value_cache import ValueCache
from emendo.evaluate import Snapshot, perplexity
from emendo.evaluate.aggregate import EditScores
from emendo.evaluate.answered import answered
from emendo.evaluate.metrics import RecordScore
from emendo.evaluate.probes import probe_means, probe_scores
from emendo.evaluate.said import SaidRecord, said_means
from emendo.io.versions import versions
from emendo.methods import BASELINES, method_named
from emendo.models.worlds.families import FAMILIES
from emendo.requests import EditRecord
from emendo.worlds import held_out_text, make_world

SCORES = ("ES", "PS", "NS", "EA", "PA", "NA")
MODES = {"single": 10, "batch": 20}
"""Facts of each mode."""


class Answers:
    """What a state of the model says to some facts, and to plain text."""

    def __init__(self, lm: emendo.EditableModel, records: Sequence[EditRecord]) -> None:
        asked = Snapshot(lm, records)
        self.scores: list[RecordScore] = list(asked.scored)
        self.said: list[SaidRecord] = list(asked.said)
        self.probes = list(probe_scores(lm, records).records) if any(one.probes for one in records) else []
        self.perplexity = perplexity(lm, held_out_text(make_world(), sentences=100)).value


def summary(answers: Sequence[Answers]) -> dict[str, float | None]:
    """Means over facts, in percent, and the largest perplexity of the states."""
    scores = EditScores.from_records([one for each in answers for one in each.scores], n_resamples=2)
    said = said_means([one for each in answers for one in each.said]).values
    probes = [one for each in answers for one in each.probes if one]
    hops = probe_means(probes, n_resamples=2).values["multi_hop_argmax"] if probes else None
    return {
        **{name: getattr(scores, name) for name in SCORES},
        "said": said["said"],
        "said_paraphrase": said["said_paraphrase"],
        "two_hop": hops,
        "perplexity": max(each.perplexity for each in answers),
    }


def measure(
    lm: emendo.EditableModel, run: str, mode: str, records: Sequence[EditRecord], folder: Path, *, as_is: bool
) -> dict[str, Any]:
    """Write the facts in one mode, score them, and take them back."""
    method, *pairs = run.split()
    layers, settings = (None, {}) if as_is else placed(method, lm)
    settings |= parse_settings(pairs)
    layers = parse_layers(settings.pop("layers", None)) or layers
    batches = [records] if mode == "batch" else [[record] for record in records]
    session = emendo.EditSession(lm, targets=ValueCache([record.request for record in records], folder))
    answers, seconds, memorized, lambdas = [], 0.0, [], set()
    for batch in batches:
        begin = time.process_time()
        plan = session.plan([record.request for record in batch], method, layers=layers, settings=settings)
        seconds += time.process_time() - begin
        session.apply(plan)
        answers.append(Answers(lm, method_named(method).evaluation_prompts(batch)))
        session.rollback()
        memorized += [solved.memorized for layer in plan.layers for solved in layer.solves]
        lambdas |= {plan.method.config.settings().get("preservation.weight")}
    return {
        **summary(answers),
        "memorized": sum(memorized) / len(memorized) if memorized else None,
        "lambda": sorted(value for value in lambdas if value is not None),
        "layers": list(plan.method.layers),
        "cpu_seconds": seconds,
    }


def chosen_facts(lm: emendo.EditableModel) -> list[EditRecord]:
    """The world's facts that the model answers, as many as the largest mode takes."""
    records = emendo.read_records("world")[: 2 * max(MODES.values())]
    return list(answered(lm, records)[: max(MODES.values())])


PLACE = {"target.max_norm_ratio": 4.0}
"""On every method of the engine. In six blocks facts are read off the subject early, and the clamp of large models
keeps a search from reaching its target there: both were seen on ten facts of the llama (docs/lab/worlds.md).
"""


def placed(method: str, lm: emendo.EditableModel) -> tuple[list[int] | None, dict[str, Any]]:
    """Layers and settings of a method on these shallow models; a baseline keeps its own.

    The MLP of a first block beside its attention has seen the last token of a name alone, so that two people with one
    last name have one key there.

    Args:
        method: A name of the catalogue.
        lm: A model of the world.
    """
    if method in BASELINES:
        return None, {}
    several = [1, 2] if lm.spec.parallel else [0, 1]
    return ([1] if emendo.METHODS[method].n_layers == 1 else several), dict(PLACE)


COLUMNS = (*SCORES, "said", "said_paraphrase", "two_hop")


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table for each family and mode."""
    lines = []
    for family in dict.fromkeys(row["family"] for row in rows):
        for mode in MODES:
            same = [row for row in rows if (row["family"], row["mode"]) == (family, mode)]
            if not same:
                continue
            lines += [
                f"### {family}, {same[0]['n']} facts, {'one by one' if mode == 'single' else 'one batch'}",
                "",
                "| method | " + " | ".join(COLUMNS) + " | perplexity × |",
                "|---" * (len(COLUMNS) + 2) + "|",
                *(f"| `{row['run']}` | {_cells(row)} |" for row in same),
                "",
            ]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['error'][:100]} |" + " |" * len(COLUMNS)
    cells = ["–" if row[name] is None else f"{row[name]:.0f}" for name in COLUMNS]
    return " | ".join([*cells, f"{row['perplexity'] / row['before']['perplexity']:.3f}"])


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="*", help="METHOD [layers=0-2] [NAME=VALUE ...]; default: every method and baseline"
    )
    parser.add_argument("--families", default=",".join(FAMILIES), help="separated by commas")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--as-is", action="store_true", help="layers and clamp of each method as it has them itself")
    parser.add_argument("--out", type=Path, default=Path("worlds.jsonl"))
    parser.add_argument("--table", type=Path, help="print the rows of a file as Markdown, and do nothing else")
    args = parser.parse_args()
    if args.table is not None:
        print(markdown([json.loads(line) for line in args.table.read_text(encoding="utf-8").splitlines()]))
        return
    done = set()
    if args.out.exists():
        done = {(row["family"], row["run"], row["mode"]) for row in map(json.loads, args.out.read_text().splitlines())}
    about = {"seed": 0, "commit": _commit(), "machine": describe_machine(), "versions": versions()}
    for family in args.families.split(","):
        asked = [(run, mode) for run in args.runs or [*emendo.METHODS, *BASELINES] for mode in args.modes.split(",")]
        if not (left := [(run, mode) for run, mode in asked if (family, run, mode) not in done]):
            continue
        lm = emendo.load(f"world:{family}")
        facts = chosen_facts(lm)
        before = {mode: summary([Answers(lm, facts[:n])]) for mode, n in MODES.items()}
        for run, mode in left:
            records = facts[: MODES[mode]]
            row = {"family": family, "run": run, "mode": mode, "n": len(records), "before": before[mode], **about}
            try:
                searches = args.out.with_suffix(f".{family}.targets")
                row |= measure(lm, run, mode, records, searches, as_is=args.as_is)
            except emendo.EmendoError as error:  # a failure is a result: it is reported, not left out
                row["error"] = str(error).splitlines()[0]
            with args.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            print(family, mode, run, _cells(row), flush=True)


if __name__ == "__main__":
    main()
