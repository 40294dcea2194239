"""What has been written into a model's weights, so that every instant of a write has a way back.

A write is announced before its first matrix changes, and done with one assignment after its last. What was interrupted
in between, even twice, is known for what it is: whoever asks next gets the state before the write or, where the write
takes something out that was in for a while, the state after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from emendo.errors import WeightsChangedError
from emendo.models.checksums import differing, row_sums
from emendo.models.decoder import DecoderView
from emendo.models.edited_map import Original
from emendo.shapes import Weight

_SHOWN = 3


@dataclass(frozen=True)
class Contents:
    """What is in the weights.

    Attributes:
        owner: Whose it is; None for the base.
        weights: W₀ + ΣΔ of every layer that is not the base's, in float32 or better.
        label: What the owner knows it by.
        edited: Whether this counts as an edit.
    """

    owner: object = None
    weights: Mapping[int, Weight] = field(default_factory=lambda: MappingProxyType({}))
    label: Any = None
    edited: bool = False


BASE = Contents()


@dataclass(frozen=True)
class _Write:
    """A write that is under way.

    Attributes:
        to: What will be in the weights.
        layers: Those that it touches.
        forward: Finish it when it was interrupted, rather than undo it.
    """

    to: Contents
    layers: tuple[int, ...]
    forward: bool


class WeightContents:
    """What is in one model's weights.

    Args:
        lm: The model.

    Attributes:
        originals: The base's map of every layer that was ever written, bit for bit.
    """

    def __init__(self, lm: DecoderView) -> None:
        self._lm = lm
        self.originals: dict[int, Original] = {}
        # One tuple, so that a write ends and its result begins at the same instant.
        self._state: tuple[Contents, _Write | None] = (BASE, None)

    @property
    def now(self) -> Contents:
        """What is in the weights; an interrupted write is settled first."""
        self.settle()
        return self._state[0]

    def change(self, to: Contents, *, forward: bool = False, compared: Sequence[int] | None = None) -> None:
        """Bring the weights to other contents; if that fails, they are left as they were.

        Args:
            to: What they shall hold.
            forward: When interrupted, go on to `to` rather than back.
            compared: Layers whose weights are compared with what was last seen in them, as in `check`.

        Raises:
            WeightsChangedError: Somebody else has changed them; nothing was written.
        """
        with self._lm.access.turn():
            now = self.now
            self.check(compared)
            layers = differing_layers(now.weights, to.weights)
            with self._lm.access.writing():
                for layer in layers:
                    if layer not in now.weights:
                        self.originals[layer] = self._lm.edited_map(layer).original()
                try:
                    self._state = (now, _Write(to, layers, forward))
                    for layer in layers:
                        self._put(layer, to)
                    self._state = (to, None)
                except BaseException:
                    self._settle()
                    raise

    @contextmanager
    def holding(self, inside: Contents) -> Iterator[None]:
        """Other contents for as long as the context lasts, and those before it afterwards, also after an error."""
        before = self.now
        try:
            try:
                self.change(inside)
                yield
            finally:
                self.change(before, forward=True)
        except BaseException:  # an interrupt of the line above as well
            self.change(before, forward=True)
            raise

    def settle(self) -> None:
        """Undo or finish a write that was interrupted, also while it was being undone."""
        self._lm.access.tidy()
        if self._state[1] is not None:
            with self._lm.access.turn(), self._lm.access.writing():
                self._settle()

    def check(self, layers: Sequence[int] | None = None) -> None:
        """Refuse weights that are not what was last seen in them.

        Args:
            layers: Whose weights are compared, beside the parameters that torch says were touched; None: all.

        Raises:
            WeightsChangedError: Names the parameters, or a module that was exchanged.
            UnsupportedModelError: Two modules share a weight since.
        """
        changed = self.changed(layers)
        if changed:
            more = "" if len(changed) <= _SHOWN else f" and {len(changed) - _SHOWN} more"
            raise WeightsChangedError(
                f"{', '.join(changed[:_SHOWN])}{more} of {self._lm.name!r}: the weights are not those that the "
                "session last saw or wrote, as after training, merging an adapter, resizing, loading or another dtype. "
                "Nothing was changed. Expected weights that only the session writes: take the present ones for the "
                "unedited model (session.accept_weights(), which forgets the updates in it) and plan again, or load "
                "the model anew"
            )
        self._lm.check_parts()

    def changed(self, layers: Sequence[int] | None = None) -> list[str]:
        """Names of the parameters that somebody else has changed, now or since the base was identified.

        Args:
            layers: As in `check`.
        """
        self.settle()
        lm = self._lm
        expected = lm.base_checksums()
        written = {lm.parameter_name(layer): layer for layer in self._state[0].weights}
        if layers is None:
            names = differing(row_sums(lm.model, leave_out=written), expected, leave_out=written)
        else:
            some = lm.touched_parameters() | {lm.parameter_name(layer) for layer in layers}
            found = row_sums(lm.model, only=some - set(written))
            names = differing(found, {name: expected[name] for name in expected if name in some}, leave_out=written)
        return names + [name for name, layer in written.items() if not self._holds(layer)]

    def forget(self) -> None:
        """Take the present weights for the base."""
        self._state = (BASE, None)
        self.originals = {}

    def _holds(self, layer: int) -> bool:
        """Whether a layer has the bits that were written to it."""
        return self._lm.edited_map(layer).holds(self._state[0].weights[layer])

    def _settle(self) -> None:
        now, write = self._state
        if write is not None:
            aim = write.to if write.forward else now
            for layer in write.layers:
                self._put(layer, aim)
            self._state = (aim, None)

    def _put(self, layer: int, contents: Contents) -> None:
        weight = contents.weights.get(layer)
        if weight is None:
            self._lm.put_back(layer, self.originals[layer])
        else:
            self._lm.write(layer, weight)


def differing_layers(one: Mapping[int, Weight], other: Mapping[int, Weight]) -> tuple[int, ...]:
    """Layers that have not the very same weight in both, ascending."""
    return tuple(sorted(layer for layer in {*one, *other} if one.get(layer) is not other.get(layer)))
