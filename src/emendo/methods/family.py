"""What a family of models asks of a method of the engine, and what it excludes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emendo.errors import MethodError
from emendo.methods.axes import Axes
from emendo.models.architecture import has_dead_units
from emendo.solve.distribution import DISTRIBUTIONS

if TYPE_CHECKING:
    from emendo.models.decoder import DecoderView

_DEAD_RIDGE = 1e-4
_NORMED = "family: the MLP's output is normed before it joins the residual stream"
_DEAD = "family: units of a ReLU may never fire, and C would price them at nothing"


def family_settings(config: Axes, lm: DecoderView) -> dict[str, tuple[Any, str]]:
    """Settings that the model's family asks for, by dotted name, each with the reason in words.

    Where the MLP's output is normed before it joins the residual stream, ΔW k is not what the stream gains, so targets
    are MLP outputs, and what one layer writes is no part of what another layer's MLP has to give: every layer aims at
    a value of its own.

    Where units may never fire, C alone prices an update that uses them at nothing. The ridge is added only where C is
    singular. A ten-thousandth of the mean unit's power is far below what any live direction of the keys is priced at
    that matters to the update, and far above float64 rounding.
    """
    found: dict[str, tuple[Any, str]] = {}
    if lm.spec.mlp_normed:
        found["target.site"] = "mlp_out", _NORMED
        if DISTRIBUTIONS[config.distribution].passes_through:
            found["distribution"] = "replay", _NORMED
    preservation = config.preservation
    priced = preservation.weight != 0 and preservation.null_space == "off"
    if priced and has_dead_units(getattr(lm, "config", None)):
        found["preservation.dead_ridge"] = _DEAD_RIDGE, _DEAD
    return found


def check_mixture(config: Axes, layers: Sequence[int], lm: DecoderView) -> None:
    """Refuse what has no meaning, or none that is built, where a layer is a mixture of experts.

    Args:
        config: The method.
        layers: The layers that it edits.
        lm: The model.

    Raises:
        MethodError: Says which value, why, and what to set instead.
    """
    routed = [layer for layer in layers if lm.mixture(layer) is not None]
    if not routed:
        return
    where = f"layers {routed} of {lm.spec.model_type} are mixtures of experts"
    if config.preservation.null_space != "off":
        raise MethodError(
            f"preservation.null_space={config.preservation.null_space}: {where}, and every expert would have a null "
            "space of its own size, which is not built (--set preservation.null_space=off, or --method memit)"
        )
    if config.post.kind in _OF_ONE_MATRIX:
        raise MethodError(
            f"post.kind={config.post.kind}: {where}; {_OF_ONE_MATRIX[config.post.kind]} (--set post.kind=none, or cap)"
        )


_OF_ONE_MATRIX = {
    "rect": "the largest relative changes of all experts together are not those of each, and an expert that an edit "
    "does not reach has none",
    "prune": "the singular values of all experts side by side are not those of any expert",
}


def check_family(config: Axes, lm: DecoderView) -> None:
    """Refuse what a family with a normed MLP output cannot have.

    Raises:
        MethodError: Says which value, and what to set instead.
    """
    if not lm.spec.mlp_normed:
        return
    if config.target.site != "mlp_out":
        raise MethodError(
            f"target.site={config.target.site}: {lm.spec.model_type} norms its MLP's output before it joins the "
            "residual stream, so an edit cannot reach a target there; leave it out, or --set target.site=mlp_out"
        )
    if DISTRIBUTIONS[config.distribution].passes_through:
        raise MethodError(
            f"distribution={config.distribution} divides one residual over layers, and {lm.spec.model_type} norms "
            "its MLPs' outputs; expected single, ends or replay (--set distribution=replay)"
        )
