"""The edited model as a plain Hugging Face checkpoint, which loads without Emendo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from emendo.arguments import checked
from emendo.errors import ExportError
from emendo.export.card import checkpoint_card
from emendo.export.chain import checked_chain
from emendo.io.whole_folder import whole_folder
from emendo.io.writable import check_room
from emendo.models import EditableModel
from emendo.models.loading import dtype_named
from emendo.models.packed_weights import weight_parts
from emendo.models.quantised_kinds import method_of
from emendo.models.saving import check_saveable, save_model
from emendo.progress import Watched, stage
from emendo.updates.against_model import edited_weight
from emendo.updates.rounding import kept_of, rounding, tell_of_rounding
from emendo.updates.update import ModelUpdate


@checked
def write_checkpoint(
    lm: EditableModel,
    updates: Sequence[ModelUpdate],
    out: str | Path,
    *,
    dtype: str = "auto",
    base_name: str | None = None,
    progress: Watched = None,
) -> Path:
    """Write the edited model into a folder, which appears whole or not at all; the model in memory stays as it is.

    Edited weights are ``cast(W₀ + ΣΔ)``, rounded once from the float32 sum to the dtype of the files, so in the model's
    own dtype they are those that a session writes, bit for bit.

    Args:
        lm: The unedited model that the updates were made for.
        updates: In order, the first one planned on the unedited model.
        out: The folder to make: absent, or empty.
        dtype: ``"auto"`` (that of the model), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        base_name: How the model card names the base; the model's name where None.
        progress: Told about the stage "writing"; True: a bar.

    Returns:
        The folder.

    Raises:
        BaseMismatchError: An update belongs to another model, or was planned on top of others than come before it.
        ExportError: Nothing is changed.
        InputError: Unknown dtype, or the model holds edits of a session.
        NumericalError: A weight is not finite in the dtype of the files.
        OutputError: The folder cannot be written, or holds something.
    """
    total = checked_chain(lm, updates)
    layers = [part.layer for part in total]
    chosen = dtype_named(dtype)
    if chosen is not None and (method := method_of(lm.model.config)) is not None:
        raise ExportError(
            f"found dtype {dtype!r} for a model whose weights are quantised ({method}): only the edited maps would be "
            "cast; leave it out (--dtype)"
        )
    check_saveable(lm)
    path = Path(out).expanduser()
    check_room(path, _nbytes(lm, chosen))
    weights = {
        layer: edited_weight(
            lm.weight(layer), (part for update in updates for part in update.layers if part.layer == layer)
        )
        for layer in layers
    }
    with stage(progress, "writing"), whole_folder(path) as draft:
        stored = chosen or lm.dtype
        kept = {
            part.layer: kept_of(part, rounding(lm.weight(part.layer), part, stored), part.keys, stored)
            for part in total
        }
        tell_of_rounding(kept, stored)
        save_model(lm, weights, draft, chosen)
        card = checkpoint_card(base_name or lm.name, updates, dtype=str(chosen or lm.dtype).removeprefix("torch."))
        (draft / "README.md").write_text(card, encoding="utf-8")
    return path


def _nbytes(lm: EditableModel, dtype: torch.dtype | None) -> int:
    """Bytes of the model's weights in files of a dtype; None: their own."""
    return sum(part.numel() * (dtype or part.dtype).itemsize for _, part in weight_parts(lm.model))
