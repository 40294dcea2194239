"""How soon a model's weights are identified, by one thread and by pieces; how soon a stored second moment is read.

    python benchmarks/digests.py --gib 2 --d-in 14336 --out benchmarks/results/digests.json

The weights are random bfloat16 matrices of Llama-3-8B's shapes, as many as fill the memory asked for. The second moment
is one layer's, on a disk whose pages are in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import describe_machine
from emendo.models.checksums import row_sums
from emendo.models.digests import weights_sha256
from emendo.models.identity import parameters_sha256
from emendo.statistics import Fingerprint, MomentHeader, MomentStore, SecondMoment, read_moment
from emendo.statistics.triangle import pack_triangle, unpack_triangle


def weights(gib: float) -> nn.Module:
    """So many MLP matrices of Llama-3-8B."""
    model, made = nn.Module(), 0
    words = torch.randint(-(2**63), 2**63 - 1, (14336 * 4096 // 4,), dtype=torch.int64)
    while made < gib * 2**30:
        value = (words + made).view(torch.bfloat16).reshape(4096, 14336)
        model.register_parameter(f"w{made}", nn.Parameter(value, requires_grad=False))
        made += value.numel() * value.element_size()
    return model


def timed(call: Any) -> dict[str, float]:
    """Wall and processor seconds of a call."""
    wall, busy = time.perf_counter(), time.process_time()
    call()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - busy}


def read_a_moment(d_in: int) -> dict[str, dict[str, float]]:
    """Seconds of reading one layer, and of its parts."""
    total = torch.rand(d_in, d_in, dtype=torch.float64)
    total = total + total.T
    fingerprint = Fingerprint("w", "c", "t", "float32", {"kind": "self"}, d_in, 128, False, "float64")
    with tempfile.TemporaryDirectory() as folder:
        store = MomentStore(folder)
        path = store.put(SecondMoment(total, d_in), MomentHeader.now(fingerprint, 0, "module", "random")).path
        packed = pack_triangle(total)
        kept: list[Any] = []
        found = {
            "a moment, read and verified": timed(lambda: kept.append(read_moment(path))),
            "of it, digest": timed(lambda: hashlib.sha256(packed.numpy().data)),
            "of it, mirrored": timed(lambda: unpack_triangle(packed)),
        }
        assert torch.equal(kept[0].moment.total, total)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--d-in", type=int, default=14336)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = weights(args.gib)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    block = os.urandom(2**27)
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder)
        found: dict[str, Any] = {
            "sha256 of one thread, no tensors": timed(lambda: hashlib.sha256(block)),
            "one thread": timed(lambda: parameters_sha256(model)),
            "first start": timed(lambda: weights_sha256(model, folder=known, small=0)),
            "later start": timed(lambda: weights_sha256(model, folder=known, small=0)),
            "row sums": timed(lambda: row_sums(model)),
        }
        assert weights_sha256(model, folder=known, small=0) == parameters_sha256(model)
    del model
    moment = read_a_moment(args.d_in)
    for name, entry in found.items():
        entry["gb_per_s"] = (len(block) if "no tensors" in name else size) / entry["wall_s"] / 1e9
        print(f"{name}: {entry['wall_s']:.2f} s, {entry['gb_per_s']:.2f} GB/s, {entry['cpu_s']:.2f} s of processor")
    for name, entry in moment.items():
        print(f"{name} (d_in {args.d_in}): {entry['wall_s']:.2f} s, {entry['cpu_s']:.2f} s of processor")
    document = {
        "bytes": size,
        "d_in": args.d_in,
        "moment": moment,
        "load": os.getloadavg()[0],
        "machine": describe_machine(),
        "found": found,
    }
    if args.out is not None:
        args.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
