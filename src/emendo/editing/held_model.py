"""A model and the edits that are in it: put in, taken out, looked at unseen.

The model keeps the original of every matrix that is touched and its running sum W₀ + ΣΔ in float32 (float64 for a
float64 model; `models.contents`). Weights are always the cast of that sum, so an update costs the same after a thousand
others; rolling back copies the originals, so it is exact bit for bit.

Only `apply`, `rollback`, `move_to`, `applied` and `at_base` write the model, each write whole or not at all for every
other thread. Previews work on isolated modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from emendo.arguments import checked
from emendo.editing.held_edits import HeldEdits
from emendo.editing.plan import Plan
from emendo.errors import InputError
from emendo.models import EditableModel
from emendo.models.contents import Contents, differing_layers
from emendo.shapes import Weight
from emendo.solve.numerics import pinned
from emendo.updates.update import ModelUpdate


class HeldModel:
    """One model, and what one owner has in it; `EditSession` adds the plans.

    Args:
        lm: The model.

    Raises:
        InputError: Another owner has edits in this model, or it is an isolated one.
    """

    def __init__(self, lm: EditableModel) -> None:
        self.lm = lm
        self._check_own()

    @property
    def applied_updates(self) -> tuple[ModelUpdate, ...]:
        """Updates that are in the model now, in the order in which they were applied."""
        return self._edits.updates

    @property
    def applied_ids(self) -> tuple[str, ...]:
        """Identities of those updates: digests of all their tensors, taken once when they were applied."""
        return self._edits.ids

    @property
    def base(self) -> dict[str, str]:
        """Identity of the unedited model."""
        return self.lm.identity()

    @checked
    @pinned()
    def apply(self, update: ModelUpdate | Plan) -> None:
        """Add an update, or that of a plan, to the model.

        Raises:
            BaseMismatchError: The update belongs to another model, or was planned on top of other updates.
            InputError: Another session has edits in this model.
            NumericalError: The weights would not be finite in the model's dtype.
            WeightsChangedError: Somebody else has changed the weights.
        """
        self._apply(update)

    @pinned()
    def rollback(self) -> None:
        """Take every update out: each touched matrix gets its original bytes back.

        Raises:
            WeightsChangedError: Somebody else has changed the weights, which would be lost; they are left as they are.
        """
        with self.lm.access.turn():
            if self._edits.updates:  # else there may be edits of another session, which are not ours to forget
                self._write(HeldEdits())

    @checked
    @pinned()
    def move_to(self, updates: Sequence[ModelUpdate | Plan]) -> None:
        """Bring the model to its base plus exactly these updates, in order; if one does not fit, nothing changes.

        Raises:
            BaseMismatchError: An update belongs to another model, or was planned on top of others than those before it.
            InputError: Another session has edits in this model.
            NumericalError: The weights would not be finite in the model's dtype.
            WeightsChangedError: Somebody else has changed the weights.
        """
        with self.lm.access.turn():
            self._check_own()
            edits = HeldEdits()
            for update in updates:
                edits = edits.after(_update(update), self.lm)
            if self._edits.updates or updates:
                self._write(edits)

    def accept_weights(self) -> None:
        """Take the weights as they are now for those of the unedited model, as after training or merging an adapter.

        Updates that are in the model are forgotten: they become part of the base and cannot be rolled back.

        Raises:
            InputError: Another session has edits in this model.
            WeightsChangedError: A module is another one than when the model was wrapped.
        """
        with self.lm.access.turn():
            self._check_own()
            self.lm.accept_weights()

    @checked
    def applied(self, update: ModelUpdate | Plan) -> AbstractContextManager[None]:
        """The update is in the model inside the context, and out of it afterwards, also after an error.

        Everybody who runs the model meanwhile sees it; `preview` is the way to look at an update unseen.

        Raises:
            BaseMismatchError: The update belongs to another model, or was planned on top of other updates.
            InputError: Another session has edits in this model.
            NumericalError: The weights would not be finite in the model's dtype.
            WeightsChangedError: Somebody else has changed the weights; on leaving, they are left as they are.
        """
        return self._holding(lambda: self._edits.after(_update(update), self.lm))

    def at_base(self) -> AbstractContextManager[None]:
        """The unedited weights inside the context; the session's updates are back afterwards, also after an error.

        Everybody who runs the model meanwhile sees them; `preview_base` is the way to look at them unseen.

        Raises:
            WeightsChangedError: Somebody else has changed the weights; on leaving, they are left as they are.
        """
        return self._holding(HeldEdits)

    @checked
    @contextmanager
    def preview(self, updates: Sequence[ModelUpdate | Plan]) -> Iterator[EditableModel]:
        """A model that holds more updates, for this context alone: nothing is written to the session's own.

        Args:
            updates: What comes on top of what the session holds, in order.

        Raises:
            BaseMismatchError: An update belongs to another model, or was planned on top of others than those before it.
            NumericalError: The weights would not be finite in the model's dtype.
        """
        with self.lm.access.reading():
            edits = self._edits
            for update in updates:
                edits = edits.after(_update(update), self.lm)
            with self._isolated(edits) as lm:
                yield lm

    @contextmanager
    def preview_base(self) -> Iterator[EditableModel]:
        """The unedited model, for this context alone: nothing is written to the session's own."""
        with self.lm.access.reading(), self._isolated(HeldEdits()) as lm:
            yield lm

    def verify_rolled_back(self) -> dict[str, bool]:
        """Whether the model is the unedited one bit for bit: by module name for every matrix that was ever touched.

        A parameter that somebody else has changed is in it under its own name, as False.
        """
        lm = self.lm
        changed = lm.contents.changed()
        touched = {
            lm.module_name(layer): original.is_in(lm.edited_map(layer))
            for layer, original in sorted(lm.contents.originals.items())
        }
        known = {lm.parameter_name(layer) for layer in lm.contents.originals}
        return touched | {name: False for name in changed if name not in known}

    @property
    def _edits(self) -> HeldEdits:
        """What this session has in the model; the model itself knows, also after an interrupt."""
        now = self.lm.contents.now
        return now.label if now.owner is self else HeldEdits()

    @pinned()
    def _apply(self, update: ModelUpdate | Plan, layers: Sequence[int] | None = None) -> None:
        """Add an update; with layers, only those weights and touched ones are compared with what they should be."""
        update = _update(update)
        with self.lm.access.turn():
            self._check_own()
            self.lm.contents.check(layers)
            # Compared just now: once more only what torch says was touched since.
            self._write(self._edits.after(update, self.lm), compared=())

    def _check_own(self) -> None:
        """Refuse a model whose edits are not those of this session."""
        if self.lm.is_isolated:
            raise InputError(
                f"found an isolated view of {self.lm.name!r}, which lasts as long as its context; expected the model "
                "itself, from emendo.load or emendo.wrap"
            )
        if self.lm.holds_edits and not self._edits.updates:
            raise InputError(
                f"{self.lm.name!r} holds edits of another session, so its base weights are unknown here; "
                "call rollback() on that session first"
            )

    def _exact(self, layer: int) -> Weight:
        """W₀ + ΣΔ of a layer as it is now, in float32 or better."""
        return self._edits.weight(layer, self.lm)

    def _contents(self, edits: HeldEdits) -> Contents:
        return Contents(self, edits.exact, edits, bool(edits.updates))

    def _write(self, edits: HeldEdits, compared: Sequence[int] | None = None) -> None:
        """Bring the model from the present edits to others; if writing fails, it is left as it was."""
        self.lm.contents.change(self._contents(edits), compared=compared)

    @contextmanager
    def _holding(self, inside: Callable[[], HeldEdits]) -> Iterator[None]:
        with self.lm.access.turn():
            self._check_own()
            contents = self._contents(inside())
        with self.lm.contents.holding(contents):
            yield

    def _isolated(self, edits: HeldEdits) -> AbstractContextManager[EditableModel]:
        """An isolated model with these edits in it instead of the present ones."""
        exact = edits.exact
        layers = differing_layers(self._edits.exact, exact)
        weights = {layer: exact[layer] if layer in exact else self.lm.base_weight(layer) for layer in layers}
        return self.lm.isolated(weights, edited=bool(edits.updates))


def _update(given: ModelUpdate | Plan) -> ModelUpdate:
    """The update that was handed over, by itself or in its plan."""
    return given.update if isinstance(given, Plan) else given
