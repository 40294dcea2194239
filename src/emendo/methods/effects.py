"""Given settings that a resolved method never looks at: each is an error, since whoever gave it expects a difference.

The settings of a method's own and of presets are not asked: a method may have a value that only another setting
brings to life.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from emendo.errors import MethodError
from emendo.methods.config import MethodConfig


@dataclass(frozen=True)
class _Idle:
    """When a setting changes nothing.

    Attributes:
        holds: Whether it does in a config.
        why: What makes it idle, after "because".
        enable: The setting that would bring it to life.
    """

    holds: Callable[[MethodConfig], bool]
    why: str
    enable: str


def _post(kind: str) -> _Idle:
    return _Idle(lambda config: config.post.kind != kind, f"post.kind is not {kind}", f"post.kind={kind}")


_IDLE: dict[str, _Idle] = {
    "post.keep": _post("rect"),
    "post.log_base": _post("prune"),
    "post.max_ratio": _post("cap"),
    "preservation.threshold": _Idle(
        lambda config: config.preservation.null_space == "off",
        "preservation.null_space is off",
        "preservation.null_space=absolute",
    ),
    "target.word_end_weight": _Idle(
        lambda config: config.target.end_of_text,
        "target.end_of_text is true, and the end of the text ends the word",
        "target.end_of_text=false",
    ),
    "preservation.dead_ridge": _Idle(
        lambda config: config.preservation.weight == 0 or config.preservation.null_space != "off",
        "it is relative to C, which preservation.weight=0 or a null space leaves out of A",
        "preservation.ridge=1",
    ),
    "memorization.equality_alone": _Idle(
        lambda config: config.memorization.s == 0,
        "memorization.s is 0, which is equality for any number of requests",
        "memorization.s=1",
    ),
    "keys.average": _Idle(
        lambda config: config.contexts.scheme == "none",
        "contexts.scheme is none, and there is one context to average over",
        "contexts.scheme=memit",
    ),
    # A = weight · C alone: under equality its scale cancels in Q = (K A⁻¹ Kᵀ)⁻¹ K A⁻¹, in the optimal shares, which are
    # ratios of K A⁻¹ Kᵀ, and in a null space, whose threshold is on C itself.
    "preservation.weight": _Idle(
        lambda config: config.memorization.s == 0 and config.preservation.ridge == 0 and config.history.weight == 0,
        "under equality (memorization.s is 0) only its size beside preservation.ridge and history.weight counts, and "
        "both are 0",
        "memorization.s=1",
    ),
}


def check_effects(config: MethodConfig, given: Iterable[str]) -> None:
    """Refuse given settings that provably change nothing.

    `moments.*` is never among them: where the solve leaves C out, the reported cost of the update is still measured
    with it.

    Args:
        config: The resolved method.
        given: Dotted names of the settings that were given.

    Raises:
        MethodError: Names all of them, each with what would bring it to life.
    """
    idle = [
        f"{name} changes nothing because {_IDLE[name].why} (leave it out, or --set {_IDLE[name].enable})"
        for name in given
        if name in _IDLE and _IDLE[name].holds(config)
    ]
    if idle:
        raise MethodError(f"{config.name}: {'; '.join(idle)}")
