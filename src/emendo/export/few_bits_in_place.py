"""An edit inside a model of bitsandbytes, on its own grid: the folder of the base with other levels in edited maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.errors import ExportError
from emendo.export.chain import checked_chain
from emendo.export.rounded import RoundedLayer, Rounding, rounded
from emendo.io.whole_folder import whole_folder
from emendo.models import EditableModel
from emendo.models.few_bits_grid import IN_PLACE, few_bits_grid
from emendo.models.packed_weights import kind_of
from emendo.models.saving import check_saveable, save_levels
from emendo.progress import Watched, stage
from emendo.shapes import Moment
from emendo.updates.against_model import edited_weight
from emendo.updates.update import ModelUpdate


@dataclass(frozen=True)
class InPlaceFolder:
    """A written model.

    Attributes:
        path: The folder.
        layers: What rounding did to each edited layer.
    """

    path: Path
    layers: tuple[RoundedLayer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"path": str(self.path), "layers": [vars(layer) for layer in self.layers]}


@checked
def write_in_place(
    lm: EditableModel,
    updates: Sequence[ModelUpdate],
    out: str | Path,
    *,
    moments: Mapping[int, Moment],
    rounding: Rounding = "feedback",
    progress: Watched = None,
) -> InPlaceFolder:
    """Write a model in few bits with the updates on its own grid; the folder appears whole or not at all.

    Scales stay, and so does everything but the levels of the edited maps.

    Args:
        lm: The unedited model that the updates were made for, of bitsandbytes (nf4, fp4 or int8).
        updates: In order, the first one planned on the unedited model.
        out: The folder to make: absent, or empty.
        moments: C of every edited layer, as `EditSession.second_moments` gives them.
        rounding: ``"feedback"``, or ``"nearest"``, which loses most of a small edit and is there to compare.
        progress: Told about the stages "rounding", in layers, and "writing"; True: bars.

    Raises:
        BaseMismatchError: An update belongs to another model, or was planned on top of others than come before it.
        ExportError: The model is of another kind, or keys or C are missing.
        InputError: The model holds edits of a session.
        NumericalError: A metric is not positive definite.
        OutputError: The folder cannot be written, or holds something.
    """
    total = checked_chain(lm, updates)
    levels, layers = {}, []
    with stage(progress, "rounding", len(total)) as told:
        for part in total:
            module = lm.down_projection(part.layer)
            kind = kind_of(module)
            if kind not in IN_PLACE:
                raise ExportError(
                    f"{lm.module_name(part.layer)} has {kind or 'plain'} weights; expected one of "
                    f"{', '.join(IN_PLACE)} (--load-in), or a GGUF file (emendo export gguf-in-place)"
                )
            weight = lm.weight(part.layer)
            target = edited_weight(
                weight, [one for update in updates for one in update.layers if one.layer == part.layer]
            )
            index, said = rounded(
                *(part, weight, target, few_bits_grid(module)), kind=kind, moments=moments, rounding=rounding
            )
            levels[part.layer] = index
            layers.append(said)
            told.advance()
    check_saveable(lm)
    path = Path(out).expanduser()
    with stage(progress, "writing"), whole_folder(path) as draft:
        save_levels(lm, levels, draft)
    return InPlaceFolder(path, tuple(layers))
