"""An update file as arrays: what can be said of edits without a model needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from emendo.arguments import checked
from emendo.errors import UpdateFileError
from emendo.io.tensor_file import read_array_file
from emendo.updates.columns import checked_widths, widened
from emendo.updates.contents import (
    FORMAT,
    PARTS,
    check_names,
    check_shapes,
    checked_header,
    recorded_groups,
    recorded_requests,
)
from emendo.updates.predecessors import Predecessors


@dataclass(frozen=True)
class StoredLayer:
    """The factors of one layer, as `LayerUpdate` has them.

    Attributes:
        layer: Index of the block.
        module: Dotted name of the edited linear map.
        residuals: R, ``[n, d_out]``.
        dual_keys: Q, ``[n, d_in]``.
        keys: K, ``[edits, d_in]``; None where the update was not made by a solve.
    """

    layer: int
    module: str
    residuals: Float[np.ndarray, "n d_out"]
    dual_keys: Float[np.ndarray, "n d_in"]
    keys: Float[np.ndarray, "edits d_in"] | None

    def __post_init__(self) -> None:
        check_shapes(self.layer, self.residuals, self.dual_keys, self.keys)
        for name in PARTS:
            part = getattr(self, name)
            if part is not None and not np.isfinite(part).all():
                raise ValueError(f"the {name.replace('_', ' ')} of layer {self.layer} hold numbers that are not finite")

    @property
    def rank(self) -> int:
        """Rows of the factors."""
        return len(self.residuals)


@dataclass(frozen=True)
class StoredUpdate:
    """An update as its file has it.

    Attributes:
        layers: One entry a layer, ascending.
        base: Identity of the base model.
        preceding: The updates before it.
        info: Everything recorded about the plan.
    """

    layers: tuple[StoredLayer, ...]
    base: dict[str, str]
    preceding: Predecessors
    info: dict[str, Any]

    @property
    def id(self) -> str:
        """Content identity, that of the same `ModelUpdate`."""
        digest = hashlib.sha256(self.base.get("weights_sha256", "").encode())
        digest.update(self.preceding.identity)
        for part in self.layers:
            digest.update(f"{part.layer}|{part.module}|".encode())
            for array in (part.residuals, part.dual_keys, part.keys):
                if array is not None:
                    digest.update(f"torch.{array.dtype}{tuple(array.shape)}".encode())
                    digest.update(array.tobytes())
        return digest.hexdigest()

    @property
    def requests(self) -> list[Mapping[str, Any]]:
        """The facts that it writes, as recorded."""
        return recorded_requests(self.info)

    @property
    def groups(self) -> list[list[Mapping[str, Any]]]:
        """The facts of each edit, as `ModelUpdate.groups` has them."""
        return recorded_groups(self.info)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> StoredUpdate:
        """Read and verify an update file without torch.

        Raises:
            UpdateFileError: The file is missing, truncated, altered, not an update, or of a dtype that numpy lacks.
        """
        arrays, header = read_array_file(Path(path), FORMAT)
        try:
            modules, base, preceding, info = checked_header(header)
            widths = checked_widths(header)
            check_names(arrays, modules)
            layers = tuple(
                _layer(int(layer), modules[layer], widened(arrays, layer, widths)) for layer in sorted(modules, key=int)
            )
        except (KeyError, ValueError, TypeError) as error:
            raise UpdateFileError(
                f"{str(path)!r} has a sound digest but not the contents of an update ({error!r}); {FORMAT.remedy}"
            ) from error
        return cls(layers, base, preceding, info)


def _layer(layer: int, module: str, arrays: Mapping[str, np.ndarray]) -> StoredLayer:
    return StoredLayer(layer, module, arrays["residuals"], arrays["dual_keys"], arrays.get("keys"))
