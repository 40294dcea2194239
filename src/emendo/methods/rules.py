"""Which settings exclude each other, and which given ones change nothing.

A given setting that a resolved method never looks at is an error, since whoever gave it expects a difference. The
settings of a method's own and of presets are not asked: a method may have a value that only another setting brings to
life.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from emendo.errors import MethodError
from emendo.methods.axes import Axes
from emendo.solve.distribution import DISTRIBUTIONS


@dataclass(frozen=True)
class _Idle:
    """When a setting changes nothing.

    Attributes:
        holds: Whether it does in a config.
        why: What makes it idle, after "because".
        enable: The setting that would bring it to life.
    """

    holds: Callable[[Axes], bool]
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
    "target.word_end_enough": _Idle(
        lambda config: config.target.word_end_weight == 0 or config.target.end_of_text,
        "target.word_end_weight is 0 or target.end_of_text is true, so that the word's end is not asked for",
        "target.word_end_weight=1",
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
    "memorization.share": _Idle(
        lambda config: config.memorization.s == 0 and config.memorization.share is not None,
        "memorization.s is 0, and equality writes all of a residual",
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


def check_effects(name: str, config: Axes, given: Iterable[str]) -> None:
    """Refuse given settings that provably change nothing.

    `moments.*` is never among them: where the solve leaves C out, the reported cost of the update is still measured
    with it.

    Args:
        name: Of the method.
        config: Its values, resolved for a model.
        given: Dotted names of the settings that were given.

    Raises:
        MethodError: Names all of them, each with what would bring it to life.
    """
    idle = [
        f"{one} changes nothing because {_IDLE[one].why} (leave it out, or --set {_IDLE[one].enable})"
        for one in given
        if one in _IDLE and _IDLE[one].holds(config)
    ]
    if idle:
        raise MethodError(f"{name}: {'; '.join(idle)}")


def check_together(config: Axes) -> None:
    """Refuse values that exclude each other.

    Raises:
        MethodError: Says which, and what to set instead.
    """
    keys, target = config.keys, config.target
    if keys.residual == "mean" and target.site != "mlp_out":
        raise MethodError(
            "keys.residual=mean measures W k + b over contexts, which is the MLP's output; "
            f"found target.site={target.site} (--set target.site=mlp_out)"
        )
    if target.joint_attention and target.site != "mlp_out":
        raise MethodError(
            "target.joint_attention searches a vector for the attention's output beside one for the MLP's; found "
            f"target.site={target.site} (--set target.site=mlp_out)"
        )
    if config.batching == "one_by_one" and target.shared == "subject":
        raise MethodError(
            "target.shared=subject gives requests of one batch one v*, and batching=one_by_one searches each key on "
            "its own; write them together (--set batching=joint) or leave target.shared out"
        )
    if keys.constraint == "plain":
        _check_plain_constraint(config)


def _check_plain_constraint(config: Axes) -> None:
    """The original ROME's mixed form is defined for equality, one residual and undivided edits alone."""
    if config.memorization.s != 0:
        raise MethodError(
            "keys.constraint=plain holds edits with equality at the plain prompt; found "
            f"memorization.s={config.memorization.s} (--set memorization.s=0)"
        )
    if config.keys.residual == "mean":
        raise MethodError(
            "keys.constraint=plain holds edits at the plain prompt's key, and keys.residual=mean measures what is "
            "missing at the mean one, so that v* is met at neither; use one key "
            "(--set keys.constraint=mean, as r-ROME, or --set keys.residual=plain, as ROME)"
        )
    if DISTRIBUTIONS[config.distribution].divides_by_cost:
        raise MethodError(
            "keys.constraint=plain holds edits at the plain prompt's key, and "
            f"distribution={config.distribution} divides them by the "
            "cost of holding at the mean key (--set keys.constraint=mean or --set distribution=even)"
        )
