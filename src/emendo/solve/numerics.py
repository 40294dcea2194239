"""Torch's global state, pinned where numbers are made: a notebook's defaults are no part of a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_BACKENDS: Any = torch.backends  # whose stubs lack what follows

_PRODUCTS = (_BACKENDS.mkldnn.matmul, _BACKENDS.cuda.matmul)
"""What says in which precision products of float32 are made, on processors and on GPUs."""

_ATTENTION: tuple[tuple[Callable[[], bool], Callable[[bool], None]], ...] = (
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
)
"""Which kernels of scaled dot-product attention torch may choose among, on processors too; all of them by default."""


@contextmanager
def pinned(*, gradients: bool = True) -> Iterator[None]:
    """Torch's own defaults inside, and the caller's again afterwards, also after an error.

    Default dtype float32, default device CPU, no autocast, gradients on (what needs none turns them off itself), no
    inference mode, products of float32 in float32, and every kernel of attention. Default dtype, precision and kernels
    are one for the process: a thread that sets them meanwhile takes part in it. Not pinned are the number of threads,
    deterministic algorithms and oneDNN, which a machine may need as they are: ledgers record them and say where they
    differ, and workers take them over.

    Args:
        gradients: Turn gradients on and inference mode off; otherwise both are as the caller has them.
    """
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        _pin_products(stack)
        for enabled, enable in _ATTENTION:
            if not enabled():
                stack.callback(enable, False)
                enable(True)
        if torch.get_default_device().type != "cpu":  # entering it costs something at every call of torch
            stack.enter_context(torch.device("cpu"))
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        if gradients:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
        yield


def _pin_products(stack: ExitStack) -> None:
    """Float32 for products. Torch has two ways to say it, and its older getter fails where the newer one was used."""
    for products in reversed(_PRODUCTS):
        stack.callback(setattr, products, "fp32_precision", _own_precision(products))
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        before = "highest"
    stack.callback(torch.set_float32_matmul_precision, before)
    torch.set_float32_matmul_precision("highest")


def _own_precision(products: Any) -> str:
    """What was said of these products themselves; ``"none"`` where they have what all products have."""
    found = str(products.fp32_precision)
    return "none" if found == _BACKENDS.fp32_precision else found
