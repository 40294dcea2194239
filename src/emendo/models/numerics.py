"""Torch's global state, pinned where numbers are made: a notebook's defaults are no part of a seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def pinned() -> Iterator[None]:
    """Torch's own defaults inside, and the caller's again afterwards, also after an error.

    Default dtype float32, default device CPU, no autocast, gradients on (what needs none turns them off itself), no
    inference mode, and products of float32 in float32. The default dtype and that precision are one for the process: a
    thread that sets them meanwhile takes part in it.
    """
    before = torch.get_default_dtype()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, before)
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        if torch.get_default_device().type != "cpu":  # entering it costs something at every call of torch
            stack.enter_context(torch.device("cpu"))
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield
