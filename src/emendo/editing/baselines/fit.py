"""The baselines' one way in: from requests to an update, leaving the model as it was."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from emendo.arguments import Seed, checked
from emendo.editing.baselines.training import TrainingTrace
from emendo.errors import NumericalError
from emendo.methods import BaselineConfig
from emendo.methods.settings import BaselineSettings
from emendo.models import EditableModel
from emendo.progress import Progress
from emendo.requests import EditRequest, check_requests
from emendo.updates.update import LayerUpdate


@checked
def fit_baseline(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    config: BaselineConfig,
    *,
    layers: Sequence[int] | None = None,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> tuple[tuple[LayerUpdate, ...], dict[str, Any]]:
    """Work out a baseline's update; nothing is written to the model, and others may run it meanwhile.

    The same requests, model and seed give the same update. No global random state is changed.

    Args:
        lm: The model, in the state that the update is to be added to.
        requests: The facts to write.
        config: Which baseline, with its settings.
        layers: Trained layers; None takes the config's, or what the baseline trains by itself.
        seed: Of LoRA's initial A; nothing else is random.
        progress: Told about the stage "training".

    Returns:
        One update a layer, ascending, and what was done, as JSON values. In-context editing changes no weights, so it
        has no updates: its records go through `BaselineConfig.evaluation_prompts`.

    Raises:
        RequestError: No request, or repeated or contradicting ones.
        InputError: Layers, settings or a missing package; says which.
        NumericalError: A loss or a factor is not finite.
    """
    check_requests(requests)
    if layers is not None:
        wanted, origin = tuple(layers), "given (--layers)"
    elif config.layers:
        wanted, origin = config.layers, f"baseline {config.name}"
    else:
        wanted, origin = config.default_layers(lm)
    chosen = config.with_layers(wanted, lm).layers
    trace: dict[str, Any] = {
        **config.to_dict(),
        "layers": list(chosen),
        "layers_from": origin,
        "seed": seed,
    }
    if not config.own.trainer:
        return (), trace | {"passes": 0, "updates": 0, "losses": [], "stopped": "nothing to train"}
    # The caller may be inside no_grad() or inference_mode().
    with lm.isolated() as own, torch.inference_mode(False), torch.enable_grad():
        updates, training = _fit(own, requests, config.own, chosen, seed, progress)
    for update in updates:
        if not (update.residuals.isfinite().all() and update.dual_keys.isfinite().all()):
            raise NumericalError(
                f"the update of layer {update.layer} is not finite; expected finite weights. Lower "
                f"--set {config.own.section}.learning_rate, or load the model with --dtype float32"
            )
    return updates, trace | training.to_dict()


def _fit(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    settings: BaselineSettings,
    layers: Sequence[int],
    seed: int,
    progress: Progress | None,
) -> tuple[tuple[LayerUpdate, ...], TrainingTrace]:
    module, _, name = settings.trainer.partition(":")
    updates, trace = getattr(import_module(module), name)(lm, requests, settings, layers, seed, progress)
    return tuple(updates), trace
