"""Edits of the demo model in few bits, and inside its own 4-bit GGUF file; one JSON line a run goes to --out.

``bases`` edits the demo facts in one batch on a base as it is loaded, and scores them with the edit beside the base.
``in-place`` writes edits of 1, 10 and all facts into the demo's GGUF file on its own grid, with error feedback and by
nearest rounding, and scores what the file computes.

    python benchmarks/quantised.py bases --out benchmarks/results/quantised.jsonl float32 nf4 int8 torchao-int8
    python benchmarks/quantised.py in-place --out benchmarks/results/quantised_in_place.jsonl
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import gguf
import torch

import emendo
from emendo.editing.value_cache import ValueCache
from emendo.evaluate import evaluate_records, packaged_text, perplexity
from emendo.export import write_adapter, write_gguf_in_place
from emendo.export.gguf_names import down_projection
from emendo.models.demo import demo_gguf
from emendo.models.packed_weights import weight_parts

DEMO_FACTS = Path(emendo.__file__).parent / "data" / "demo_facts.jsonl"
SCORES = ("ES", "PS", "NS", "S", "EA", "PA")


def scored(lm, records) -> dict[str, float]:
    found = evaluate_records(lm, records).scores
    scores = {name: round(getattr(found, name), 3) for name in SCORES}
    return {**scores, "perplexity": round(perplexity(lm, packaged_text()).value, 4)}


def stored(lm) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().as_subclass(torch.Tensor).clone() for name, tensor in weight_parts(lm.model)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def logits(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits.float()


def through_peft(name: str | None, plan, lm, ids: list[int], edited: torch.Tensor) -> float:
    """Largest difference of logits between the edited model and the adapter over the same base, through peft."""
    import peft

    with tempfile.TemporaryDirectory() as folder:
        adapter = write_adapter(lm, [plan.update], folder)
        other = emendo.load("demo", device="cpu", load_in=name)
        wrapped = peft.PeftModel.from_pretrained(other.model, str(adapter.path)).eval()
        return float((logits(wrapped, ids) - edited).abs().max())


def base_run(name: str, records, multiple: float) -> dict[str, object]:
    load_in = None if name == "float32" else name
    begin = time.perf_counter()
    lm = emendo.load("demo", device="cpu", load_in=load_in)
    loaded = time.perf_counter() - begin
    session = emendo.EditSession(lm)
    bytes_before = stored(lm)
    modules = [lm.down_projection(layer) for layer in range(lm.n_layers)]
    before = scored(lm, records)
    begin = time.perf_counter()
    plan = session.plan([record.request for record in records], "emmet", settings={"moments.multiple": multiple})
    planned = time.perf_counter() - begin
    ids = lm.encode(records[0].request.text)
    unedited = logits(lm.model, ids)
    session.apply(plan.update)
    edited, after = logits(lm.model, ids), scored(lm, records)
    untouched = load_in is None or same(bytes_before, stored(lm))
    session.rollback()
    row = {
        "run": "base",
        "base": name,
        "n": len(records),
        "layers": [layer.layer for layer in plan.layers],
        "before": before,
        "after": after,
        "base_bytes_untouched": untouched,
        "objects_back": all(lm.down_projection(layer) is module for layer, module in enumerate(modules)),
        "bytes_back": same(bytes_before, stored(lm)),
        "edit_moves_logits_by": float((edited - unedited).abs().max()),
        "peft_against_edited": through_peft(load_in, plan, lm, ids, edited),
        "load_seconds": round(loaded, 1),
        "plan_seconds": round(planned, 1),
    }
    return row


def in_place_runs(records, counts: list[int], multiple: float | None):
    lm, base = emendo.load("demo", device="cpu"), demo_gguf()
    session = emendo.EditSession(lm, targets=ValueCache([record.request for record in records], optional=True))
    unedited = {n: scored(lm, records[:n]) for n in counts}
    for n in counts:
        few = records[:n]
        settings = {} if multiple is None else {"moments.multiple": multiple}
        plan = session.plan([record.request for record in few], "emmet", settings=settings)
        layers = [layer.layer for layer in plan.layers]
        resolved = session.resolve("emmet", settings=settings).on_engine()
        moments, _ = session.second_moments(layers, resolved.config.moments)
        with session.preview([plan.update]) as edited:
            exact = scored(edited, few)
        yield {"run": "in-place", "n": n, "rounding": "none (adapter)", "before": unedited[n], "after": exact}
        for rounding in ("feedback", "nearest"):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "edited.gguf"
                begin = time.perf_counter()
                done = write_gguf_in_place(lm, [plan.update], out, base=base, moments=moments, rounding=rounding)
                seconds = time.perf_counter() - begin
                read = {entry.name: entry for entry in gguf.GGUFReader(out).tensors}
                weights = {
                    layer: torch.from_numpy(gguf.quants.dequantize(entry.data, entry.tensor_type).copy())
                    for layer in layers
                    for entry in [read[down_projection(layer)]]
                }
            with lm.isolated(weights, edited=True) as edited:
                after = scored(edited, few)
            yield {
                "run": "in-place",
                "n": n,
                "rounding": rounding,
                "before": unedited[n],
                "after": after,
                "bytes_changed": done.changed,
                "bytes": done.nbytes,
                "layers": [vars(layer) for layer in done.layers],
                "seconds": round(seconds, 1),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bases", "in-place"))
    parser.add_argument("bases", nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--facts", type=Path, default=DEMO_FACTS)
    parser.add_argument("--counts", default="1,10,58")
    parser.add_argument("--multiple", type=float, default=None)
    args = parser.parse_intermixed_args()
    records = emendo.read_records(args.facts)
    if args.what == "bases":
        rows = (base_run(name, records, args.multiple or 10) for name in args.bases)
    else:
        rows = in_place_runs(records, [int(n) for n in args.counts.split(",")], args.multiple)
    with args.out.open("a", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
