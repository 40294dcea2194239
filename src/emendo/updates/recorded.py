"""How an update was solved, as its `info` records it, and when that is not enough to redo the algebra."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emendo.errors import InputError, UndoError
from emendo.solve.distribution import DISTRIBUTIONS, Step, distribution_steps
from emendo.solve.settings import Preservation
from emendo.updates.update import ModelUpdate

REPLAY = (
    "Take the edit out by replay instead: roll back to the updates before it, and plan the requests of the later ones "
    "again with session.plan(requests)"
)
"""What always works: no algebra, but a target search for every later edit."""


@dataclass(frozen=True)
class RecordedSolve:
    """The part of a method's settings that the algebra needs.

    Attributes:
        s: Memorization strength of several requests together.
        equality_alone: A single request has strength 0 whatever `s` is.
        one_by_one: Each row was solved on its own, on the weights that the rows before it left.
        steps: The layers that were written, ascending, with what each aimed at and its share.
        through_stream: Targets are values of the residual stream, which every lower layer adds to; else outputs of the
            MLP that is aimed at.
        plain_constraint: Q was solved from averaged keys, and stored are the plain prompts' own (ROME).
        history: What each earlier key counts in the metric; 0 for none.
        preservation: f(C).
        fingerprint: Of the second moments.
    """

    s: float
    equality_alone: bool
    one_by_one: bool
    steps: tuple[Step, ...]
    through_stream: bool
    plain_constraint: bool
    history: float
    preservation: Preservation
    fingerprint: str

    @property
    def layers(self) -> tuple[int, ...]:
        """The written layers, ascending."""
        return tuple(step.layer for step in self.steps)

    @property
    def splits_by_metric(self) -> bool:
        """Whether the layers' shares depend on the metric."""
        return len(self.steps) > 1 and any(step.share is None for step in self.steps)

    @property
    def needs_metric(self) -> bool:
        """Whether taking out an earlier edit changes anything but the residuals."""
        return self.history > 0 or self.splits_by_metric

    def batches(self, n: int) -> list[range]:
        """The rows that were solved together, in order."""
        return [range(row, row + 1) for row in range(n)] if self.one_by_one else [range(n)]

    def strength(self, n: int) -> float:
        """The s that a batch of n rows was solved with."""
        return 0.0 if n == 1 and self.equality_alone else self.s

    def reach(self, step: Step) -> tuple[int | None, int]:
        """The layers, first (None: the lowest) and last, whose weights enter what is measured for a step."""
        return (None if self.through_stream else step.aim), step.aim


def recorded_solve(update: ModelUpdate, name: str) -> RecordedSolve:
    """Read how an update was solved.

    Args:
        update: One that has to change because an earlier one goes.
        name: What messages call it.

    Raises:
        UndoError: It was not made by a solve alone, or its record or its tensors are not complete.
    """
    for mark, what in (("merged", "a sum of updates"), ("folded", "folded from others"), ("scaled", "scaled")):
        if mark in update.info:
            raise UndoError(f"{name} is {what}, so it is no solution of a method's equations. {REPLAY}")
    for mark, what in (
        ("kept", "holds facts of earlier updates whose keys it wrote again"),
        ("left_out", "does not preserve earlier keys that were written again"),
    ):
        if mark in update.info:
            raise UndoError(f"{name} {what}, which the algebra does not follow. {REPLAY}")
    try:
        found = _parsed(update.info)
    except KeyError as error:
        raise UndoError(
            f"{name} does not record {error}, which its algebra needs: a baseline, or a file from elsewhere. {REPLAY}"
        ) from error
    except (InputError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UndoError(f"the record of {name} cannot be used: {error}. {REPLAY}") from error
    _check_tensors(update, found, name)
    if found.plain_constraint and found.needs_metric:
        raise UndoError(
            f"{name} was solved from averaged keys with keys.constraint=plain, and only the plain keys are stored; "
            f"history.weight={found.history:g} or the optimal distribution needs the averaged ones. {REPLAY}"
        )
    return found


def _parsed(info: dict[str, Any]) -> RecordedSolve:
    settings = info["method"]["settings"]
    post = settings["post.kind"]
    if post != "none":
        raise InputError(
            f"post.kind={post} changed its factors after the solve, found by no equation that can be redone"
        )
    return RecordedSolve(
        s=float(settings["memorization.s"]),
        equality_alone=bool(settings["memorization.equality_alone"]),
        one_by_one=_choice(settings, "batching", ("joint", "one_by_one")) == "one_by_one",
        steps=distribution_steps(
            _choice(settings, "distribution", tuple(DISTRIBUTIONS)), [int(layer) for layer in settings["layers"]]
        ),
        through_stream=_choice(settings, "target.site", ("resid_post", "mlp_out")) == "resid_post",
        plain_constraint=_choice(settings, "keys.constraint", ("mean", "plain")) == "plain",
        history=float(settings["history.weight"]),
        preservation=Preservation(
            weight=float(settings["preservation.weight"]),
            ridge=float(settings["preservation.ridge"]),
            null_space=settings["preservation.null_space"],
            threshold=float(settings["preservation.threshold"]),
            dead_ridge=float(settings.get("preservation.dead_ridge", 0.0)),  # records of earlier versions have none
        ),
        fingerprint=str(info["moments"]["fingerprint"]),
    )


def _choice(settings: dict[str, Any], name: str, known: tuple[str, ...]) -> Any:
    """A setting of known values: one from a later Emendo may mean another algebra."""
    if settings[name] not in known:
        raise InputError(f"{name}={settings[name]!r} is not known here; expected {' or '.join(known)}")
    return settings[name]


def _check_tensors(update: ModelUpdate, found: RecordedSolve, name: str) -> None:
    """One row a request in residuals, dual keys and keys of every written layer."""
    layers = tuple(part.layer for part in update.layers)
    if layers != found.layers:
        raise UndoError(f"{name} holds layers {list(layers)}; its record says {list(found.layers)}. {REPLAY}")
    rows = {part.layer: (part.rank, None if part.keys is None else len(part.keys)) for part in update.layers}
    if len({count for pair in rows.values() for count in pair}) > 1:
        raise UndoError(
            f"{name} does not hold one residual, dual key and key for each request; found (factors, keys) by layer "
            f"{rows}. Keys may have been dropped by `emendo update fold`. {REPLAY}"
        )
