"""The updates that are in a model, summed: what each edited weight is cast from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from emendo.errors import NumericalError
from emendo.models import EditableModel
from emendo.shapes import Weight
from emendo.updates.against_model import check_update
from emendo.updates.predecessors import UNEDITED, Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate, merge_layers


@dataclass(frozen=True)
class HeldEdits:
    """What is in the model: never changed in place, so that an earlier state can be returned to.

    Attributes:
        updates: In the order in which they were applied.
        ids: Their identities, which are digests of their tensors and therefore computed once.
        preceding: The same, as an update on top of them names them.
        exact: W₀ + ΣΔ of every edited layer in float32 or better, summed in that order.
        total: ΣΔ of every edited layer as factors, with the keys of all of them.
    """

    updates: tuple[ModelUpdate, ...] = ()
    ids: tuple[str, ...] = ()
    preceding: Predecessors = UNEDITED
    exact: Mapping[int, Weight] = field(default_factory=dict)
    total: Mapping[int, LayerUpdate] = field(default_factory=dict)

    def after(self, update: ModelUpdate, lm: EditableModel) -> HeldEdits:
        """These edits and one more.

        Args:
            update: What comes on top.
            lm: The model that they are of.

        Raises:
            BaseMismatchError: It belongs to another model, or was planned on top of other updates.
            NumericalError: The weights would not be finite in the model's dtype.
        """
        check_update(lm, update, self.preceding)
        exact, total = dict(self.exact), dict(self.total)
        for part in update.layers:
            before = self.weight(part.layer, lm)
            exact[part.layer] = before + part.to(before.device).delta()
            _check_finite(exact[part.layer], part.layer, lm)
            sums = [total[part.layer], part] if part.layer in total else [part]
            total[part.layer] = merge_layers(sums)[0].compacted()
        id = update.id
        return HeldEdits((*self.updates, update), (*self.ids, id), self.preceding.then(id), exact, total)

    def weight(self, layer: int, lm: EditableModel) -> Weight:
        """W₀ + ΣΔ of a layer in float32 or better, before it is cast to the model's dtype."""
        if layer in self.exact:
            return self.exact[layer]
        base = lm.base_weight(layer)
        return base.to(torch.promote_types(base.dtype, torch.float32), copy=True)


def _check_finite(weight: Weight, layer: int, lm: EditableModel) -> None:
    if not weight.to(lm.dtype).isfinite().all():
        raise NumericalError(
            f"the updates of layer {layer} give weights that are not finite in {lm.dtype}; nothing was written. "
            "Expected finite factors; load the model with --dtype float32 if they are too large for it"
        )
