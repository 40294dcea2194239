"""What share of a residual least squares writes at each λ: of keys alone, and of a batch (docs/inside.md).

python benchmarks/strength.py --model demo --out benchmarks/results/strength.json
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import resources
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import emendo
from benchmarks.machine import describe_machine
from emendo.datasets import parse_records
from emendo.editing.contexts import prefix_contexts
from emendo.editing.keys import extract_keys
from emendo.solve.strength import fitting_scale, mean_share

LAMBDAS = (1.0, 16.0, 64.0, 100.0, 256.0, 1024.0, 4096.0, 15000.0)
SHARES = (0.8, 0.9, 0.95, 0.98)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", help="facts; default: the packaged ones, which the demo model knows")
    parser.add_argument("-n", type=int, default=30)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    packaged = resources.files("emendo") / "data" / "demo_facts.jsonl"
    records = emendo.read_records(args.data) if args.data else parse_records(packaged.read_text("utf-8"), packaged.name)
    requests = [record.request for record in records[: args.n]]
    lm = emendo.load(args.model)
    session = emendo.EditSession(lm)
    config = session.resolve("memit").config
    metrics = session.preservation(config)
    keys = extract_keys(lm, requests, prefix_contexts(lm, "memit", 0), config.written_layers, config.keys.average)
    whitened = [metric.whiten(keys[layer].mean) * config.preservation.weight**0.5 for layer, metric in metrics.items()]
    leverages = [rows.square().sum(dim=1) for rows in whitened]
    spectra = [torch.linalg.eigvalsh(rows @ rows.T) for rows in whitened]
    found = {
        "model": args.model,
        "n": len(requests),
        "layers": list(metrics),
        "d_in": lm.d_in(config.written_layers[0]),
        "median_leverage": [float(one.median()) for one in leverages],
        "alone": {f"{value:g}": mean_share(leverages, 1.0, value) for value in LAMBDAS},
        "batch": {f"{value:g}": mean_share(spectra, 1.0, value) for value in LAMBDAS},
        "chosen": {f"{share:g}": fitting_scale(leverages, 1.0, share) for share in SHARES},
        "machine": describe_machine(),
    }
    args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: found[name] for name in ("median_leverage", "alone", "batch", "chosen")}, indent=2))


if __name__ == "__main__":
    main()
