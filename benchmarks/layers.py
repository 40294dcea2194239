"""Does the layer that `emendo layers` recommends hold on other facts, and how long does the study take?

One study as the command runs it (32 facts, nine layers, a trace beside the sweep). Then the recommended layer, the best
and those next to it by S are edited at other facts. What is reported is how far the recommended layer is behind the
best of these there, in points of S.

    python benchmarks/layers.py --folder out/layers --out benchmarks/results/layers.json

The study's facts are packaged ones, the others are `benchmarks/data/dev_facts.jsonl`: the demo model answers all of
them, and no subject or neighbour is in both.

A run that was interrupted goes on in the folder; its time is then that of the last part of the study.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine
from emendo import load
from emendo.evaluate.layer_statistics import standing
from emendo.experiments.layer_study import StudySettings, layer_study, sweep
from emendo.report.layers import document, write_layers
from emendo.tracing.sweep import Place


def behind(places: list[Place]) -> list[dict[str, Any]]:
    """S of every place, and how far it is behind the best."""
    shares = [np.stack([place.measures[name] for name in ("ES", "PS", "NS")], axis=-1) for place in places]
    found = standing(np.stack(shares, axis=1))
    return [
        {
            "layers": place.name,
            **{name: place.scores[name] for name in ("S", "ES", "PS", "NS")},
            "relative_cost": place.relative_cost,
            "behind": gap.to_dict(),
            "cannot_be_told_from_the_best": alike,
        }
        for place, gap, alike in zip(places, found.behind, found.alike, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default=str(resources.files("emendo") / "data" / "demo_facts.jsonl"))
    parser.add_argument("--other-data", default=str(Path(__file__).parent / "data" / "dev_facts.jsonl"))
    parser.add_argument("-n", type=int, default=32, help="facts of the study")
    parser.add_argument("--others", type=int, default=64, help="other facts")
    parser.add_argument("--candidates", type=int, default=3, help="layers of highest S that are tried on them")
    parser.add_argument("--folder", type=Path, required=True, help="of both sweeps and the study's page")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    lm = load(args.model)
    settings = StudySettings(n=args.n, part="all")
    took = args.folder / "seconds.json"
    begin, begin_cpu = time.perf_counter(), time.process_time()
    study = layer_study(lm, args.data, settings, folder=args.folder)
    if not took.exists():  # a run that goes on has the time of the first only where that came so far
        took.write_text(json.dumps([time.perf_counter() - begin, time.process_time() - begin_cpu]))
    seconds, cpu = json.loads(took.read_text())
    described = document(study)
    write_layers(args.folder, described, study.trace)
    ranked = sorted(study.edited, key=lambda place: -place.scores["S"])
    tried = sorted({place.layers for place in [study.recommended, *ranked[: args.candidates]]})
    others = replace(settings, layers=tuple(layer for (layer,) in tried), n=args.others)
    swept = sweep(lm, args.other_data, others, folder=args.folder / "others")
    rows = behind(list(swept.places))
    result = {
        "model": lm.identity(),
        "data": Path(args.data).name,
        "other_data": Path(args.other_data).name,
        "settings": settings.to_dict(),
        "study": behind(list(study.edited)),
        "recommended": study.recommended.name,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "traced": len(study.trace.facts),
        "correlations": described["correlations"],
        "regret": described["regret"],
        "explained": described["explained"],
        "others": rows,
        "other_facts": len(swept.records),
        "recommended_behind_on_others": next(row["behind"] for row in rows if row["layers"] == study.recommended.name),
        "machine": describe_machine(),
    }
    print(json.dumps({name: result[name] for name in ("recommended", "recommended_behind_on_others", "cpu_seconds")}))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
