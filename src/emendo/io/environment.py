"""What computes: libraries, processor and choice of kernels, on which the last bits of a result depend.

It is recorded with every edit. Whoever makes a result again compares it with what computes then, and says in one line
whether bit for bit is still promised.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from emendo.io.versions import versions

NOT_RECORDED = "not recorded"
"""Of what an earlier Emendo did not look at."""

_KERNELS = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that choose the kernels of a product."""

_SHOWN = 70
"""Characters of a value that a message shows."""


def environment(device: str) -> dict[str, str]:
    """All that is compared: versions, device, threads and `processor`.

    Args:
        device: Where the model is, such as ``"cpu"`` or ``"cuda:0"``.
    """
    return {**versions(), **computing(device)}


def computing(device: str) -> dict[str, str]:
    """The same without the versions."""
    import torch

    return {"device": device, "threads": str(torch.get_num_threads()), **processor(device)}


def processor(device: str) -> dict[str, str]:
    """What computes: instruction set, math libraries, kernel choice and accelerator.

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
        here = torch.cuda.is_available()
        found["accelerator"] = torch.cuda.get_device_name(device) if here else "none"
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


def differing(was: Mapping[str, str], now: Mapping[str, str]) -> dict[str, list[str]]:
    """Where what computes now is not what computed then.

    Args:
        was: As it was recorded; what an earlier Emendo did not record counts as different, and is said.
        now: As `environment` or `computing` gives it.

    Returns:
        By name, the recorded value and the present one.
    """
    return {
        name: [was.get(name, NOT_RECORDED), now.get(name, "")]
        for name in {**now, **was}
        if was.get(name, NOT_RECORDED) != now.get(name, "")
    }


def changed_since(
    records: Iterable[Mapping[str, str]], now: Callable[[str], Mapping[str, str]] = environment
) -> dict[str, list[str]]:
    """The same for several records, each compared with what its kind of device computes with here.

    Args:
        records: As `environment` or `computing` gave them.
        now: That function.
    """
    here = cache(now)
    changed: dict[str, list[str]] = {}
    for made in records:
        device = str(made.get("device", "cpu"))
        changed |= differing(made, {**here("cuda" if device.startswith("cuda") else "cpu"), "device": device})
    return changed


def changes_in_words(changed: Mapping[str, list[str]]) -> str:
    """Differences as one line has them; empty for none.

    Args:
        changed: As `differing` gives it.
    """
    unknown = [name for name, (was, _) in changed.items() if was == NOT_RECORDED]
    told = [
        f"{name} was {_short(was)} and is {_short(now)}" for name, (was, now) in changed.items() if was != NOT_RECORDED
    ]
    return ", ".join(told + ([f"{', '.join(unknown)} not recorded"] if unknown else []))


def _short(value: object) -> str:
    text = str(value)  # a file can record anything
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
