"""The catalogue: every named method, a handful of values on the engine's axes with its paper; and the baselines.

A new method is one entry here, or of `register_method`. `_MEMIT` and the other shared values are what several
papers have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar, cast

from emendo.arguments import checked
from emendo.arguments.registry import Registry, Selection
from emendo.errors import MethodError
from emendo.methods.baselines import BUILT_IN
from emendo.methods.config import BaselineConfig, Method, MethodConfig
from emendo.methods.settings import (
    ContextSettings,
    HistorySettings,
    KeySettings,
    Memorization,
    PostStep,
    TargetSettings,
)
from emendo.solve.settings import Preservation

_ROME_TARGET = TargetSettings(site="mlp_out", steps=20, max_norm_ratio=4)
_EACH_EDIT = HistorySettings(weight=1.0)
_OTHER_C = (
    "C is of text that the model samples, 10 tokens for each component of a key; the published λ and thresholds belong "
    "to a C of up to 100,000 Wikipedia documents (--set moments.source=FILE has a C of any text)"
)

_SHARE = 0.95
"""Least squares writes so much of a residual on models that nobody has published a λ for (docs/inside.md)."""

_MEMIT = MethodConfig(
    name="memit",
    source="MEMIT, arXiv 2210.07229 eq. 14 and 20",
    deviations=(_OTHER_C,),
    n_layers=5,
    distribution="even",
    preservation=Preservation(weight=15000),
    memorization=Memorization(s=1.0, share=_SHARE),
)

_METHODS = (
    MethodConfig(
        name="emendo",
        source="measured, docs/lab/methods.md: EMMET's equality (arXiv 2403.14236 eq. 9), the cheapest split over "
        "layers, earlier edits preserved, argmax stop (MPES, arXiv 2502.01636); words end (docs/lab/demo-model.md)",
        n_layers=5,
        distribution="optimal",
        keys=KeySettings(average="flat"),
        target=TargetSettings(
            argmax_steps=5, precision="bfloat16", max_norm_ratio=2, word_end_weight=1.0, word_end_enough=0.8
        ),
        history=_EACH_EDIT,
    ),
    MethodConfig(
        name="emmet",
        source="EMMET, arXiv 2403.14236 eq. 9 and 10 with α = 0: equality for the whole batch; "
        "argmax stop as MPES, arXiv 2502.01636",
        target=TargetSettings(argmax_steps=2, precision="bfloat16"),
    ),
    MethodConfig(
        name="emmet-published",
        source="EMMET, arXiv 2403.14236, as its public code runs it: α = 0.1 on the dual diagonal for more than one "
        "request, which is MEMIT with λ = α · preservation.weight",
        deviations=(
            "the paper's equality holds only at α = 0; its code takes a pseudo-inverse where that fails",
            _OTHER_C,
        ),
        memorization=Memorization(s=0.1, equality_alone=True),
    ),
    _MEMIT,
    replace(
        _MEMIT,
        name="memit-history",
        presets="memit",
        source="sequential MEMIT of AlphaEdit, arXiv 2410.02355: keys of earlier edits are preserved keys",
        deviations=(
            "keys are those of the solve; AlphaEdit's code reads them again after all layers are written",
            _OTHER_C,
        ),
        history=_EACH_EDIT,
    ),
    MethodConfig(
        name="rome",
        source="ROME, arXiv 2202.05262 eq. 2, as its public code runs it: the direction from the key averaged over "
        "21 contexts, equality at the plain prompt's key",
        deviations=(
            "the paper has one key; its code mixes two, which can disable a model (r-rome has one)",
            "KL weight and weight decay are the code's; the paper prints others",
        ),
        batching="one_by_one",
        contexts=ContextSettings(scheme="rome"),
        keys=KeySettings(average="flat", constraint="plain"),
        target=_ROME_TARGET,
    ),
    MethodConfig(
        name="r-rome",
        presets="rome",
        source="r-ROME, arXiv 2403.07175: ROME with the averaged key throughout",
        batching="one_by_one",
        contexts=ContextSettings(scheme="rome"),
        keys=KeySettings(average="flat", constraint="mean", residual="mean"),
        target=_ROME_TARGET,
    ),
    replace(
        _MEMIT,
        name="pmet",
        source="PMET, arXiv 2308.08742: attention and MLP searched together, the MLP's part written, 1/√(L−i)",
        deviations=(
            "only the MLP is written, as in the authors' settings; the paper can also write attention",
            _OTHER_C,
        ),
        distribution="sqrt",
        target=TargetSettings(
            site="mlp_out",
            joint_attention=True,
            steps=30,
            learning_rate=0.2,
            kl_weight=1.0,
            argmax_nll_weight=0.1,
            kl_threshold=0.01,
        ),
        preservation=Preservation(weight=6000),
    ),
    replace(
        _MEMIT,
        name="alphaedit",
        source="AlphaEdit, arXiv 2410.02355: MEMIT's objective inside the null space of C, earlier edits preserved",
        deviations=(
            "threshold 0.02 and L2 = 10 are the code's; the paper prints 0.01 and 1",
            "the cache holds the solve's keys; the code reads them again after all layers are written",
            "solved in float64 in the null basis; the code solves the full system in float32",
            _OTHER_C,
        ),
        preservation=Preservation(weight=0, ridge=10, null_space="absolute", threshold=0.02),
        history=_EACH_EDIT,
    ),
    replace(
        _MEMIT,
        name="encore",
        source="ENCORE, arXiv 2502.01636: MEMIT with history, a ridge on the update, and most-probable early stop",
        deviations=(
            "the stop asks all contexts and consecutive steps; the code skips the plain prompt and never resets",
            _OTHER_C,
        ),
        target=TargetSettings(argmax_steps=2),
        preservation=Preservation(weight=15000, ridge=10),
        history=_EACH_EDIT,
    ),
    replace(
        _MEMIT,
        name="rect",
        presets="memit",
        source="RECT, arXiv 2401.04700: MEMIT, then only the entries that change their weight most, relatively",
        deviations=("as in the code, lower layers are written in full while the others are solved", _OTHER_C),
        post=PostStep(kind="rect", keep=0.4),
    ),
    replace(
        _MEMIT,
        name="prune",
        presets="memit",
        source="PRUNE, arXiv 2405.16821: MEMIT, then singular values of the total update above W₀'s largest are damped",
        deviations=(
            "replaces the total update by the damped one; the public code adds it to weights that already have it",
            "base e, as AlphaEdit's comparison; applied after every batch, not once at the end",
            _OTHER_C,
        ),
        post=PostStep(kind="prune"),
    ),
    replace(
        _MEMIT,
        name="blue",
        presets="memit",
        source="BLUE, arXiv 2502.03748: only the first and the last layer, each with its own target, nothing divided",
        distribution="ends",
    ),
    replace(
        _MEMIT,
        name="memit-merge",
        presets="memit",
        source="MEMIT-Merge, arXiv 2502.07322: MEMIT with one target for all requests on a subject",
        target=TargetSettings(shared="subject"),
    ),
    replace(
        _MEMIT,
        name="replay",
        presets="memit",
        source="forward replay, arXiv 2605.00358: a target searched at the first layer, later layers aim at what it "
        "makes them hold",
        deviations=("presets are MEMIT's; EasyEdit's MEMIT-FE has 35 steps and λ = 15000 for GPT2-XL", _OTHER_C),
        distribution="replay",
    ),
)

CATALOGUE: Registry[Method] = Registry(
    "method",
    (*_METHODS, *BUILT_IN),
    of=Method,
    group="emendo.methods",
    option="--method",
    error=MethodError,
)
"""Every named method and baseline; packages bring more."""

METHODS = cast(Mapping[str, MethodConfig], Selection(CATALOGUE, lambda config: config.kind == MethodConfig.kind))
"""Every named method of the engine."""

BASELINES = cast(Mapping[str, BaselineConfig], Selection(CATALOGUE, lambda config: config.kind == BaselineConfig.kind))
"""Every named baseline."""

M = TypeVar("M", bound=Method)


@checked
def register_method(config: M, *, replace: bool = False) -> M:
    """Add a method or baseline to the catalogue: ``--method NAME`` and every list then have it.

    Args:
        config: A `MethodConfig`, such as a copy of a named one with other values, or a `BaselineConfig`.
        replace: Take the place of a registered one of the same name, as when a notebook's cell is run again.

    Raises:
        PluginError: The name is taken, or it is no method.
    """
    CATALOGUE.register(config, replace=replace)
    return config


@checked
def method_named(name: str) -> Method:
    """The named method or baseline; capital letters do not matter.

    Raises:
        MethodError: Unknown name, with the nearest known one.
    """
    return CATALOGUE.named(name)
