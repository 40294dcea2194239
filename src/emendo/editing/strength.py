"""Choosing λ for an edit: `memorization.share` in place of a number (`solve.strength` has the rule)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from emendo.editing.keys import extract_keys
from emendo.editing.sharing import group_means, share_groups
from emendo.methods import MethodConfig, ResolvedMethod, apply_settings
from emendo.models import EditableModel
from emendo.requests import AnyContext, EditRequest
from emendo.solve import PreparedLayer, SolveStats
from emendo.solve.settings import Preservation
from emendo.solve.strength import fitting_scale, is_multiple, mean_share

LEAST_WRITTEN = 0.8
"""Mean part of the residuals below which a plan by least squares says that it writes little."""


def leading(preservation: Preservation) -> str:
    """The setting that is λ: the weight of C, or the ridge where C does not count.

    Args:
        preservation: f.
    """
    return "preservation.weight" if preservation.weight else "preservation.ridge"


def same_but_for_scale(one: Preservation, other: Preservation) -> bool:
    """Whether two metrics differ by a factor only.

    Args:
        one: f.
        other: Another.
    """
    alike = replace(one, weight=other.weight, ridge=other.ridge) == other
    return alike and is_multiple((one.weight, one.ridge), (other.weight, other.ridge))


@torch.no_grad()
def with_fitting_weight(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    method: ResolvedMethod[MethodConfig],
    metrics: Mapping[int, PreparedLayer],
    contexts: tuple[AnyContext, ...],
) -> ResolvedMethod[MethodConfig]:
    """The method with λ in numbers, chosen at the keys of these requests in the model's present state.

    Weight and ridge keep their ratio. Earlier edits do not count: λ prices what C says of preserved text.

    Args:
        lm: The model.
        requests: The facts to write.
        method: A method with a share.
        metrics: Of each written layer, with f at any scale.
        contexts: What the prompts are put in.

    Raises:
        InputError: No λ reaches the share.
    """
    config = method.config
    share, s = config.memorization.share, config.memorization.s
    groups = share_groups(lm, requests, config.target.shared)
    if share is None or config.memorization.strength(1 if config.batching == "one_by_one" else len(groups)) == 0:
        return without_share(method)
    keys = extract_keys(lm, requests, contexts, config.written_layers, config.keys.average)
    name = leading(config.preservation)
    leverages = []
    for layer, metric in metrics.items():
        scale = getattr(metric.asked, name.removeprefix("preservation."))
        leverages.append(metric.leverage(group_means(keys[layer].mean, groups)) * scale)
    chosen = fitting_scale(leverages, s, share)
    given = getattr(config.preservation, name.removeprefix("preservation."))
    fitted = replace(
        config.preservation,
        weight=config.preservation.weight * chosen / given,
        ridge=config.preservation.ridge * chosen / given,
    )
    reached = mean_share(leverages, s, chosen)
    why = (
        f"chosen for this model and these facts, in place of {given:g}: the largest power of 4 at which a key alone "
        f"gets {share:g} of its residual in the mean (here {reached:.3f}; memorization.share)"
    )
    settings = {"preservation.weight": fitted.weight, "preservation.ridge": fitted.ridge}
    told = {setting: why for setting, value in settings.items() if value}
    return without_share(ResolvedMethod(apply_settings(config, settings), {**method.origins, **told}))


def without_share(method: ResolvedMethod[MethodConfig]) -> ResolvedMethod[MethodConfig]:
    """The method with its λ as it stands, so that it is the same wherever it is planned again."""
    return ResolvedMethod(apply_settings(method.config, {"memorization.share": None}), method.origins)


def little_written_warning(method: MethodConfig, stats: Sequence[SolveStats]) -> tuple[str, ...]:
    """A sentence on least squares that leaves much of the residuals, which shows as facts that stay as they were.

    Args:
        method: The method, with its λ.
        stats: Of every solve.
    """
    solved = [one for one in stats if one.s > 0]
    if not solved:
        return ()
    written = sum(one.memorized for one in solved) / len(solved)
    if written >= LEAST_WRITTEN:
        return ()
    name = leading(method.preservation)
    value = getattr(method.preservation, name.removeprefix("preservation."))
    return (
        f"{method.name} writes {100 * written:.0f} % of what is missing, in the mean over facts and layers: "
        f"{name}={value:g} is large beside the leverage of these keys, or many of them are alike. Leave it out and "
        "give a share (--set memorization.share=0.95), or memorize with equality (--method emendo).",
    )
