"""The named methods: each a handful of values on the engine's axes, with its paper."""

from __future__ import annotations

import difflib

from emendo.activations.keys import KeySettings
from emendo.activations.targets import TargetSettings
from emendo.errors import MethodError
from emendo.methods.config import ContextSettings, Memorization, MethodConfig
from emendo.solve import Preservation

_ROME_TARGET = TargetSettings(site="mlp_out", steps=20, max_norm_ratio=4)

_ALL = (
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
        memorization=Memorization(s=0.1, equality_alone=True),
    ),
    MethodConfig(
        name="memit",
        source="MEMIT, arXiv 2210.07229 eq. 14 and 20",
        span=5,
        distribution="even",
        preservation=Preservation(weight=15000),
        memorization=Memorization(s=1.0),
    ),
    MethodConfig(
        name="rome",
        source="ROME, arXiv 2202.05262 eq. 2, as its public code runs it: the direction from the key averaged over "
        "21 contexts, equality at the plain prompt's key",
        batching="one_by_one",
        contexts=ContextSettings(scheme="rome"),
        keys=KeySettings(average="flat", constraint="plain"),
        target=_ROME_TARGET,
    ),
    MethodConfig(
        name="r-rome",
        source="r-ROME, arXiv 2403.07175: ROME with the averaged key throughout",
        batching="one_by_one",
        contexts=ContextSettings(scheme="rome"),
        keys=KeySettings(average="flat", constraint="mean", residual="mean"),
        target=_ROME_TARGET,
    ),
)

METHODS: dict[str, MethodConfig] = {method.name: method for method in _ALL}
"""Every named method."""


def method_named(name: str) -> MethodConfig:
    """The named method.

    Raises:
        MethodError: Unknown name, with the nearest known one.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise MethodError(f"unknown method {name!r}{hint} Methods: {', '.join(METHODS)} (--method)")
    return METHODS[name]
