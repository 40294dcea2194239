"""Second moments counted by several workers, with the sum of one process bit for bit.

The unit of summation is the product of one forward pass, also in the serial run: workers make products, and the command
adds them in the order of the text. A float32 product is kept as it is, so nothing is rounded on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from emendo.errors import MomentsError, WorkerError
from emendo.io.tensor_file import TensorFileFormat, read_tensor_file, write_tensor_file
from emendo.models import EditableModel
from emendo.parallel import Workers, World, WorldRecipe
from emendo.progress import Progress
from emendo.statistics.collect import (
    CHECKPOINT_EVERY,
    Saves,
    State,
    batched,
    empty_moment,
    partial_path,
    products_of,
    sequences_of,
    sequences_of_pass,
)
from emendo.statistics.packed import LayerMoment, Product, named, parts_of, product_of
from emendo.statistics.sample import SAMPLE_ROWS
from emendo.statistics.spec import Fingerprint, MomentSpec

_FORMAT = TensorFileFormat(
    name="emendo.moment-products",
    version=1,
    error=MomentsError,
    remedy="delete it: it is made again",
    destination="set EMENDO_HOME to a directory that all workers can write",
)


@dataclass(frozen=True)
class MomentUnit:
    """The products of some forward passes that follow each other; its result is a file of them.

    Attributes:
        name: Of the collection; files begin with it.
        fingerprint: Digest of what it is valid for, which the worker's model and text must have.
        spec: What is collected.
        layers: Whose keys are counted.
        tokens: Keys of the whole collection.
        first: Its first sequence.
        sequences: How many it has.
    """

    name: str
    fingerprint: str
    spec: MomentSpec
    layers: tuple[int, ...]
    tokens: int
    first: int
    sequences: int

    title = "second moments"

    @property
    def id(self) -> str:
        """Its collection and its first sequence."""
        return f"{self.name}-{self.first:09d}"

    @property
    def size(self) -> int:
        """Tokens, those that the model writes with them."""
        sampled = self.spec.corpus.sampled_tokens
        return self._room + sampled(length=self.spec.length, count=self.sequences)

    @property
    def _room(self) -> int:
        """Keys that it counts, if the text is long enough."""
        each = self.spec.length - self.spec.exclude_first
        return min(self.sequences * each, self.tokens - self.first * each)

    def done(self, folder: Path) -> bool:
        """Whether its file is there."""
        return self.path(folder).exists()

    def path(self, folder: Path) -> Path:
        """Its file."""
        return folder / f"{self.id}.safetensors"

    def run(self, world: World, folder: Path) -> None:
        """Make the products.

        Raises:
            WorkerError: This worker's text is another one than the command's.
            NumericalError: Activations that are not finite; names the module.
        """
        layers, spec, lm = list(self.layers), self.spec, world.lm
        key = ("moments", self.fingerprint, self.layers)
        if world.kept(key, lambda: spec.fingerprint(lm, layers).digest) != self.fingerprint:
            raise WorkerError(
                "a worker reads another text for second moments than the command that started it; give all machines "
                "the same file, or pin the revision of the data set (--revision)"
            )
        empty = {layer: empty_moment(lm, layer) for layer in layers}
        tensors: dict[str, Tensor] = {}
        passes: list[list[int]] = []
        room = self._room
        world.progress.start(self.title)
        with lm.isolated() as own:
            every = spec.corpus.sequences(
                own,
                length=spec.length,
                count=sequences_of(spec, self.tokens),
                start=self.first,
                progress=world.progress,
            )
            for number, group in enumerate(batched(islice(every, self.sequences), sequences_of_pass(spec))):
                products, count = products_of(own, empty, group, spec.exclude_first, room)
                room -= count
                for layer, product in products.items():
                    tensors |= named(f"{number}.{layer}", product)
                passes.append([count, len(group)])
                world.progress.advance(count)
        world.progress.finish()
        write_tensor_file(self.path(folder), _FORMAT, tensors, {"passes": passes})

    def add_to(self, state: State, folder: Path) -> None:
        """Add its products to the sums."""
        tensors, header = read_tensor_file(self.path(folder), _FORMAT)
        for number, (count, sequences) in enumerate(header["passes"]):
            state.add(partial(_product, tensors, number, count), count, sequences)


def _product(tensors: Mapping[str, Tensor], number: int, count: int, layer: int) -> Product:
    """The product of one pass and layer, unpacked when it is asked for: all at once would be gigabytes."""
    return product_of(parts_of(f"{number}.{layer}", tensors), count)


def collect_by_workers(
    workers: Workers,
    lm: EditableModel,
    layers: Sequence[int],
    spec: MomentSpec,
    folder: Path,
    *,
    every: float = CHECKPOINT_EVERY,
    progress: Progress | None = None,
) -> dict[int, LayerMoment]:
    """What `collect_moments` gives with ``checkpoint=folder``, by workers.

    Files of products are taken away when the state that holds them has been saved, or at the end.

    Args:
        workers: Who runs the model.
        lm: The model.
        layers: Layers whose keys to count.
        spec: What to collect.
        folder: Of the products and the saved state, which all workers see under this path.
        every: Seconds between two saved states.
        progress: Told about the stage "second moments".

    Raises:
        WorkerError: See `Workers.map`.
        CorpusError: The text cannot be read or is too short.
        NumericalError: Activations that are not finite; names the module.
    """
    layers = lm.check_layers(layers)
    spec.check_length(lm)
    tokens, fingerprint = spec.tokens_for(lm, layers), spec.fingerprint(lm, layers)
    saved = partial_path(folder, fingerprint, layers)
    state, saves = State.fresh(lm, layers, spec), Saves(saved, every)
    saves.resume(state)
    name = _products(saved)
    # A corpus may hold an open reader, which no worker can take over.
    corpus: Any = spec.corpus
    fresh: Any = replace
    sent = replace(spec, corpus=fresh(corpus)) if is_dataclass(corpus) else spec
    each, last = sequences_of_unit(spec), sequences_of(spec, tokens)
    units = [
        MomentUnit(name, fingerprint.digest, sent, tuple(layers), tokens, first, min(each, last - first))
        for first in range(state.sequences, last, each)
    ]
    added, spent = 0, []
    for _ in workers.map(WorldRecipe.of(lm), units, folder, title="second moments", progress=progress):
        while added < len(units) and units[added].done(folder):
            units[added].add_to(state, folder)
            spent.append(units[added])
            added += 1
            if saves.save(state):
                for unit in spent:
                    unit.path(folder).unlink(missing_ok=True)
                spent = []
    return state.complete(tokens)


def unfinished(folder: Path, fingerprint: Fingerprint, layers: Sequence[int]) -> list[Path]:
    """What collections of these layers have left, also killed ones: to be removed once the moments are stored."""
    saved = partial_path(folder, fingerprint, layers)
    return [saved, *folder.glob(f"{_products(saved)}-*")]


def _products(saved: Path) -> str:
    """What the names of a collection's units begin with."""
    return f"products-{hashlib.sha256(saved.name.encode()).hexdigest()[:16]}"


def sequences_of_unit(spec: MomentSpec) -> int:
    """Sequences of one unit: whole forward passes, and whole groups of sampled sequences where passes divide those."""
    each = sequences_of_pass(spec)
    return -(-max(SAMPLE_ROWS, each) // each) * each
