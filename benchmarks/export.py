"""What an edit costs on its way out: adapter against edited model, and bf16 checkpoint against bf16 base with adapter.

    python benchmarks/export.py --out benchmarks/results/export.json

The first fact, and the first ten, of `benchmarks/data/dev_facts.jsonl` are written into the demo model in float32 and
exported as an adapter and as checkpoints. Fifty prompts (of ten facts: the prompt, two paraphrases, two neighbours)
are run to logits at every position:

* float32: peft with the adapter on the base, and merged by peft, against the edited model. Only rounding may differ.
* bfloat16, against the edited model in float32: the checkpoint of `emendo export checkpoint --dtype bfloat16`; the bf16
  base with the adapter in float32 (peft's default) and in bf16 (as vLLM keeps it); and the *unedited* model in bf16
  against itself in float32, which is what bf16 costs without any edit.
* the rounding of the edit alone: the weights of the bf16 checkpoint against those of the bf16 base plus an exact ΔW,
  both computed in float32.

ES is the share of facts whose new target is more likely than the old one, EA the share whose target tokens are all the
most likely ones; both by teacher forcing on the plain prompt.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from benchmarks.machine import describe_machine
from emendo.datasets import read_records
from emendo.editing.session import EditSession
from emendo.export import write_adapter, write_checkpoint
from emendo.models import EditableModel, load
from emendo.models.alignment import align_edit
from emendo.requests import EditRecord
from emendo.updates.update import ModelUpdate

DATA = Path(__file__).parent / "data" / "dev_facts.jsonl"
BF16 = torch.bfloat16


def prompts(records: Sequence[EditRecord]) -> list[str]:
    """Five prompts of each fact."""
    return [
        text
        for record in records
        for text in (record.request.text, *record.paraphrase_prompts[:2], *record.neighborhood_prompts[:2])
    ]


def all_logits(model: Any, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits ``[positions, vocab]`` of every sequence, one at a time, so that no padding enters."""
    with torch.no_grad():
        return [model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float() for ids in sequences]


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """How far logits are from those expected, over all positions of all prompts."""
    pairs = list(zip(found, expected, strict=True))
    kl = torch.cat([(q.log_softmax(-1).exp() * (q.log_softmax(-1) - p.log_softmax(-1))).sum(-1) for p, q in pairs])
    flips = torch.cat([p.argmax(-1) != q.argmax(-1) for p, q in pairs])
    return {
        "max_abs_logit": max(float((p - q).abs().max()) for p, q in pairs),
        "mean_abs_logit": float(torch.cat([(p - q).abs().mean(-1) for p, q in pairs]).mean()),
        "mean_kl_nats": float(kl.mean()),
        "argmax_flips_percent": 100 * float(flips.float().mean()),
    }


def efficacy(model: Any, lm: EditableModel, records: Sequence[EditRecord]) -> dict[str, float]:
    """ES and EA in percent."""
    wins, hits = [], []
    for record in records:
        edit = align_edit(lm, record.request)
        old = lm.encode_bare(f" {record.target_true}")
        nll = {}
        for name, target in (("new", list(edit.target_ids)), ("old", old)):
            ids = [*edit.prompt.ids, *target]
            rows = all_logits(model, [ids])[0][len(edit.prompt.ids) - 1 : -1].log_softmax(-1)
            nll[name] = -float(rows.gather(1, torch.tensor(target)[:, None]).mean())
            if name == "new":
                hits.append(rows.argmax(-1).tolist() == target)
        wins.append(nll["new"] < nll["old"])
    return {"ES": 100 * sum(wins) / len(wins), "EA": 100 * sum(hits) / len(hits)}


def rounding(lm: EditableModel, update: ModelUpdate) -> dict[str, Any]:
    """What is left of ΔW in the weights of a bf16 checkpoint, layer by layer."""
    layers, changed, entries = [], 0, 0
    for part in update.layers:
        original, delta = lm.weight(part.layer).float(), part.delta()
        before, after = original.to(BF16), (original + delta).to(BF16)
        moved = before != after
        changed, entries = changed + int(moved.sum()), entries + moved.numel()
        left = after.float() - before.float()
        layers.append(
            {
                "layer": part.layer,
                "entries_changed_percent": 100 * float(moved.float().mean()),
                "rounding_error_over_delta": float((left - delta).norm() / delta.norm()),
                "delta_over_weight": float(delta.norm() / original.norm()),
            }
        )
    return {"entries_changed_percent": 100 * changed / entries, "layers": layers}


def sizes(update: ModelUpdate, folder: Path) -> dict[str, Any]:
    """Bytes of the update file, and of what in it."""
    path = update.save(folder / "update.safetensors")
    by_kind: dict[str, int] = {}
    for part in update.layers:
        for name, tensor in part.tensors.items():
            by_kind[name] = by_kind.get(name, 0) + tensor.nbytes
    total = path.stat().st_size
    return {"file_bytes": total, "tensor_bytes": by_kind, "header_bytes": total - update.nbytes}


def in_float32(
    lm: EditableModel, base: Callable[[str], Any], update: ModelUpdate, texts: list[list[int]], exported: Path
) -> tuple[dict[str, Any], list[Tensor]]:
    """Adapter and merged adapter against the edited model; and the edited model's logits."""
    session = EditSession(lm)
    with session.applied(update):
        edited = all_logits(lm.model, texts)
    served = PeftModel.from_pretrained(base("float32"), exported).eval()
    rows = {"adapter": distance(all_logits(served, texts), edited)}
    rows["merged_by_peft"] = distance(all_logits(served.merge_and_unload(), texts), edited)
    return rows, edited


def measure(facts: int, method: str, folder: Path) -> dict[str, Any]:
    whole_set = read_records(DATA)
    records = whole_set[:facts]
    lm = load("demo", device="cpu", dtype="float32")
    plan = EditSession(lm).plan([record.request for record in records], method)
    update = plan.update
    texts = [lm.encode(text) for text in prompts(whole_set[:10])]
    exported = write_adapter(lm, [update], folder)
    whole = write_checkpoint(lm, [update], folder / "float32")
    small = write_checkpoint(lm, [update], folder / "bfloat16", dtype="bfloat16")

    def base(dtype: str) -> Any:
        return load("demo", device="cpu", dtype=dtype).model

    unedited = all_logits(lm.model, texts)
    rows, edited = in_float32(lm, base, update, texts, exported.path)
    rows["checkpoint"] = distance(all_logits(load(whole, device="cpu").model, texts), edited)
    served = PeftModel.from_pretrained(base("bfloat16"), exported.path).eval()
    models = {
        "checkpoint_bf16": load(small, device="cpu").model,
        "bf16_base_float32_adapter": served,
    }
    rounded = load(small, device="cpu", dtype="float32").model
    exactly = PeftModel.from_pretrained(base("bfloat16").float(), exported.path).eval()
    edit_alone = distance(all_logits(rounded, texts), all_logits(exactly, texts))
    coarse = {
        name: {**distance(all_logits(model, texts), edited), **efficacy(model, lm, records)}
        for name, model in models.items()
    }
    served.to(BF16)
    coarse["bf16_base_bf16_adapter"] = {
        **distance(all_logits(served, texts), edited),
        **efficacy(served, lm, records),
    }
    with EditSession(lm).applied(update):
        exact = efficacy(lm.model, lm, records)
    return {
        "method": plan.method.to_dict()["name"],
        "facts": facts,
        "layers": [part.layer for part in update.layers],
        "prompts": len(texts),
        "positions": sum(map(len, texts)),
        "update": sizes(update, folder),
        "adapter": {"rank": exported.rank, "exact_rank": exported.exact_rank, "tensor_bytes": exported.nbytes},
        "float32_against_edited": rows,
        "float32_edited": exact,
        "float32_unedited": efficacy(lm.model, lm, records),
        "bf16_against_float32_edited": coarse,
        "bf16_unedited_against_float32_unedited": distance(all_logits(base("bfloat16"), texts), unedited),
        "rounding_of_the_edit_alone": edit_alone,
        "bf16_rounding_of_weights": rounding(lm, update),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, nargs="+", default=[1, 10], help="facts of each edit that is measured")
    parser.add_argument("--method", default="emmet")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    arguments = parser.parse_args()
    edits = []
    for facts in arguments.facts:
        with tempfile.TemporaryDirectory() as folder:
            edits.append(measure(facts, arguments.method, Path(folder)))
    report = {"machine": describe_machine(), "edits": edits}
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
