"""The digest of a large model's weights, made once on a machine.

The digest that updates and ledgers record is one SHA-256 over all bytes in turn, which one thread has to make. What it
is of can be told sooner: digests of pieces, made by a thread for each core. EMENDO_HOME keeps which digest belongs to
which pieces; so the first start takes as long as one thread does, and later ones as long as all cores do. Both are
SHA-256 of all bytes: no weight can change without either.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from emendo.errors import OutputError
from emendo.io.home import emendo_home
from emendo.io.plain_file import read_plain_text
from emendo.io.whole_file import write_json
from emendo.models.identity import named_parameters, parameters_sha256, told

SMALL = 2**28
"""Bytes of weights below which one thread is soon done, and nothing is kept."""

_PIECE = 2**26
"""Bytes of a piece: small enough that all cores end at about the same time."""

_MOST_THREADS = 16


def weights_sha256(model: nn.Module, *, folder: Path | None = None, small: int = SMALL) -> str:
    """What `parameters_sha256` gives.

    Args:
        model: The model.
        folder: Of what is known; None: ``digests`` under EMENDO_HOME.
        small: Bytes of weights below which `parameters_sha256` is asked at once.
    """
    if sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) < small:
        return parameters_sha256(model)
    folder = emendo_home() / "digests" if folder is None else folder
    with ThreadPoolExecutor(_threads()) as pool:
        key = _pieces_sha256(model, pool)
        path = folder / f"{key}.json"
        known = _read(path)
        if known is None:
            known = parameters_sha256(model)
            with suppress(OutputError):  # a home that cannot be written: it is made again at the next start
                write_json(path, {"weights_sha256": known})
        return known


def _pieces_sha256(model: nn.Module, pool: ThreadPoolExecutor) -> str:
    """SHA-256 over name, dtype and shape of every parameter and the SHA-256 of each piece of its bytes."""
    digest = hashlib.sha256(f"pieces of {_PIECE}|".encode())
    tasks = [
        (told(name, parameter), [pool.submit(_sha256, piece) for piece in _pieces(parameter.detach())])
        for name, parameter in named_parameters(model)
    ]
    for said, pieces in tasks:
        digest.update(said)
        for piece in pieces:
            digest.update(piece.result())
    return digest.hexdigest()


def _pieces(value: Tensor) -> Iterator[Tensor]:
    octets = value.contiguous().reshape(-1).view(torch.uint8)
    for begin in range(0, len(octets), _PIECE):
        yield octets[begin : begin + _PIECE]


def _sha256(piece: Tensor) -> bytes:
    return hashlib.sha256(piece.cpu().numpy().data).digest()


def _read(path: Path) -> str | None:
    """What is known of some pieces; None where nothing is, or the file says nothing."""
    try:
        found = json.loads(read_plain_text(path))["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found) else None


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)
