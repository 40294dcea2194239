"""One pass over the text for the second moments of all requested layers; resumable, bit for bit."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.errors import CorpusError, MomentsError, NumericalError
from emendo.io.tensor_file import read_tensor_file, write_tensor_file
from emendo.models import EditableModel
from emendo.progress import Watched, watching
from emendo.solve.numerics import pinned
from emendo.statistics.expert_moment import ExpertSecondMoment
from emendo.statistics.packed import LayerMoment, Product, moment_of, named, parts_of
from emendo.statistics.sample import SAMPLE_ROWS
from emendo.statistics.second_moment import Accumulate, SecondMoment
from emendo.statistics.spec import Fingerprint, MomentSpec, canonical_json
from emendo.statistics.store import FORMAT, format_of

TOKEN_BUDGET = 4096
"""Tokens of one forward pass."""

CHECKPOINT_EVERY = 120.0
"""Seconds between two saved states: about this much work is lost with a process."""

_SHARE = 0.05
"""Of the time, that saving states may take: a state of a large model is gigabytes."""


@checked
@pinned()
def collect_moments(
    lm: EditableModel,
    layers: Sequence[int],
    spec: MomentSpec,
    *,
    checkpoint: Path | None = None,
    every: float = CHECKPOINT_EVERY,
    progress: Watched = None,
) -> dict[int, LayerMoment]:
    """Count the keys of all `layers` in one pass that stops above the highest.

    Exactly ``spec.tokens_for(adapter, layers)`` keys of each layer are counted. With `checkpoint`, the state is saved
    every two minutes, and a call with the same arguments continues from there to the same result, bit for bit; what
    was counted is not computed again. The saved state is left in place until the caller has stored the result.

    Args:
        lm: The model.
        layers: Layers whose keys to count.
        spec: What to collect.
        checkpoint: Directory for the state of an unfinished collection; None: none is kept.
        every: Seconds between two saved states, or more where saving one takes over a twentieth of that; 0 saves after
            every forward pass.
        progress: Told about the stage "second moments", in tokens.

    Raises:
        LayerError: A layer that the model does not have.
        CorpusError: The text cannot be read or is too short.
        MomentsError: The saved state is damaged.
        NumericalError: Activations that are not finite; names the module.
    """
    layers = lm.check_layers(layers)
    spec.check_length(lm)
    progress = watching(progress)
    tokens = spec.tokens_for(lm, layers)
    state = State.fresh(lm, layers, spec)
    saves = Saves(None if checkpoint is None else partial_path(checkpoint, spec.fingerprint(lm, layers), layers), every)
    saves.resume(state)
    n_sequences = sequences_of(spec, tokens)
    ahead = spec.corpus.sampled_tokens(length=spec.length, count=n_sequences, start=state.sequences)
    progress.start("second moments", tokens - state.count + ahead)
    try:
        with lm.isolated() as own:
            sequences = spec.corpus.sequences(
                own, length=spec.length, count=n_sequences, start=state.sequences, progress=progress
            )
            for group in batched(sequences, sequences_of_pass(spec)):
                products, count = products_of(own, state.moments, group, spec.exclude_first, tokens - state.count)
                state.add(products.__getitem__, count, len(group))
                progress.advance(count)
                saves.save(state)
    finally:
        progress.finish()
    return state.complete(tokens)


@dataclass
class State:
    """Sums of all layers and how much of the text is in them."""

    moments: dict[int, LayerMoment]
    sequences: int = 0

    @property
    def count(self) -> int:
        """Keys of each layer."""
        return next(iter(self.moments.values())).count

    @classmethod
    def fresh(cls, lm: EditableModel, layers: Sequence[int], spec: MomentSpec) -> State:
        """Nothing counted."""
        return cls({layer: empty_moment(lm, layer, spec.accumulate) for layer in layers})

    def add(self, product_of: Callable[[int], Product], count: int, sequences: int) -> None:
        """Add the product of each layer for one forward pass; the order of passes is that of the text."""
        for layer, moment in self.moments.items():
            product: Any = product_of(layer)  # of the moment's kind
            moment.add_product(product, count)
        self.sequences += sequences

    def complete(self, tokens: int) -> dict[int, LayerMoment]:
        """The sums, where the text was long enough.

        Raises:
            CorpusError: It was not.
        """
        if self.count < tokens:
            raise CorpusError(
                f"the text holds {self.count} tokens to count, {tokens} were asked for. Give more text (--corpus) or "
                f"ask for fewer (--tokens {self.count})"
            )
        return self.moments

    def save(self, path: Path) -> None:
        """Keep it."""
        tensors = {name: part for layer, m in self.moments.items() for name, part in named(str(layer), m).items()}
        counted = {"count": self.count, "sequences": self.sequences}
        write_tensor_file(path, format_of(*self.moments.values()), tensors, counted)

    def load(self, path: Path) -> None:
        """Continue from a saved state, where there is one."""
        try:
            tensors, header = read_tensor_file(path, FORMAT)
        except MomentsError:
            # Asked only afterwards: another process that finishes the same collection removes the file.
            if os.path.lexists(path):
                raise
            return
        for layer, moment in self.moments.items():
            found = moment_of(parts_of(str(layer), tensors), header["count"])
            self.moments[layer] = found.to(moment.total.device)
        self.sequences = int(header["sequences"])


def empty_moment(lm: EditableModel, layer: int, accumulate: Accumulate = "float64") -> LayerMoment:
    """The moment of no keys of a layer, or of its experts, on its device."""
    device = lm.block_device(layer)
    if (mixture := lm.mixture(layer)) is not None:
        return ExpertSecondMoment.empty(mixture.experts, mixture.width, accumulate=accumulate, device=device)
    return SecondMoment.empty(lm.d_in(layer), accumulate=accumulate, device=device)


def partial_path(folder: Path, fingerprint: Fingerprint, layers: Sequence[int]) -> Path:
    """Where the state of an unfinished collection of these layers lies."""
    identity = canonical_json([fingerprint.digest, sorted(layers), TOKEN_BUDGET, SAMPLE_ROWS])
    return folder / f"partial-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"


class Saves:
    """Keeps the state of a collection now and then.

    Args:
        path: Of the saved state; None: none is kept.
        every: Seconds between two saves.
    """

    def __init__(self, path: Path | None, every: float) -> None:
        self.path, self.every = path, every
        self._last, self._took = time.monotonic(), 0.0

    def resume(self, state: State) -> None:
        """Continue from the saved state, where there is one."""
        if self.path is not None:
            state.load(self.path)

    def save(self, state: State) -> bool:
        """Keep the state, if it is time; whether it was kept."""
        begin = time.monotonic()
        wait = max(self.every, self._took / _SHARE) if self.every else 0.0
        if self.path is None or begin - self._last < wait:
            return False
        state.save(self.path)
        self._last = time.monotonic()
        self._took = self._last - begin
        return True


def sequences_of(spec: MomentSpec, tokens: int) -> int:
    """Sequences that hold so many keys."""
    return -(-tokens // (spec.length - spec.exclude_first))


def sequences_of_pass(spec: MomentSpec) -> int:
    """Sequences of one forward pass."""
    return max(1, TOKEN_BUDGET // spec.length)


def products_of(
    lm: EditableModel, moments: Mapping[int, LayerMoment], group: Sequence[list[int]], exclude_first: bool, room: int
) -> tuple[dict[int, Product], int]:
    """What one forward pass adds to the sum of each layer, and how many keys that are.

    Args:
        lm: The model.
        moments: By layer; they say where and how products are made, and are not changed.
        group: Sequences of the pass.
        exclude_first: Leave out position 0 of each.
        room: Keys that are counted at most.

    Raises:
        NumericalError: Activations that are not finite; names the module.
    """
    batch = lm.batch(group)
    wanted = batch.attention_mask.clone()
    if exclude_first:
        wanted[:, 0] = False
    capture = lm.run(batch, keys=list(moments), stacked=False)
    products: dict[int, Product] = {}
    for layer, moment in moments.items():
        try:
            if isinstance(moment, ExpertSecondMoment):
                routed = capture.routed.pop(layer)
                products[layer] = moment.product(routed[wanted.to(routed.device)][:room])
            else:
                captured = capture.keys.pop(layer)
                products[layer] = moment.product(captured[wanted.to(captured.device)][:room])
        except NumericalError as error:
            raise NumericalError(f"{lm.module_name(layer)}: {error}") from error
    return products, min(room, int(wanted.sum()))


def batched(sequences: Iterator[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Groups of so many sequences; the last may be smaller."""
    while group := list(islice(sequences, size)):
        yield group
