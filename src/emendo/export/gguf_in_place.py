"""An edit inside a quantised GGUF file, on the file's own grid: only levels of the edited tensors change.

The file keeps its size, its types and its scales, and is served as it was before. What rounding to the grid leaves over
of W + ΔW is put where neither preserved nor edited keys feel it (`solve.grid_rounding`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emendo.arguments import checked
from emendo.errors import ExportError
from emendo.export.chain import checked_chain
from emendo.export.gguf_adapter import update_record
from emendo.export.gguf_base import check_same_model, open_base
from emendo.export.gguf_grid import grid_of, with_levels
from emendo.export.gguf_model import StoredTensor, write_file
from emendo.export.rounded import RoundedLayer, Rounding, rounded
from emendo.io.whole_file import whole_file
from emendo.io.writable import check_room, check_writable_file
from emendo.models import EditableModel
from emendo.progress import Watched, stage
from emendo.shapes import Moment
from emendo.updates.against_model import edited_weight
from emendo.updates.update import ModelUpdate

NEAR = 1e-3
"""Largest relative distance of a file's weights from the model's: an edit in place is for the very weights."""


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
    progress: Watched = None,
) -> InPlaceFile:
    """Write a base's GGUF file with the updates on its own grid; the file appears whole or not at all.

    Args:
        lm: The unedited model that the updates were made for: that of the file.
        updates: In order, the first one planned on the unedited model.
        out: The file to write.
        base: GGUF file of the unedited model, in one part, with the edited tensors in a type of `gguf_grid.LAYOUTS`.
        moments: C of every edited layer, as `EditSession.second_moments` gives them.
        rounding: ``"feedback"``, or ``"nearest"``, which loses most of a small edit and is there to compare.
        progress: Told about the stages "rounding", in layers, and "writing"; True: bars.

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
    with stage(progress, "rounding", len(total)) as told:
        for part in total:
            entry, weight = file.tensor(part.layer), file.weight(part.layer)
            target = edited_weight(
                weight, [one for update in updates for one in update.layers if one.layer == part.layer]
            )
            index, said = rounded(
                *(part, weight, target, grid_of(entry)), kind=entry.tensor_type.name, moments=moments, rounding=rounding
            )
            stored = with_levels(entry, index.to(torch.uint8))
            before = torch.from_numpy(entry.data.copy()).view(torch.uint8).reshape(stored.shape)
            changed += int((before != stored).sum())
            replaced[entry.name] = StoredTensor(entry.tensor_type.name, stored)
            layers.append(said)
            told.advance()
    with (
        stage(progress, "writing"),
        whole_file(path) as draft,
        file.path.open("rb") as source,
        draft.open("wb") as stream,
    ):
        write_file(stream, source, file, replaced, update_record(updates))
        nbytes = stream.tell()
    return InPlaceFile(path, nbytes, changed, tuple(layers))
