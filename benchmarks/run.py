"""`make bench`: every benchmark, one after another, JSON into benchmarks/results/."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="CounterFact JSONL for targets and scoring")
    parser.add_argument("--quick", action="store_true", help="smaller sizes: minutes instead of a quarter of an hour")
    parser.add_argument("--large", metavar="SHAPE", help="also large_models.py with random weights: gptj-6b, llama3-8b")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    targets = ["targets.py", "--profile", *(["--data", str(args.data)] if args.data else [])]
    if args.quick:
        targets += ["--repeats", "1", "-n", "8"]
    undo = ["undo.py", *(["-n", "4", "--remove", "1"] if args.quick else [])]
    runs = [targets, ["moments.py"], ["solve.py", *(["--quick"] if args.quick else [])], undo]
    if args.data:
        runs.append(["scoring.py", "--data", str(args.data), *(["-n", "8", "--block", "4"] if args.quick else [])])
    if args.large:
        runs.append(["large_models.py", "--shape", args.large])
    for script, *rest in runs:
        name = Path(script).stem + (f"-{args.large}" if script == "large_models.py" else "")
        out = args.out / f"{name}.json"
        print(f"== {script} → {out}", file=sys.stderr)
        subprocess.run([sys.executable, str(HERE / script), *rest, "--out", str(out)], check=True)


if __name__ == "__main__":
    main()
