"""Updates against a model: whether they belong to it, and the weights that they give."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from emendo.arguments import checked
from emendo.errors import BaseMismatchError, InputError
from emendo.models.base_model import check_same_base
from emendo.models.editable import EditableModel
from emendo.shapes import Weight
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate


@checked
def check_update(lm: EditableModel, update: ModelUpdate, earlier: Predecessors) -> None:
    """Refuse an update that was not made for this model with these updates in it.

    Args:
        lm: The model.
        update: What is to come on top.
        earlier: The updates before it.

    Raises:
        BaseMismatchError: The update belongs to another model, or was planned on top of other updates.
    """
    if "weights_sha256" not in update.base:
        raise BaseMismatchError(
            "this update does not say for which weights it was made; expected one from session.plan(...)"
        )
    check_same_base(
        update.base, lm.identity(), what="this update", remedy="load the model that it is for, or plan again"
    )
    if update.preceding != earlier:
        raise BaseMismatchError(
            f"this update was planned on {update.preceding}, and found is {earlier}; expected exactly the updates that "
            "it was planned on, in their order. Apply those first (or rollback()), or plan it again"
        )
    for part in update.layers:
        lm.check_layers([part.layer])
        expected = lm.edited_map(part.layer).shape
        shape = (part.residuals.shape[1], part.dual_keys.shape[1])
        if part.module != lm.module_name(part.layer) or shape != expected:
            raise BaseMismatchError(
                f"the update writes {part.module} with shape {shape}; this model has "
                f"{lm.module_name(part.layer)} with shape {expected}"
            )


@checked
def edited_weight(original: Weight, parts: Iterable[LayerUpdate]) -> Weight:
    """W₀ + ΣΔ in float32 or better, added in order: what every edited weight is cast from.

    Args:
        original: W₀ ``[d_out, d_in]``, left as it is.
        parts: Updates of this one layer.

    Raises:
        InputError: A part is of another size.
    """
    weight = original.to(torch.promote_types(original.dtype, torch.float32), copy=True)
    for part in parts:
        if (size := (part.residuals.shape[1], part.dual_keys.shape[1])) != original.shape:
            raise InputError(
                f"a weight of shape {tuple(original.shape)} cannot take an update of shape {size} (parts=)"
            )
        weight += part.delta().to(weight.device)
    return weight
