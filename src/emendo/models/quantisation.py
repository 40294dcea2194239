"""Loading a model in few bits: the names of the ways, and their libraries."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from emendo.errors import InputError
from emendo.io.extras import pip_install
from emendo.models.declared import GROWTH
from emendo.models.packed_weights import REPACKING
from emendo.models.quantised_kinds import method_of

FEW_BITS_GROWTH = 16
"""Bytes in memory for each byte of the files, at most, of a model that is described in float32 and kept in 4 bits."""


@dataclass(frozen=True)
class LoadIn:
    """A way to load a model in few bits.

    Args:
        package: The library that does it.
        config: What transformers takes for it, by the dtype of the rest.
        says: What it is, for lists.
    """

    package: str
    config: Callable[[torch.dtype], Any]
    says: str


def _four_bits(kind: str) -> Callable[[torch.dtype], Any]:
    return lambda dtype: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=dtype)


def _torchao(name: str) -> Callable[[torch.dtype], Any]:
    def config(dtype: torch.dtype) -> Any:
        from torchao import quantization

        return TorchAoConfig(getattr(quantization, name)())

    return config


WAYS: dict[str, LoadIn] = {
    "nf4": LoadIn("bitsandbytes", _four_bits("nf4"), "4 bits, normal floats in blocks of 64"),
    "fp4": LoadIn("bitsandbytes", _four_bits("fp4"), "4 bits, floats in blocks of 64"),
    "int8": LoadIn(
        "bitsandbytes", lambda dtype: BitsAndBytesConfig(load_in_8bit=True), "8 bits a row, inputs rounded as well"
    ),
    "torchao-int8": LoadIn("torchao", _torchao("Int8WeightOnlyConfig"), "8 bits a row, weights alone"),
    "torchao-fp8": LoadIn("torchao", _torchao("Float8WeightOnlyConfig"), "8-bit floats, weights alone"),
}
"""What `load_in` takes."""


def quantisation_named(load_in: str, dtype: torch.dtype | None) -> Any:
    """What transformers takes to load a model in few bits.

    Args:
        load_in: A name of `WAYS`.
        dtype: Of everything that is not quantised, and of the products; None: float32.

    Raises:
        InputError: Unknown name, or its package is not installed.
    """
    if load_in not in WAYS:
        raise InputError(f"unknown load_in {load_in!r}; expected one of {', '.join(WAYS)} (--load-in)")
    check_package(WAYS[load_in].package, f"loading a model in {load_in}")
    return WAYS[load_in].config(dtype or torch.float32)


def check_package(package: str, what: str) -> None:
    """Refuse what needs a library that is not there.

    Raises:
        InputError: Names the extra.
    """
    missing = [name for name in (package, "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{what} needs the package {' and '.join(missing)}: {pip_install('quantised')}")


class FewBits:
    """What loading does otherwise where a model is in few bits, or shall be.

    Args:
        load_in: A name of `WAYS`; None for a model as its files have it.
        target: The device; None where a map of devices is given.

    Raises:
        InputError: Unknown name, or its package is not installed.
    """

    def __init__(self, load_in: str | None, target: torch.device | None) -> None:
        self._load_in, self._target = load_in, target
        if load_in is not None:
            quantisation_named(load_in, None)

    def options(self, options: dict[str, Any], config: Any, name: str) -> dict[str, Any]:
        """What transformers takes: a model in few bits is made on its device, as it cannot be cast later.

        Raises:
            InputError: The files are in few bits already, or their package is not installed.
        """
        method = method_of(config)
        if method is not None:
            check_package(method, f"{name!r}, whose weights are quantised by it,")
            if self._load_in is not None:
                raise InputError(
                    f"found load_in {self._load_in!r} for {name!r}, whose files hold quantised weights ({method}) "
                    "already; leave it out (--load-in)"
                )
        elif self._load_in is None:
            return options
        else:
            dtype = options.get("dtype") or getattr(config, "dtype", None)
            options = {**options, "quantization_config": quantisation_named(self._load_in, dtype)}
        return options if self._target is None else {**options, "device_map": {"": self._target}}

    def growth(self, config: Any) -> int:
        """Bytes that a model described by its configuration may have for each byte of its files."""
        return GROWTH if method_of(config) is None else FEW_BITS_GROWTH

    def refuse_gguf(self, name: str) -> None:
        """Refuse to quantise what is read from a GGUF file.

        Raises:
            InputError: It was asked for.
        """
        if self._load_in is not None:
            raise InputError(
                f"found load_in {self._load_in!r} for {name!r}; a GGUF file has few bits of its own, which are read as "
                "the numbers that they stand for. Leave it out (--load-in), or give a folder"
            )

    def settled(self, model: Any) -> bool:
        """Whether a loaded model is in few bits; its bytes then stay what they are, and casts are told of once."""
        method = method_of(model.config)
        for module in model.modules() if method is not None else ():
            if hasattr(module, REPACKING):
                setattr(module, REPACKING, False)
        logger = logging.getLogger("bitsandbytes.autograd._functions")
        if method == "bitsandbytes" and not any(isinstance(entry, _Once) for entry in logger.filters):
            logger.addFilter(_Once())
        return method is not None


class _Once(logging.Filter):
    """Lets every message through one time: bitsandbytes tells of a cast of inputs in every layer of every pass."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is new."""
        new = record.getMessage() not in self._seen
        self._seen.add(record.getMessage())
        return new
