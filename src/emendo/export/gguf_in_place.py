"""An edit inside a quantised GGUF file, on the file's own grid: only levels of the edited tensors change.

The file keeps its size, its types and its scales, and is served as it was before. What rounding to the grid leaves over
of W + ΔW is put where neither preserved nor edited keys feel it (`solve.grid_rounding`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from emendo.arguments import checked
from emendo.errors import ExportError
from emendo.export.chain import checked_chain
from emendo.export.gguf_adapter import update_record
from emendo.export.gguf_base import BaseFile, check_same_model, open_base
from emendo.export.gguf_grid import grid_of, with_levels
from emendo.export.gguf_model import StoredTensor, write_file
from emendo.io.whole_file import whole_file
from emendo.io.writable import check_room, check_writable_file
from emendo.models import EditableModel, edited_weight
from emendo.shapes import Keys, Moment, Weight
from emendo.solve.grid_rounding import Grid, round_nearest, round_with_feedback, rounding_metric
from emendo.updates.update import LayerUpdate, ModelUpdate

Rounding = Literal["feedback", "nearest"]

NEAR = 1e-3
"""Largest relative distance of a file's weights from the model's: an edit in place is for the very weights."""


@dataclass(frozen=True)
class RoundedLayer:
    """What rounding did to one layer.

    Attributes:
        layer: Index of the block.
        kind: Type of its tensor.
        kept: ⟨ΔW' k, ΔW k⟩ / ⟨ΔW k, ΔW k⟩ over the keys of the edit: 1 where all of it is left.
        moved: Share of the entries whose level changed.
        drift: tr(E C Eᵀ) / tr(W C Wᵀ) of what rounding added, E = W' − W − ΔW: on preserved keys.
    """

    layer: int
    kind: str
    kept: float
    moved: float
    drift: float


@dataclass(frozen=True)
class InPlaceFile:
    """A written file.

    Attributes:
        path: The file.
        nbytes: Its bytes.
        changed: Bytes of the edited tensors that differ from the base's.
        layers: What rounding did to each edited layer.
    """

    path: Path
    nbytes: int
    changed: int
    layers: tuple[RoundedLayer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "path": str(self.path), "layers": [vars(layer) for layer in self.layers]}


@checked
def write_gguf_in_place(
    lm: EditableModel,
    updates: Sequence[ModelUpdate],
    out: str | Path,
    *,
    base: str | Path,
    moments: Mapping[int, Moment],
    rounding: Rounding = "feedback",
) -> InPlaceFile:
    """Write a base's GGUF file with the updates on its own grid; the file appears whole or not at all.

    Args:
        lm: The unedited model that the updates were made for: that of the file.
        updates: In order, the first one planned on the unedited model.
        out: The file to write.
        base: GGUF file of the unedited model, in one part, with the edited tensors in a type of `gguf_grid.LAYOUTS`.
        moments: C of every edited layer, as `EditSession.second_moments` gives them.
        rounding: ``"feedback"``, or ``"nearest"``, which loses most of a small edit and is there to compare.

    Raises:
        BaseMismatchError: An update belongs to another model, or was planned on top of others than come before it.
        ExportError: `base` is no file of the model or of another type, `out` is that file, or keys or C are missing.
        InputError: The model holds edits of a session.
        NumericalError: A metric is not positive definite.
        OutputError: The file cannot be written.
    """
    path = Path(out).expanduser()
    total = checked_chain(lm, updates)
    file = open_base(base, lm)
    if path.exists() and path.samefile(file.path):
        raise ExportError(f"--out {str(path)!r} is the file of the base itself; choose another file (--out)")
    check_writable_file(path)
    distance = check_same_model(file, lm, [part.layer for part in total])
    if not distance <= NEAR:
        raise ExportError(
            f"the edited weights in {str(file.path)!r} are at a relative distance of {distance:.1e} from those of "
            f"{lm.name!r}; expected the very file that the edit was made on: edit it as the model (--model FILE.gguf), "
            "then export with the same file (--base)"
        )
    check_room(path.parent, file.path.stat().st_size)
    replaced: dict[str, StoredTensor] = {}
    layers, changed = [], 0
    for part in total:
        stored, said = _rounded(file, part, _of_layer(updates, part.layer), moments, rounding)
        entry = file.tensor(part.layer)
        before = torch.from_numpy(entry.data.copy()).view(torch.uint8).reshape(stored.shape)
        changed += int((before != stored).sum())
        replaced[entry.name] = StoredTensor(entry.tensor_type.name, stored)
        layers.append(said)
    with whole_file(path) as draft, file.path.open("rb") as source, draft.open("wb") as stream:
        write_file(stream, source, file, replaced, update_record(updates))
        nbytes = stream.tell()
    return InPlaceFile(path, nbytes, changed, tuple(layers))


def _of_layer(updates: Sequence[ModelUpdate], layer: int) -> list[LayerUpdate]:
    return [part for update in updates for part in update.layers if part.layer == layer]


def _rounded(
    file: BaseFile,
    part: LayerUpdate,
    parts: Sequence[LayerUpdate],
    moments: Mapping[int, Moment],
    rounding: Rounding,
) -> tuple[Tensor, RoundedLayer]:
    """The bytes of a layer's tensor with the edit in it, and what rounding did."""
    keys, moment = part.keys, moments.get(part.layer)
    if keys is None or moment is None:
        what = "keys, which were dropped from the update" if keys is None else "second moment (moments=)"
        raise ExportError(f"rounding layer {part.layer} in place needs its {what}; plan the edit again")
    entry, weight = file.tensor(part.layer), file.weight(part.layer)
    grid, target = grid_of(entry), edited_weight(weight, parts)
    if rounding == "nearest":
        index = round_nearest(target, grid)
    else:
        index = round_with_feedback(target, grid, rounding_metric(moment.cpu(), keys))
    return with_levels(entry, index.to(torch.uint8)), _told(part, entry, grid, index, weight, target, keys, moment)


def _told(
    part: LayerUpdate,
    entry: Any,
    grid: Grid,
    index: Tensor,
    weight: Weight,
    target: Weight,
    keys: Keys,
    moment: Moment,
) -> RoundedLayer:
    found, C = grid.values(index, slice(None)), moment.cpu().double()
    wanted, given = keys.double() @ (target - weight).double().T, keys.double() @ (found - weight).double().T
    error, own = (found - target).double(), weight.double()
    return RoundedLayer(
        layer=part.layer,
        kind=entry.tensor_type.name,
        kept=float((wanted * given).sum() / wanted.square().sum()),
        moved=float((index != round_nearest(weight, grid)).float().mean()),
        drift=float((error @ C * error).sum() / (own @ C * own).sum()),
    )
