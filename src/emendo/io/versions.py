"""What is recorded with every result: the versions that can change a number."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__version__ = "0.1.0"
"""Of Emendo; the build reads it here."""


def versions() -> dict[str, str]:
    """Versions of Emendo, Python and the libraries that compute."""
    found = {"emendo": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "safetensors", "numpy"):
        found[package] = _installed(package)
    return found


@cache
def _installed(package: str) -> str:
    """Looked up once: every plan records it, and the files that say it are long."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


_KERNELS = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that choose the kernels of a product."""


def processor(device: str) -> dict[str, str]:
    """What computes: instruction set, math libraries, kernel choice and accelerator, on which the last bits depend.

    Args:
        device: Where the model is, such as ``"cpu"`` or ``"cuda:0"``.
    """
    import torch

    libraries = [
        line.removeprefix("  - ").split(" (Git Hash")[0]
        for line in torch.__config__.show().splitlines()
        if any(name in line for name in ("Math Kernel Library Version", "MKL-DNN", "BLAS_INFO"))
    ]
    libraries = [line if "BLAS_INFO" not in line else line.split("BLAS_INFO=")[1].split(",")[0] for line in libraries]
    found = {
        "machine": platform.machine(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "math_libraries": "; ".join(libraries),
        "kernel_choice": " ".join(_chosen_kernels()) or "default",
        "matmul_precision": "highest",  # pinned where numbers are made (`emendo.solve.numerics`)
    }
    if device.startswith("cuda"):
        found["accelerator"] = torch.cuda.get_device_name(device)
        found["cuda"] = f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return found


def _chosen_kernels() -> list[str]:
    """What chooses other kernels than usual: variables that are set, and switches that are not as torch has them."""
    variables = [f"{name}={os.environ[name]}" for name in _KERNELS if name in os.environ]
    usual = {"mkldnn": True}
    switched = [name for name, value in kernel_switches().items() if value != usual.get(name, False)]
    return [*variables, *(f"{name}={'off' if name in usual else 'on'}" for name in switched)]


def kernel_switches() -> dict[str, bool]:
    """Torch's switches that choose kernels and that a machine may need as they are."""
    import torch

    backends: Any = torch.backends
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "mkldnn": backends.mkldnn.enabled,
        "mkldnn_deterministic": backends.mkldnn.deterministic,
        "cudnn_deterministic": backends.cudnn.deterministic,
    }


def set_kernel_switches(switches: Mapping[str, bool]) -> None:
    """Take over the switches of another process."""
    import torch

    backends: Any = torch.backends
    torch.use_deterministic_algorithms(switches["deterministic"])
    backends.mkldnn.enabled = switches["mkldnn"]
    backends.mkldnn.deterministic = switches["mkldnn_deterministic"]
    backends.cudnn.deterministic = switches["cudnn_deterministic"]
