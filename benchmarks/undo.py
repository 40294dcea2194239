"""Algebraic removal of one edit against replay: how far apart they are, and how much faster the one is.

Makes facts one after another, takes one of them out by replay (the later ones are planned again), by algebra
(`emendo.updates.without`), and by plain subtraction of its ΔW for comparison:

    python benchmarks/undo.py --remove 3 --out benchmarks/results/undo.json

Replay is one reference; the other is replay that keeps the targets of the first time, so that only forward passes and
solves are made again. The algebra keeps those targets too: what parts it from the second reference is its linear model,
and what parts the two references is the target search, which ends elsewhere when it starts elsewhere. *apart* is
‖ΔW − ΔW_reference‖_F / ‖ΔW_reference‖_F of each layer's total; probabilities are those of the edited facts' targets at
their own prompts, the geometric mean over tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine, gemm_gflops
from emendo import EditableModel, EditRequest, EditSession, ModelUpdate, load, read_records
from emendo.editing.value_search import FoundValues, search_values
from emendo.evaluate import score_targets
from emendo.methods import MethodConfig, ResolvedMethod
from emendo.solve import PreparedLayer, prepare
from emendo.statistics import obtain_for_method
from emendo.updates.fold import fold
from emendo.updates.predecessors import Predecessors
from emendo.updates.removal import metric_layers, without
from emendo.updates.update import merge_layers

FACTS = Path(__file__).parent / "data" / "dev_facts.jsonl"


def edited(session: EditSession, requests: Sequence[EditRequest], method: str) -> tuple[list[ModelUpdate], list[float]]:
    """Plan and apply, one request after another; the updates and the seconds of each plan."""
    updates, seconds = [], []
    for request in requests:
        begin = time.perf_counter()
        updates.append(session.plan([request], method).update)
        seconds.append(time.perf_counter() - begin)
        session.apply(updates[-1])
    return updates, seconds


@contextmanager
def kept_targets(known: dict[tuple[str, int], FoundValues]) -> Iterator[None]:
    """Inside the context a target that was once searched is not searched again."""

    def remembered(lm: EditableModel, requests: Sequence[EditRequest], contexts: Any, layer: int, *rest: Any) -> Any:
        key = " | ".join(request.text for request in requests), layer
        if key not in known:
            known[key] = search_values(lm, requests, contexts, layer, *rest)
        return known[key]

    with patch("emendo.editing.edit_run.search_values", remembered):
        yield


def chained(updates: Sequence[ModelUpdate]) -> list[ModelUpdate]:
    """The same updates as a sequence of their own."""
    chain: list[ModelUpdate] = []
    for update in updates:
        chain.append(replace(update, preceding=Predecessors.of(one.id for one in chain)))
    return chain


def replayed(
    session: EditSession, before: Sequence[ModelUpdate], requests: Sequence[EditRequest], method: str
) -> tuple[list[ModelUpdate], list[float]]:
    """The updates before, and the requests planned again on top of them, from the unedited model on."""
    session.rollback()
    for update in before:
        session.apply(update)
    again, seconds = edited(session, requests, method)
    return [*before, *again], seconds


def prepared(session: EditSession, config: MethodConfig) -> tuple[dict[int, PreparedLayer], str]:
    """The metrics of a method's layers, and the fingerprint of their moments; the session is rolled back."""
    session.rollback()
    moments, record = obtain_for_method(session.lm, config.written_layers, config.moments, seed=session.seed)
    return {layer: prepare(moment, config.preservation) for layer, moment in moments.items()}, record["fingerprint"]


def totals(updates: Sequence[ModelUpdate]) -> dict[int, torch.Tensor]:
    """ΣΔW by layer, float64."""
    merged = merge_layers([part for update in updates for part in update.layers])
    return {part.layer: part.residuals.double().T @ part.dual_keys.double() for part in merged}


def apart(found: dict[int, torch.Tensor], reference: dict[int, torch.Tensor]) -> dict[str, float]:
    """Relative Frobenius distance by layer, and of all layers together."""
    square = {layer: float((found[layer] - wanted).square().sum()) for layer, wanted in reference.items()}
    size = {layer: float(wanted.square().sum()) for layer, wanted in reference.items()}
    rows = {str(layer): math.sqrt(square[layer] / size[layer]) for layer in reference}
    return {**rows, "all": math.sqrt(sum(square.values()) / sum(size.values()))}


def probabilities(session: EditSession, updates: Sequence[ModelUpdate], requests: Sequence[EditRequest]) -> list[float]:
    """Of each request's target, with the updates in the model and nothing else."""
    session.rollback()
    for update in updates:
        session.apply(update)
    scores = score_targets(session.lm, [(request.text, request.target) for request in requests])
    session.rollback()
    return [score.probability for score in scores]


def timed(work: Any, repeats: int) -> tuple[Any, float]:
    """The result, and the median of the seconds it took."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begin)
    return result, statistics.median(seconds)


def measure(session: EditSession, requests: Sequence[EditRequest], method: str, index: int) -> dict[str, Any]:
    """One removal, both ways."""
    resolved = session.resolve(method)
    assert isinstance(resolved, ResolvedMethod)
    targets: dict[tuple[str, int], FoundValues] = {}
    with kept_targets(targets):
        updates, plan_seconds = edited(session, requests, method)
    begin = time.perf_counter()
    metrics, fingerprint = prepared(session, resolved.config)
    prepare_seconds = time.perf_counter() - begin
    needed = {layer: metrics[layer] for layer in metric_layers(updates, index)}
    algebraic, seconds = timed(lambda: without(updates, index, needed, fingerprint=fingerprint), 5)

    again, replay_seconds = replayed(session, updates[:index], requests[index + 1 :], method)
    with kept_targets(targets):
        same, same_seconds = replayed(session, updates[:index], requests[index + 1 :], method)
    kept = [request for number, request in enumerate(requests) if number != index]
    ways = {
        "replay": again,
        "replay, same targets": same,
        "algebraic": algebraic,
        "subtracted": chained([update for number, update in enumerate(updates) if number != index]),
        "not removed": updates,
    }
    sums = {name: totals(found) for name, found in ways.items()}
    folded = fold(algebraic)
    removed_before = probabilities(session, [], [requests[index]])[0]
    return {
        "removed": index,
        "method": resolved.to_dict()["name"],
        "layers": list(resolved.config.written_layers),
        "seconds": {
            "plan_each": plan_seconds,
            "replay": sum(replay_seconds),
            "replay, same targets": sum(same_seconds),
            "algebraic": seconds,
            "metrics": prepare_seconds,
            "ratio": sum(replay_seconds) / seconds,
            "ratio_with_metrics": sum(replay_seconds) / (seconds + prepare_seconds),
        },
        "apart": {
            reference: {name: apart(found, sums[reference]) for name, found in sums.items() if name != reference}
            for reference in ("replay", "replay, same targets")
        },
        "kept_targets": {name: probabilities(session, found, kept) for name, found in ways.items()},
        "removed_target": {
            "unedited": removed_before,
            **{name: probabilities(session, found, [requests[index]])[0] for name, found in ways.items()},
        },
        "relative_change": [update.info["algebraic"]["relative_change"] for update in algebraic[index:]],
        "fold": {"rank": folded.rank, "error": folded.error, **vars(folded.sizes)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--method", default="emendo")
    parser.add_argument("--facts", type=Path, default=FACTS)
    parser.add_argument("-n", type=int, default=10, help="facts, one edit each")
    parser.add_argument("--remove", type=int, default=3, help="which edit goes, from 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    session = EditSession(load(args.model), seed=args.seed)
    requests = [record.request for record in read_records(args.facts)[: args.n]]
    result = measure(session, requests, args.method, args.remove)
    document = {
        "benchmark": "undo",
        "machine": describe_machine() | {"gemm_gflops": gemm_gflops()},
        "setting": {"model": args.model, "facts": args.facts.name, "n": args.n, "seed": args.seed},
        **result,
    }
    text = json.dumps(document, indent=2)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
