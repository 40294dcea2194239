"""LoRA fine-tuning with peft's own layers, put into an isolated model and read out as update factors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from emendo.editing.baselines.training import TrainingTrace, train
from emendo.errors import InputError, UnsupportedModelError
from emendo.io.extras import pip_install
from emendo.methods.baselines import LoraSettings
from emendo.models import EditableModel
from emendo.progress import Progress
from emendo.requests import EditRequest
from emendo.updates.update import LayerUpdate

ADAPTER = "emendo"
"""The adapter's name inside peft while it is trained."""


def fit_lora(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    settings: LoraSettings,
    layers: Sequence[int],
    seed: int,
    progress: Progress | None = None,
) -> tuple[tuple[LayerUpdate, ...], TrainingTrace]:
    """Train low-rank adapters on the down-projections of `layers` jointly on all requests.

    Call through `fit_baseline`, which isolates the model: it is left with peft's layers in it.

    Returns:
        Updates whose factors are ``(alpha/rank · B)ᵀ [rank, d_out]`` and ``A [rank, d_in]``, and the trace.

    Raises:
        InputError: The peft package is missing.
        UnsupportedModelError: The model holds peft adapters of its own.
        NumericalError: A loss is not finite.

    Source: LoRA (arXiv 2106.09685), eq. 3.
    """
    wrapped = _wrapped(lm, settings, layers, seed)
    parameters = [part[ADAPTER].weight for layer in wrapped.values() for part in (layer.lora_A, layer.lora_B)]
    trace = train(lm, requests, parameters, settings, progress=progress)
    updates = tuple(_factors(layer, lm.module_name(layer), module) for layer, module in wrapped.items())
    return updates, trace


def _factors(layer: int, name: str, module: Any) -> LayerUpdate:
    """The factors of one trained peft layer."""
    up, down = module.lora_B[ADAPTER].weight.detach(), module.lora_A[ADAPTER].weight.detach()
    return LayerUpdate(
        layer=layer,
        module=name,
        residuals=(module.scaling[ADAPTER] * up).T.float().cpu().contiguous(),
        dual_keys=down.float().cpu().clone(),
    )


def _wrapped(lm: EditableModel, settings: LoraSettings, layers: Sequence[int], seed: int) -> dict[int, Any]:
    """The layers' down-projections inside peft's LoRA layers, by layer."""
    config_class, tuner_class = _peft()
    model: nn.Module = lm.model
    if hasattr(model, "peft_config"):
        raise UnsupportedModelError(
            f"{lm.name!r} holds peft adapters of its own, and LoRA fine-tuning would train beside them; expected "
            "the plain model. Merge them first (merge_and_unload())"
        )
    originals = {lm.module_name(layer): lm.down_projection(layer) for layer in layers}
    config = config_class(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules="|".join(map(re.escape, originals)),  # text is a pattern for the whole name
        # The adapter takes Linear and Conv1D; the latter stores its weight as [d_in, d_out].
        fan_in_fan_out=not isinstance(next(iter(originals.values())), nn.Linear),
    )
    with torch.random.fork_rng(devices=[]):  # peft draws A on the CPU
        torch.default_generator.manual_seed(seed)
        tuner_class(model, config, ADAPTER)
    wrapped = {layer: lm.down_projection(layer) for layer in layers}
    for module, original in zip(wrapped.values(), originals.values(), strict=True):
        precision = torch.promote_types(original.weight.dtype, torch.float32)
        for part in (module.lora_A, module.lora_B):  # peft does so itself, in recent versions
            part[ADAPTER].to(precision)
    return wrapped


def _peft() -> tuple[Any, Any]:
    """The configuration and model classes of peft.

    Raises:
        InputError: The package is missing or does not import.
    """
    try:
        from peft import LoraConfig, LoraModel
    except ImportError as error:
        raise InputError(
            f"LoRA fine-tuning needs the package peft, which cannot be imported ({error}): {pip_install('peft')}"
        ) from error
    return LoraConfig, LoraModel
