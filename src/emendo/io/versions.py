"""What is recorded with every result: the versions that can change a number."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

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
        "kernel_choice": " ".join(f"{name}={os.environ[name]}" for name in _KERNELS if name in os.environ) or "default",
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.startswith("cuda"):
        found["accelerator"] = torch.cuda.get_device_name(device)
        found["cuda"] = f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return found
