"""What a session keeps of second moments: C, its factor, and the factor with earlier edits in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from emendo.editing.strength import same_but_for_scale
from emendo.errors import InfeasibleError
from emendo.methods import MethodConfig
from emendo.methods.settings import MomentSettings
from emendo.models import EditableModel
from emendo.parallel import Workers
from emendo.progress import Progress
from emendo.shapes import Keys, Moment
from emendo.solve import BlockMoment, PreparedLayer, output_power, prepare
from emendo.statistics import Corpora, MomentStore, describe_for_method, obtain_for_method


@dataclass(frozen=True)
class _WithHistory:
    """A metric that remembers the keys of earlier edits."""

    base: PreparedLayer
    weight: float
    keys: Keys
    metric: PreparedLayer

    def begins(self, base: PreparedLayer, weight: float, keys: Keys) -> bool:
        """Whether a history starts with this one."""
        n = len(self.keys)
        return self.base is base and self.weight == weight and len(keys) >= n and bool(torch.equal(self.keys, keys[:n]))


class MetricCache:
    """One C, one factor and one factor with history a layer: each is d_in × d_in, gigabytes in a large model.

    Args:
        lm: The model.
        seed: Of self-sampled second moments.
        store: Where second moments are kept on disk.
        unedited: Gives the unedited model, for a context.
        progress: Told about collecting.
        workers: Who collects; None: this process.
    """

    def __init__(
        self,
        lm: EditableModel,
        seed: int,
        store: MomentStore,
        unedited: Callable[[], AbstractContextManager[EditableModel]],
        *,
        progress: Progress | None = None,
        workers: Workers | None = None,
    ) -> None:
        self._lm, self._seed, self.store, self._unedited = lm, seed, store, unedited
        self._progress, self._corpora = progress, Corpora()
        self.workers = workers
        self._moments: dict[int, tuple[str, Moment | BlockMoment]] = {}
        self._prepared: dict[int, PreparedLayer] = {}
        self._powers: dict[int, tuple[Moment | BlockMoment, float]] = {}
        self._histories: dict[int, _WithHistory] = {}

    @property
    def layers(self) -> list[int]:
        """Layers whose factor is held, ascending."""
        return sorted(self._prepared)

    def described(self, layers: Sequence[int], settings: MomentSettings) -> dict[str, Any]:
        """The record of the second moments of some layers, without having them."""
        return describe_for_method(self._lm, layers, settings, seed=self._seed, corpora=self._corpora)

    def moments(
        self, layers: Sequence[int], settings: MomentSettings
    ) -> tuple[dict[int, Moment | BlockMoment], dict[str, Any]]:
        """C of some layers, and the record of where it comes from; see `EditSession.second_moments`."""
        record = self.described(layers, settings)
        known = {layer: found for layer in layers if (found := self._moments.get(layer)) is not None}
        if any(layer not in known or known[layer][0] != record["fingerprint"] for layer in layers):
            with self._unedited() as lm:
                moments, record = obtain_for_method(
                    *(lm, layers, settings),
                    seed=self._seed,
                    store=self.store,
                    progress=self._progress,
                    corpora=self._corpora,
                    workers=self.workers,
                )
            for layer, moment in moments.items():
                self._moments[layer] = record["fingerprint"], moment.to(self._lm.block_device(layer))
        return {layer: self._moments[layer][1] for layer in layers}, record

    def output_power(self, layer: int, moment: Moment | BlockMoment) -> float:
        """tr(W₀ C W₀ᵀ) of a layer's unedited weight."""
        known = self._powers.get(layer)
        if known is None or known[0] is not moment:
            power = output_power(self._lm.base_weight(layer), moment)
            known = self._powers[layer] = (moment, power)
        return known[1]

    def metrics(self, config: MethodConfig) -> tuple[dict[int, PreparedLayer], dict[str, Any]]:
        """The factorised preservation metric of every layer that a method writes, and the record of its C."""
        moments, record = self.moments(config.written_layers, config.moments)
        if not config.preservation.ridge:  # then every direction has to be priced by C
            dense = [len(moment) for moment in moments.values() if not isinstance(moment, BlockMoment)]
            _check_enough_tokens(record, max(dense, default=0))  # of a mixture the solve knows, expert by expert
        for layer, moment in moments.items():
            known = self._prepared.get(layer)
            if known is None or known.moment is not moment or known.asked != config.preservation:
                self._prepared[layer] = prepare(moment, config.preservation)
        return {layer: self._prepared[layer] for layer in config.written_layers}, record

    def of_any_scale(self, config: MethodConfig) -> dict[int, PreparedLayer]:
        """Metrics like those of `metrics`, but for a factor: the layer's last ones where they are such.

        Args:
            config: The method.
        """
        held = {layer: self._prepared[layer] for layer in config.written_layers if layer in self._prepared}
        moments, _ = self.moments(config.written_layers, config.moments)
        if len(held) == len(moments) and all(
            metric.moment is moments[layer] and same_but_for_scale(metric.asked, config.preservation)
            for layer, metric in held.items()
        ):
            return held
        return self.metrics(config)[0]

    def remembering(self, layer: int, base: PreparedLayer, keys: Keys, weight: float) -> PreparedLayer:
        """A layer's metric with the keys of earlier edits; where more have come since last time, those are added.

        Args:
            layer: Index of the block.
            base: The metric without them.
            keys: Of all earlier edits, in their order.
            weight: What each of them counts.
        """
        known = self._histories.get(layer)
        metric, first = (known.metric, len(known.keys)) if known and known.begins(base, weight, keys) else (base, 0)
        if len(keys) > first:
            metric = metric.remembering(keys[first:], weight=weight)
        self._histories[layer] = _WithHistory(base, weight, keys, metric)
        return metric

    def forget_histories(self) -> None:
        """Give back the memory of earlier edits."""
        self._histories = {}


def _check_enough_tokens(record: dict[str, Any], d_in: int) -> None:
    """Refuse a C that cannot have an inverse: rounding of float32 products can make it look as if it had one."""
    tokens = record["tokens"] * len(record["corpus"].get("parts", [None]))
    if tokens < d_in:
        raise InfeasibleError(
            f"a second moment of {tokens} tokens says nothing about {d_in - tokens} of {d_in} directions of the keys, "
            "which an update would then use as if they were free; expected at least as many tokens as directions "
            "(--set moments.multiple=10), or a ridge (--set preservation.ridge=VALUE)"
        )
