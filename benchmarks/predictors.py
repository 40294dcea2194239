"""How well firing, attribution and cost tell which neighbours an edit changes: areas under the ROC curve.

A batch of facts is edited; every neighbourhood prompt is asked before and after. What is known of an edit before it is
written ranks the neighbours, and the area under the ROC curve says how well: 0.5 is chance, 1 is perfect.

* firing: largest |firing| of any edit over the prompt's tokens (`emendo.attribution.strongest_firing`)
* z: the same, each edit's firing over its base rate on preserved text
* own firing, own cost: of the edit that the neighbour belongs to; its cost is ‖r‖² qᵀCq, summed over layers
* attribution: |change| of the true answer's log-probability by integrated gradients with few nodes

Attribution knows the edit's effect on the answer; the others need one forward pass up to the highest edited layer.
Neighbours of facts that are not edited can be asked as well (`--elsewhere`). Intervals resample facts with all their
neighbours.

    python benchmarks/predictors.py --data demo --elsewhere benchmarks/data/dev_facts.jsonl \
        --out benchmarks/results/predictors_demo.json
    python benchmarks/predictors.py --data counterfact.jsonl -n 64 --nodes 2 --nameless \
        --out benchmarks/results/predictors_counterfact.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine
from emendo import EditSession, load
from emendo.attribution import ask, attribute, base_rates, edits_of, reading, strongest_firing
from emendo.datasets import load_records, select
from emendo.evaluate import measure_drift, next_token_log_probs, score_targets
from emendo.evaluate.layer_statistics import draws, ranks

CHANGED_KL = 0.1
"""Nats at the next token from which on a neighbour counts as moved."""


def auc(scores: np.ndarray, changed: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a changed one ranks above an unchanged one, ties one half."""
    positive, negative = int(changed.sum()), int((~changed).sum())
    if not positive or not negative:
        return float("nan")
    return float((ranks(scores)[changed].sum() - positive * (positive - 1) / 2) / (positive * negative))


def early(scores: np.ndarray, kl: np.ndarray) -> list[dict[str, float]]:
    """How many of the neighbours that moved far stand in the first twentieth and the first fifth of a ranking."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    return [
        {
            "nats": nats,
            "moved": int((kl > nats).sum()),
            "first": (n := len(kl) // part),
            "found": int((kl[order[:n]] > nats).sum()),
        }
        for nats in (CHANGED_KL, 0.5, 1.0)
        for part in (20, 5)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", required=True, help="CounterFact with neighbours")
    parser.add_argument("-n", type=int, default=58, help="facts of the batch")
    parser.add_argument("--elsewhere", help="facts that are not edited and whose neighbours are asked as well")
    parser.add_argument("--method", default="emmet")
    parser.add_argument("--layers", type=int, nargs="+", help="default: the preset's")
    parser.add_argument("--nodes", type=int, default=4, help="points of the quadrature")
    parser.add_argument("--nameless", action="store_true", help="write no prompts: they are not ours to pass on")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    begin = time.process_time()
    lm = load(args.model)
    found = load_records(args.data).records
    records = select(found, n=args.n, part="report") if len(found) > args.n else list(found)
    others = load_records(args.elsewhere).records if args.elsewhere else []
    asked = [
        (number, prompt, record.target_true, record.request.target, record)
        for number, record in enumerate([*records, *others])
        for prompt in record.neighborhood_prompts
        if record.target_true is not None
    ]
    prompts = [prompt for _, prompt, *_ in asked]
    facts = np.array([number for number, *_ in asked])
    session = EditSession(lm)
    plan = session.plan([record.request for record in records], args.method, layers=args.layers)
    edits = edits_of([plan.update])
    if any(edit.whole for edit in edits.edits) or len(edits.edits) != len(records):
        raise SystemExit("the rows of this update are no single edits; expected a method that solves, unshaped")
    pairs = [record.request.pair(prompt, target) for _, prompt, true, new, record in asked for target in (true, new)]
    before, said = score_targets(lm, pairs), next_token_log_probs(lm, prompts)
    with session.preview([plan.update]) as edited:
        after, says = score_targets(edited, pairs), next_token_log_probs(edited, prompts)
    shift = measure_drift(said, says, n_resamples=1)
    kept = np.array([b.nll < w.nll for b, w in zip(before[::2], before[1::2], strict=True)])
    lost = np.array([b.nll >= w.nll for b, w in zip(after[::2], after[1::2], strict=True)])
    moments, _ = session.second_moments(edits.layers, plan.method.config.moments)  # type: ignore[union-attr]
    moments = {layer: moment.cpu() for layer, moment in moments.items()}
    fired = strongest_firing(lm, edits, prompts).abs().numpy()
    cost = sum(reading(edits, layer, moments[layer]).cost for layer in edits.layers)
    pulled = [attribute(lm, edits, ask(lm, prompt, true), nodes=args.nodes).by_edit for _, prompt, true, *_ in asked]
    own = facts < len(records)
    mine = np.where(own, facts, 0)
    predictors = {
        "firing": fired.max(axis=1),
        "own firing": np.where(own, fired[np.arange(len(facts)), mine], np.nan),
        "z": (fired / base_rates(edits, moments)).max(axis=1),
        "own cost": np.where(own, np.asarray(cost)[mine], np.nan),
        "attribution": np.array([abs(float(row.sum())) for row in pulled]),
    }
    outcomes = {
        "most likely token is another one": (np.array(shift.flipped), np.ones(len(facts), bool)),
        f"KL above {CHANGED_KL} nats": (np.array(shift.kl) > CHANGED_KL, np.ones(len(facts), bool)),
        "true answer no longer beats the new one": (lost, kept),
    }
    counts = draws(len(records) + len(others), 1000, 0)
    rows = []
    for outcome, (changed, asked_of) in outcomes.items():
        for name, scores in predictors.items():
            drawn, of = [], asked_of & np.isfinite(scores)
            for weights in counts:
                chosen = np.repeat(np.arange(len(facts)), weights[facts].astype(int) * of)
                drawn.append(auc(scores[chosen], changed[chosen]))
            interval = np.nanquantile(drawn, [0.025, 0.975]).tolist()
            value = auc(scores[of], changed[of])
            rows.append({"outcome": outcome, "predictor": name, "n": int(of.sum()), "auc": value, "interval": interval})
            print(f"{outcome}: {name} {value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]")
    by_size = np.corrcoef(ranks(predictors["firing"]), ranks(np.array(shift.kl)))[0, 1]
    document = {
        "model": lm.identity(),
        "data": Path(args.data).name,
        "facts": len(records),
        "neighbours": len(facts),
        "neighbours_of_edited_facts": int(own.sum()),
        "method": plan.method.to_dict(),
        "layers": edits.layers,
        "changed": {outcome: [int(changed[of].sum()), int(of.sum())] for outcome, (changed, of) in outcomes.items()},
        "auc": rows,
        "correlation_of_firing_with_kl": float(by_size),
        "early": {name: early(scores, np.array(shift.kl)) for name, scores in predictors.items()},
        "cpu_seconds": time.process_time() - begin,
        "machine": describe_machine(),
        "each": [
            {
                "fact": int(fact),
                **({} if args.nameless else {"prompt": prompt}),
                "kl": float(f"{kl:.4g}"),
                **{outcome: bool(changed[i]) for outcome, (changed, _) in outcomes.items()},
                "true answer was preferred": bool(kept[i]),
                **{name: float(f"{v[i]:.4g}") if np.isfinite(v[i]) else None for name, v in predictors.items()},
            }
            for i, (fact, prompt, kl) in enumerate(zip(facts, prompts, shift.kl, strict=True))
        ],
    }
    print(json.dumps({name: document[name] for name in ("changed", "correlation_of_firing_with_kl", "cpu_seconds")}))
    if args.out:
        each = document.pop("each")
        text = json.dumps(document, indent=1)[:-2]
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in each)  # type: ignore[attr-defined]
        args.out.write_text(f'{text},\n "each": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
