"""From settings to second moments: what the store has is read, the rest is collected in one pass and kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias, runtime_checkable

from emendo.arguments import Seed, checked
from emendo.errors import CorpusError, MomentsError
from emendo.io.writable import check_room, check_writable
from emendo.models import EditableModel
from emendo.parallel import Workers
from emendo.progress import Watched, chosen_progress
from emendo.shapes import Moment
from emendo.solve import BlockMoment
from emendo.statistics.collect import CHECKPOINT_EVERY, collect_moments
from emendo.statistics.corpus import Corpus, open_corpus
from emendo.statistics.mixture import MixturePart, describe_mixture, mixture_error, parse_mixture
from emendo.statistics.packed import stored_bytes
from emendo.statistics.spec import Fingerprint, MomentSpec, default_tokens
from emendo.statistics.spread import collect_by_workers, unfinished
from emendo.statistics.store import FORMAT, MomentHeader, MomentStore, StoredMoment


@checked
def obtain_moments(
    lm: EditableModel,
    layers: Sequence[int],
    spec: MomentSpec | None = None,
    store: MomentStore | None = None,
    *,
    progress: Watched = None,
    every: float = CHECKPOINT_EVERY,
    workers: Workers | None = None,
) -> dict[int, StoredMoment]:
    """The second moments of `layers`: from the store where it has them, the others collected in one pass.

    Args:
        lm: The unedited model.
        layers: Layers whose keys to count.
        spec: What to collect; sampled from the model itself unless given.
        store: Where moments are kept; None: under EMENDO_HOME.
        progress: Told about the stage "second moments".
        every: Seconds between two saved states of an unfinished collection.
        workers: Who runs the model; None: this process. The result is the same, bit for bit.

    Returns:
        A stored moment for each layer.

    Raises:
        LayerError: A layer that the model does not have.
        CorpusError: The text cannot be read or is too short.
        MomentsError: A file of the store is damaged, or the model holds edits and a moment is missing.
        OutputError: A moment is missing and the store cannot be written, or its disk is full.
    """
    spec, store = spec or MomentSpec(), store or MomentStore()
    layers = lm.check_layers(layers)
    fingerprint = spec.fingerprint(lm, layers)
    modules = {layer: lm.module_name(layer) for layer in layers}
    found = {layer: store.get(fingerprint, layer, modules[layer]) for layer in layers}
    missing = [layer for layer in layers if found[layer] is None]
    if missing:
        if lm.holds_edits:
            raise MomentsError(
                f"{lm.name!r} holds edits; second moments are those of the unedited model. Collect them before "
                "editing, or call rollback() on the session first"
            )
        folder = store.folder(fingerprint)
        # The longest stage of most edits: what cannot keep its result is found before it.
        check_writable(folder, FORMAT.destination)
        room = sum(_stored_bytes(lm, layer, spec.accumulate) for layer in missing)
        check_room(folder, room, FORMAT.destination)
        if workers is None or workers.here:
            moments = collect_moments(lm, missing, spec, checkpoint=folder, every=every, progress=progress)
        else:
            moments = collect_by_workers(
                workers, lm, missing, spec, folder, every=every, progress=chosen_progress(progress)
            )
        for layer, moment in moments.items():
            header = MomentHeader.now(fingerprint, layer, modules[layer], lm.name)
            found[layer] = store.put(moment, header)
        for left in unfinished(folder, fingerprint, missing):
            left.unlink(missing_ok=True)
    return {layer: stored for layer, stored in found.items() if stored is not None}


@runtime_checkable
class MethodMoments(Protocol):
    """What a method's configuration says about its second moments."""

    @property
    def source(self) -> str:
        """A corpus as `open_corpus` names it, or a mixture of them as `parse_mixture` reads it."""

    @property
    def multiple(self) -> float:
        """Keys for each key component."""

    @property
    def exclude_first(self) -> bool:
        """Leave out the first position of every sequence."""


@checked
def describe_for_method(
    lm: EditableModel,
    layers: Sequence[int],
    settings: MethodMoments,
    *,
    seed: Seed = 0,
    corpora: Corpora | None = None,
) -> dict[str, Any]:
    """What a report says about the second moments that a method asks for; nothing is collected, no model runs.

    Args:
        lm: The model.
        layers: Edited layers.
        settings: The `moments` section of a method's configuration.
        seed: Seed of the sampling or of the document order.
        corpora: Sources that are open already; None: each is opened.

    Returns:
        A JSON-ready record of the source, whose "fingerprint" stands for all that the moments depend on.

    Raises:
        CorpusError: The source cannot be read, or parts of a mixture hold the same one.
    """
    return _record(settings.source, _parts(lm, layers, settings, seed, corpora))


@checked
def obtain_for_method(
    lm: EditableModel,
    layers: Sequence[int],
    settings: MethodMoments,
    *,
    seed: Seed = 0,
    store: MomentStore | None = None,
    progress: Watched = None,
    corpora: Corpora | None = None,
    workers: Workers | None = None,
) -> tuple[dict[int, Moment | BlockMoment], dict[str, Any]]:
    """The mean second moments that a method asks for, and what a report says about them.

    Each part of a mixture is obtained on its own, with its own full number of tokens.

    Args:
        lm: The unedited model.
        layers: Edited layers.
        settings: The `moments` section of a method's configuration.
        seed: Seed of the sampling or of the document order.
        store: Where moments are kept; None: under EMENDO_HOME.
        progress: Told about the stage "second moments".
        corpora: Sources that are open already; None: each is opened.
        workers: See `obtain_moments`.

    Returns:
        The mean of each layer in float64 (of a mixture of experts its blocks), and the record of `describe_for_method`.

    Raises:
        CorpusError: The source cannot be read, a text is too short, or parts of a mixture hold the same one.
        MomentsError: See `obtain_moments`.
    """
    parts = _parts(lm, layers, settings, seed, corpora)
    means: dict[int, Moment | BlockMoment] = {}
    for part, spec, _ in parts:
        stored = obtain_moments(lm, layers, spec, store, progress=progress, workers=workers)
        for layer, moment in stored.items():
            means[layer] = _plus(means.get(layer), moment.mean(), part.weight)
    return means, _record(settings.source, parts)


def _plus(before: Moment | BlockMoment | None, mean: Moment | BlockMoment, weight: float) -> Moment | BlockMoment:
    """The sum so far and a mean times a number; both are the caller's own."""
    if isinstance(mean, BlockMoment):
        return mean.scaled(weight) if not isinstance(before, BlockMoment) else before.plus(mean.scaled(weight))
    if before is None:
        return mean.mul_(weight)
    assert not isinstance(before, BlockMoment)  # a layer is a mixture in every part or in none
    return before.add_(mean.to(before), alpha=weight)


def _stored_bytes(lm: EditableModel, layer: int, accumulate: str) -> int:
    mixture = lm.mixture(layer)
    if mixture is None:
        return stored_bytes(lm.d_in(layer), accumulate)
    return stored_bytes(mixture.width, accumulate, mixture.experts)


_Part: TypeAlias = tuple[MixturePart, MomentSpec, Fingerprint]


class Corpora:
    """Sources of text that stay open, so that no file is read and no hub is asked twice for what identifies it.

    A file that has changed since (size, time or number) is read again.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], Corpus] = {}

    def open(self, source: str, seed: int) -> Corpus:
        """The corpus of a single source; see `open_corpus`.

        Raises:
            CorpusError: The source cannot be read.
        """
        if (source, seed) not in self._open:
            self._open[source, seed] = open_corpus(source, seed=seed)
        return self._open[source, seed]


def _parts(
    lm: EditableModel, layers: Sequence[int], settings: MethodMoments, seed: int, corpora: Corpora | None
) -> list[_Part]:
    """The parts of a source, in an order of their own: the sum is the same, bit for bit, however they were named."""
    tokens = default_tokens(max(map(lm.directions, lm.check_layers(layers))), settings.multiple)
    parts = []
    for part in parse_mixture(settings.source):
        corpus = _opened(part, settings.source, seed, corpora or Corpora())
        spec = MomentSpec(corpus=corpus, tokens=tokens, exclude_first=settings.exclude_first)
        parts.append((part, spec, spec.fingerprint(lm, layers)))
    parts.sort(key=lambda entry: entry[2].digest)
    _require_distinct([(part, fingerprint) for part, _, fingerprint in parts])
    return parts


def _record(source: str, parts: Sequence[_Part]) -> dict[str, Any]:
    # No "cached": the record of an edit must not depend on what lay on the disk.
    if len(parts) == 1:
        fingerprint = parts[0][2]
        return {"source": source, "fingerprint": fingerprint.digest, **fingerprint.to_json()}
    return {"source": source, **describe_mixture([(part, fingerprint) for part, _, fingerprint in parts])}


def _require_distinct(parts: Sequence[tuple[MixturePart, Fingerprint]]) -> None:
    """Raise where two parts, sorted by fingerprint, hold the same text."""
    for (first, fingerprint), (second, other) in pairwise(parts):
        if fingerprint == other:
            raise CorpusError(
                f"{first.source!r} and {second.source!r} hold the same text; name one of them, with the sum of their "
                "weights (--set moments.source=...)"
            )


def _opened(part: MixturePart, source: str, seed: int, corpora: Corpora) -> Corpus:
    try:
        return corpora.open(part.source, seed)
    except CorpusError as error:
        if part.source == source:
            raise
        raise mixture_error(source, part, error) from error
