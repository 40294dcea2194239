"""Updates as factors: ΔW = RᵀQ for each edited layer, and what they are relative to.

`(Rᵀ, Q)` is a LoRA pair (B, A) at scale 1. Factors are kept in float32; a weight is always written as
``cast(W₀ + ΣΔ)`` with the sum in float32, never incremented in the model's own dtype.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from emendo.arguments import check_fields, check_width, checked
from emendo.errors import InputError, NumericalError, UpdateFileError
from emendo.io.tensor_file import read_tensor_file, write_tensor_file
from emendo.shapes import DualKeys, Keys, Residuals, Weight
from emendo.updates.columns import checked_widths, narrowed, widened
from emendo.updates.contents import (
    FORMAT,
    check_names,
    check_shapes,
    checked_header,
    recorded_groups,
    recorded_requests,
    version_of,
)
from emendo.updates.predecessors import UNEDITED, Predecessors

_SHOWN = 6
"""Layers that the short form of an update names."""

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What factors can be; anything else would fail in the middle of an edit, or give another ΔW without a word."""


@dataclass(frozen=True)
class LayerUpdate:
    """The update of one layer, as factors.

    Args:
        layer: Index of the block.
        module: Dotted name of the edited linear map.
        residuals: R, ``[n, d_out]``.
        dual_keys: Q, ``[n, d_in]``.
        keys: K, the keys that the update writes, ``[edits, d_in]``: what later edits have to preserve. None where
            it was not made by a solve.
    """

    layer: int
    module: str
    residuals: Residuals
    dual_keys: DualKeys
    keys: Keys | None = None

    def __post_init__(self) -> None:
        check_shapes(self.layer, self.residuals, self.dual_keys, self.keys)
        dtypes = {name: tensor.dtype for name, tensor in self.tensors.items()}
        if dtypes["residuals"] != dtypes["dual_keys"] or not set(dtypes.values()) <= set(_DTYPES):
            raise InputError(
                f"layer {self.layer}: factors of dtype {', '.join(f'{dtype} ({n})' for n, dtype in dtypes.items())}; "
                f"expected one for residuals and dual keys, and each of {', '.join(map(str, _DTYPES))}"
            )

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in self.tensors.items())
        return f"<LayerUpdate of {self.module}, {shapes}, {self.residuals.dtype}>"

    @property
    def rank(self) -> int:
        """Rows of the factors: an upper bound of the rank of ΔW."""
        return len(self.residuals)

    def delta(self) -> Weight:
        """ΔW as a dense float32 matrix ``[d_out, d_in]``."""
        return self.residuals.T @ self.dual_keys

    @checked
    def at(self, keys: Keys) -> Residuals:
        """ΔW k for every key, in float64, without forming ΔW.

        Raises:
            InputError: Keys are of another width.
        """
        check_width("keys", keys, self.dual_keys.shape[1])
        dual_keys = self.dual_keys.double()
        return (keys.to(dual_keys) @ dual_keys.T) @ self.residuals.double()

    def compacted(self) -> LayerUpdate:
        """The same ΔW in no more rows than its smaller side; sums of many updates have more."""
        d_out, d_in = self.residuals.shape[1], self.dual_keys.shape[1]
        if self.rank <= min(d_out, d_in):
            return self
        delta = (self.residuals.double().T @ self.dual_keys.double()).to(self.residuals)
        eye = torch.eye(min(d_out, d_in), dtype=delta.dtype, device=delta.device)
        residuals, dual_keys = (eye, delta) if d_out <= d_in else (delta.T, eye)
        return LayerUpdate(self.layer, self.module, residuals, dual_keys, self.keys)

    @checked
    def to(self, device: torch.device) -> LayerUpdate:
        """The same update with its factors and keys on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return LayerUpdate(self.layer, self.module, **moved)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        named = {"residuals": self.residuals, "dual_keys": self.dual_keys}
        return named if self.keys is None else {**named, "keys": self.keys}


@dataclass(frozen=True)
class ModelUpdate:
    """Updates of one or more layers of one base model, with what is needed to apply them safely.

    Args:
        layers: One entry a layer, ascending.
        base: Identity of the base model: at least ``weights_sha256``, ``tokenizer_sha256``, ``name``.
        preceding: The updates that were applied when this one was planned.
        info: Everything recorded about the plan (requests, method, seeds, versions, metrics), as JSON values.

    Raises:
        InputError: A layer has several entries, or the entries are not ascending.
    """

    OBTAINED_BY: ClassVar[str] = "plan.update or ModelUpdate.load(PATH)"

    layers: tuple[LayerUpdate, ...]
    base: dict[str, str]
    preceding: Predecessors = UNEDITED
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        # A file has one place for each layer, and the identity depends on the order.
        numbers = [update.layer for update in self.layers]
        if numbers != sorted(set(numbers)):
            raise InputError(
                f"an update of layers {numbers} cannot be kept; expected each once, ascending: use merge_layers(parts)"
            )

    def __repr__(self) -> str:
        parts = ", ".join(f"{part.layer} (rank {part.rank})" for part in self.layers[:_SHOWN])
        more = f" and {len(self.layers) - _SHOWN} more" if len(self.layers) > _SHOWN else ""
        after = f", after {len(self.preceding)} other update(s)" if self.preceding else ""
        name = self.base.get("name", "an unnamed model")
        return f"<ModelUpdate of {name}: layers {parts or 'none'}{more}, {self.nbytes / 1024:,.0f} KiB{after}>"

    @property
    def id(self) -> str:
        """Content identity: SHA-256 over base, predecessors and tensors (not over `info`)."""
        digest = hashlib.sha256(self.base.get("weights_sha256", "").encode())
        digest.update(self.preceding.identity)
        for update in self.layers:
            digest.update(f"{update.layer}|{update.module}|".encode())
            for tensor in update.tensors.values():
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                if tensor.numel():  # a view of no rows as bytes is refused for some shapes
                    digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def requests(self) -> list[Mapping[str, Any]]:
        """The facts that it writes, as recorded; none where its record has none."""
        return recorded_requests(self.info)

    @property
    def groups(self) -> list[list[Mapping[str, Any]]]:
        """The facts of each edit, as recorded: one, or several that share one key and one value.

        A solve has one row for each: they go with the rows of a layer where there are as many.
        """
        return recorded_groups(self.info)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for update in self.layers for tensor in update.tensors.values())

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the update to a file, which appears whole or not at all.

        The file is safetensors: ``layer.<l>.residuals [n, d_out]``, ``layer.<l>.dual_keys [n, d_in]`` and, where known,
        ``layer.<l>.keys [edits, d_in]`` in float32, and a JSON header with everything else. Of factors that are mostly
        zeros, as those of experts that an edit does not reach, only columns that hold something are stored
        (`updates.columns`).

        Raises:
            OutputError: The path cannot be written.
            NumericalError: A factor or key is not finite: no program would read the file.
        """
        try:
            for part in self.layers:
                _check_finite(part)
        except ValueError as error:
            raise NumericalError(f"this update cannot be stored: {error}; plan it again (--dtype float32)") from error
        tensors: dict[str, Tensor] = {}
        header: dict[str, Any] = {
            "base": self.base,
            "preceding": self.preceding.header,
            "modules": {str(update.layer): update.module for update in self.layers},
            "info": self.info,
        }
        for update in self.layers:
            stored, width = narrowed(update.tensors)
            tensors |= {f"layer.{update.layer}.{name}": tensor for name, tensor in stored.items()}
            if width is not None:
                header.setdefault("widths", {})[str(update.layer)] = width
        return write_tensor_file(Path(path), replace(FORMAT, version=version_of(header)), tensors, header)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> ModelUpdate:
        """Read an update that `save` wrote.

        Raises:
            UpdateFileError: The file is missing, truncated, altered, or not an update.
        """
        tensors, header = read_tensor_file(Path(path), FORMAT)
        try:
            return _from_file(tensors, header)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UpdateFileError(
                f"{str(path)!r} has a sound digest but not the contents of an update ({error!r}); {FORMAT.remedy}"
            ) from error


def _from_file(tensors: dict[str, Tensor], header: dict[str, Any]) -> ModelUpdate:
    """The update in a file whose digest is right, which anybody can compute: nothing of its contents is taken on trust.

    Raises:
        KeyError, ValueError, TypeError, AttributeError: The contents are not those of an update.
    """
    modules, base, preceding, info = checked_header(header)
    widths = checked_widths(header)
    check_names(tensors, modules)
    layers = tuple(
        _layer(int(layer), modules[layer], widened(tensors, layer, widths)) for layer in sorted(modules, key=int)
    )
    for part in layers:
        _check_finite(part)
    return ModelUpdate(layers, base, preceding, info)


def _layer(layer: int, module: str, tensors: Mapping[str, Tensor]) -> LayerUpdate:
    return LayerUpdate(layer, module, tensors["residuals"], tensors["dual_keys"], tensors.get("keys"))


def _check_finite(part: LayerUpdate) -> None:
    for name, tensor in part.tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"the {name.replace('_', ' ')} of layer {part.layer} hold numbers that are not finite")


def merge_layers(parts: Sequence[LayerUpdate]) -> tuple[LayerUpdate, ...]:
    """Sum updates layer by layer by stacking their factors; layers come out ascending.

    Raises:
        InputError: Updates of one layer are for different modules or shapes.
    """
    by_layer: dict[int, list[LayerUpdate]] = {}
    for part in parts:
        by_layer.setdefault(part.layer, []).append(part)
    for layer, same in by_layer.items():
        kinds = {(part.module, part.residuals.shape[1], part.dual_keys.shape[1]) for part in same}
        if len(kinds) > 1:
            raise InputError(
                f"updates of layer {layer} cannot be summed, expected one module and shape and found "
                + ", ".join(f"{module} [{d_out}, {d_in}]" for module, d_out, d_in in sorted(kinds))
            )
    return tuple(
        LayerUpdate(
            layer=layer,
            module=same[0].module,
            residuals=torch.cat([part.residuals for part in same]),
            dual_keys=torch.cat([part.dual_keys for part in same]),
            keys=_stacked([part.keys for part in same]),
        )
        for layer, same in sorted(by_layer.items())
    )


def _stacked(keys: Sequence[Keys | None]) -> Keys | None:
    """All keys, or None where some are not known: half a history would preserve half of the edits in silence."""
    known = [part for part in keys if part is not None]
    return torch.cat(known) if len(known) == len(keys) else None
