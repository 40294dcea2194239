"""One pass over the text for the second moments of all requested layers; resumable, bit for bit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from emendo.arguments import checked
from emendo.errors import CorpusError, MomentsError, NumericalError
from emendo.io.tensor_file import read_tensor_file, write_tensor_file
from emendo.models import EditableModel
from emendo.models.numerics import pinned
from emendo.progress import Progress, Silent
from emendo.statistics.corpus import SAMPLE_ROWS
from emendo.statistics.second_moment import SecondMoment
from emendo.statistics.spec import Fingerprint, MomentSpec, canonical_json
from emendo.statistics.store import FORMAT, pack_triangle, unpack_triangle

TOKEN_BUDGET = 4096
"""Tokens of one forward pass."""

CHECKPOINT_EVERY = 16
"""Forward passes between two saved states: at most this much work is lost."""


@checked
@pinned()
def collect_moments(
    lm: EditableModel,
    layers: Sequence[int],
    spec: MomentSpec,
    *,
    checkpoint: Path | None = None,
    every: int = CHECKPOINT_EVERY,
    progress: Progress | None = None,
) -> dict[int, SecondMoment]:
    """Count the keys of all `layers` in one pass that stops above the highest.

    Exactly ``spec.tokens_for(adapter, layers)`` keys of each layer are counted. With `checkpoint`, the state is saved
    every few forward passes, and a call with the same arguments continues from there to the
    same result, bit for bit; what was counted is not computed again. The saved state is left in place
    until the caller has stored the result.

    Args:
        lm: The model.
        layers: Layers whose keys to count.
        spec: What to collect.
        checkpoint: Directory for the state of an unfinished collection; None: none is kept.
        every: Forward passes between two saved states.
        progress: Told about the stage "second moments", in tokens.

    Raises:
        LayerError: A layer that the model does not have.
        CorpusError: The text cannot be read or is too short.
        MomentsError: The saved state is damaged.
        NumericalError: Activations that are not finite; names the module.
    """
    layers = lm.check_layers(layers)
    spec.check_length(lm)
    progress = progress or Silent()
    tokens = spec.tokens_for(lm, layers)
    state = _State.fresh(lm, layers, spec)
    saved = None
    if checkpoint is not None:
        saved = partial_path(checkpoint, spec.fingerprint(lm, layers), layers)
        state.load(saved)
    n_sequences = -(-tokens // (spec.length - spec.exclude_first))
    ahead = spec.corpus.sampled_tokens(length=spec.length, count=n_sequences, start=state.sequences)
    progress.start("second moments", tokens - state.count + ahead)
    try:
        with lm.isolated() as own:
            sequences = spec.corpus.sequences(
                own, length=spec.length, count=n_sequences, start=state.sequences, progress=progress
            )
            groups = _batched(sequences, max(1, TOKEN_BUDGET // spec.length))
            for passes, group in enumerate(groups, start=1):
                progress.advance(_count(own, state, group, spec.exclude_first, tokens))
                if saved is not None and passes % every == 0:
                    state.save(saved)
    finally:
        progress.finish()
    if state.count < tokens:
        raise CorpusError(
            f"the text holds {state.count} tokens to count, {tokens} were asked for. Give more text (--corpus) or "
            f"ask for fewer (--tokens {state.count})"
        )
    return state.moments


@dataclass
class _State:
    """Sums of all layers and how much of the text is in them."""

    moments: dict[int, SecondMoment]
    sequences: int = 0

    @property
    def count(self) -> int:
        return next(iter(self.moments.values())).count

    @classmethod
    def fresh(cls, lm: EditableModel, layers: Sequence[int], spec: MomentSpec) -> _State:
        return cls(
            {
                layer: SecondMoment.empty(
                    lm.d_in(layer),
                    accumulate=spec.accumulate,
                    device=lm.weight(layer).device,
                )
                for layer in layers
            }
        )

    def save(self, path: Path) -> None:
        tensors = {str(layer): pack_triangle(m.total) for layer, m in self.moments.items()}
        write_tensor_file(path, FORMAT, tensors, {"count": self.count, "sequences": self.sequences})

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
            total = unpack_triangle(tensors[str(layer)]).to(moment.total.device)
            self.moments[layer] = SecondMoment(total, header["count"])
        self.sequences = int(header["sequences"])


def partial_path(folder: Path, fingerprint: Fingerprint, layers: Sequence[int]) -> Path:
    """Where the state of an unfinished collection of these layers lies."""
    identity = canonical_json([fingerprint.digest, sorted(layers), TOKEN_BUDGET, SAMPLE_ROWS])
    return folder / f"partial-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"


def _count(
    lm: EditableModel,
    state: _State,
    group: Sequence[list[int]],
    exclude_first: bool,
    tokens: int,
) -> int:
    """Count the keys of one forward pass, at most up to `tokens` in all; returns how many."""
    batch = lm.batch(group)
    wanted = batch.attention_mask.clone()
    if exclude_first:
        wanted[:, 0] = False
    room = tokens - state.count
    capture = lm.run(batch, keys=list(state.moments))
    added = 0
    for layer, moment in state.moments.items():
        captured = capture.keys.pop(layer)
        keys = captured[wanted.to(captured.device)][:room]
        try:
            moment.add(keys)
        except NumericalError as error:
            raise NumericalError(f"{lm.module_name(layer)}: {error}") from error
        added = len(keys)
    state.sequences += len(group)
    return added


def _batched(sequences: Iterator[list[int]], size: int) -> Iterator[list[list[int]]]:
    while group := list(islice(sequences, size)):
        yield group
