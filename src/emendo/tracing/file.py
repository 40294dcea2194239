"""`trace.safetensors`: any number of traced facts in one file, with everything that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from emendo.arguments import checked
from emendo.errors import TraceError
from emendo.io.tensor_file import TensorFileFormat, read_tensor_file, write_tensor_file
from emendo.tracing.result import FactTrace, KindTrace, Trace

FORMAT = TensorFileFormat(
    name="emendo.trace",
    version=1,
    error=TraceError,
    remedy="trace the facts again (emendo trace)",
    destination="choose another folder (--out)",
)
_FIELDS = ("prompt", "subject", "answer", "said", "tokens", "begin", "end", "high", "checked")
_PARTS = ("scores", "spread", "state")


@checked
def write_trace(path: Path, trace: Trace) -> Path:
    """Write a trace; the file appears whole or not at all.

    Tokens of all facts stand one below the other: ``KIND/scores``, ``KIND/spread`` and ``KIND/state`` are
    ``[tokens, layers]``, ``offsets [facts + 1]`` says where each fact begins, and ``low [facts, samples]`` holds the
    scores of the corrupted runs, with NaN where a fact has fewer samples.

    Raises:
        OutputError: The folder cannot be written.
    """
    offsets = np.cumsum([0, *(len(fact.tokens) for fact in trace.facts)])
    widest = max((len(fact.low) for fact in trace.facts), default=0)
    low = np.full((len(trace.facts), widest), np.nan)
    for row, fact in zip(low, trace.facts, strict=True):
        row[: len(fact.low)] = fact.low
    tensors = {"offsets": torch.from_numpy(offsets), "low": torch.from_numpy(low)}
    for kind in trace.kinds if trace.facts else ():
        for part in _PARTS:
            rows = np.concatenate([getattr(fact.grids[kind], part) for fact in trace.facts])
            tensors[f"{kind}/{part}"] = torch.from_numpy(np.ascontiguousarray(rows))
    header = {
        "made": trace.made,
        "facts": [_row(fact) for fact in trace.facts],
        "skipped": [list(pair) for pair in trace.skipped],
    }
    return write_tensor_file(path, FORMAT, tensors, header)


@checked
def read_trace(path: Path | str) -> Trace:
    """Read and verify a trace.

    Raises:
        TraceError: The file is missing, damaged, or something else.
    """
    path = Path(path)
    tensors, header = read_tensor_file(path, FORMAT)
    try:
        return _from_file(tensors, header)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise TraceError(f"{str(path)!r} is not a whole trace ({error}); {FORMAT.remedy}") from error


def _row(fact: FactTrace) -> dict[str, Any]:
    row = {name: getattr(fact, name) for name in _FIELDS}
    return {**row, "tokens": list(fact.tokens)}


def _from_file(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> Trace:
    made, rows, offsets = header["made"], header["facts"], tensors["offsets"].tolist()
    low = tensors["low"].numpy()
    if len(offsets) != len(rows) + 1 or len(low) != len(rows):
        raise ValueError(f"it has {len(rows)} facts, and offsets for {len(offsets) - 1}")
    facts = []
    for number, row in enumerate(rows):
        at = slice(offsets[number], offsets[number + 1])
        grids = {
            kind: KindTrace(*(tensors[f"{kind}/{part}"][at].numpy() for part in _PARTS))
            for kind in made["settings"]["kinds"]
        }
        own = low[number][np.isfinite(low[number])]
        values = {name: row[name] for name in _FIELDS if name != "tokens"}
        facts.append(FactTrace(tokens=tuple(row["tokens"]), low=own, grids=grids, **values))
    return Trace(tuple(facts), made, tuple((str(text), str(why)) for text, why in header["skipped"]))
