"""Target searches on the unedited model, made once and shared by every edit that asks for the same.

v* depends on the weights, the request, the contexts, the layer and the target settings, and, in the last bits, on the
requests that are searched beside it: products of other shapes round differently. So the requests of a memory have a
fixed order and are searched in fixed chunks of it. What a search finds then depends neither on the batches in which
the requests are written nor on who asks first, and a run that is taken up finds what it had found. Requests of a batch
that share one v* are a search of their own, since which of them do is a matter of the batch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from emendo.editing.sharing import share_groups
from emendo.editing.value_search import FoundValues, SearchTrace, search_values
from emendo.errors import InputError, OutputError, TargetFileError
from emendo.io.home import emendo_home
from emendo.io.tensor_file import TensorFileFormat, read_tensor_file, write_tensor_file
from emendo.methods.settings import TargetSettings
from emendo.models import EditableModel
from emendo.models.identity import template_sha256
from emendo.parallel import ReadyWorld, Workers, World, WorldRecipe
from emendo.progress import Progress
from emendo.requests import AnyContext, Context, EditRequest, context_record, spelled_as_stored
from emendo.updates.update import LayerUpdate

SEARCH = 2
"""Of the search itself: raised where its loss, its rules or its alignment change what is found, so that no file of an
earlier one is taken for its result. 2: PMET's rules as its public code has them."""

_FORMAT = TensorFileFormat(
    name="emendo.targets",
    version=1,
    error=TargetFileError,
    remedy="delete it: the search is then made again",
    destination="choose another folder for the experiment (--out)",
)


class ValueCache:
    """Finds targets of requests that are known from the beginning; every chunk of them is searched at most once.

    Args:
        requests: All requests that will be asked for, in the order in which they are searched.
        folder: Where searches are kept and looked for; None: in memory alone.
        optional: A folder that cannot be written is no error: the searches are then not kept.
        workers: Who makes searches that the folder does not have; None: this process, one after another. They need a
            folder, which must then be writable.

    Attributes:
        asked: Requests that it was asked for.
        searched: Those that it searched (misses of the cache).
        search_seconds: Wall time of these searches.
        shared: Those whose values it found in the folder (hits).
        shared_seconds: What those searches had taken when they were made.

    Raises:
        InputError: A request is given twice, or workers have no folder.
    """

    def __init__(
        self,
        requests: Sequence[EditRequest],
        folder: Path | None = None,
        *,
        optional: bool = False,
        workers: Workers | None = None,
    ) -> None:
        self.requests = tuple(requests)
        self.folder, self.optional, self.workers = folder, optional, workers
        self.asked = self.searched = self.shared = 0
        self.search_seconds = self.shared_seconds = 0.0
        self._place = {request: number for number, request in enumerate(self.requests)}
        self._known: dict[str, FoundValues] = {}
        self._made_for_this: set[str] = set()
        if workers is not None and folder is None:
            raise InputError("workers hand over searches as files; expected a folder for them")
        if len(self._place) < len(self.requests):
            raise InputError(
                f"{len(self.requests)} requests with {len(self._place)} different ones among them; expected each once"
            )

    def serves(self, requests: Sequence[EditRequest]) -> bool:
        """Whether this memory knows all of these requests."""
        return all(request in self._place for request in requests)

    def find(
        self,
        lm: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[AnyContext],
        layer: int,
        settings: TargetSettings,
        progress: Progress | None = None,
        kept: Sequence[EditRequest] = (),
    ) -> FoundValues:
        """The targets of some of the requests; arguments as of `search_values`.

        Raises:
            InputError: The model holds edits, of which `kept` would be facts, or this memory does not know a request.
            TargetFileError: A file of the folder cannot be used.
            NumericalError: See `search_values`.
        """
        if lm.holds_edits or kept or not self.serves(requests):
            raise InputError(
                "remembered targets are those of the unedited model, for the requests that the memory was made with; "
                "leave targets= out of the session, or roll back first"
            )
        self.asked += len(requests)
        groups = share_groups(lm, requests, settings.shared)
        alone, size = replace(settings, shared="request"), settings.batch_size
        places = {group[0]: self._place[requests[group[0]]] for group in groups if len(group) == 1}
        numbers = sorted({place // size for place in places.values()})
        chunks = [self.requests[number * size : (number + 1) * size] for number in numbers]
        shared = [group for group in groups if len(group) > 1]
        sharing = [tuple(requests[index] for index in group) for group in shared]
        asked = [(chunk, alone) for chunk in chunks] + [(group, settings) for group in sharing]
        if self.workers is not None:
            self._spread(lm, asked, contexts, layer, self.workers, progress)
        searches = [self._searched(lm, batch, contexts, layer, how, progress) for batch, how in asked]
        found = dict(zip(numbers, searches, strict=False))
        own = {index: (found[place // size], place % size) for index, place in places.items()}
        for group, together in zip(shared, searches[len(numbers) :], strict=True):
            own |= {index: (together, row) for row, index in enumerate(group)}
        rows = [own[index] for index in range(len(requests))]
        return FoundValues(
            layer,
            torch.stack([chunk.value[row] for chunk, row in rows]),
            torch.stack([chunk.delta[row] for chunk, row in rows]),
            tuple(chunk.traces[row] for chunk, row in rows),
        )

    def find_after(
        self,
        written: Sequence[LayerUpdate],
        lm: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[AnyContext],
        layer: int,
        settings: TargetSettings,
        progress: Progress | None = None,
        kept: Sequence[EditRequest] = (),
    ) -> FoundValues:
        """The targets of one of many batches, on the model that holds what the batches before it have written.

        It is searched as it stands, not in chunks, and kept in the folder alone: a plan that is taken up finds it,
        and nobody else asks for it.

        Args:
            written: What those batches wrote to the unedited model, in order; none for the first of them.
            lm: The isolated model of the plan.
            requests: Those of the batch.
            contexts: As of `search_values`; so are the others.
            layer: Where the values are searched.
            settings: Of the search.
            progress: Told about the steps.
            kept: Earlier facts that are searched with them; such searches are made anew.
        """
        if kept or not self.serves(requests):
            return search_values(lm, requests, contexts, layer, settings, progress, kept)
        self.asked += len(requests)
        return self._searched(lm, requests, contexts, layer, settings, progress, after=_written_sha256(written))

    def _spread(
        self,
        lm: EditableModel,
        asked: Sequence[tuple[Sequence[EditRequest], TargetSettings]],
        contexts: Sequence[AnyContext],
        layer: int,
        workers: Workers,
        progress: Progress | None,
    ) -> None:
        """Have workers make the searches that are neither known nor in the folder."""
        assert self.folder is not None
        units = [SearchUnit.of(lm, batch, contexts, layer, how) for batch, how in asked]
        units = [unit for unit in units if unit.key not in self._known and not unit.done(self.folder)]
        if not units:
            return
        keys = {unit.id: unit.key for unit in units}
        recipe = ReadyWorld(World(lm, progress)) if workers.here else WorldRecipe.of(lm)
        for finished in workers.map(recipe, units, self.folder, title="targets", progress=progress):
            if finished.worker:
                self._made_for_this.add(keys[finished.unit])

    def _searched(
        self,
        lm: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[AnyContext],
        layer: int,
        settings: TargetSettings,
        progress: Progress | None,
        after: str | None = None,
    ) -> FoundValues:
        """A chunk of the fixed order, or requests that share one v*, or what follows others: known, read, or made."""
        asked = search_identity(lm, requests, contexts, layer, settings)
        asked |= {} if after is None else {"after": after}
        key = _key(asked)
        if key in self._known:
            return self._known[key]
        path = None if self.folder is None else self.folder / _name(key)
        if path is not None and path.exists():
            self._known[key], seconds = _read(path, asked, lm.device)
            if key in self._made_for_this:
                self.searched += len(requests)
                self.search_seconds += seconds
            else:
                self.shared += len(requests)
                self.shared_seconds += seconds
            return self._known[key]
        begin = time.perf_counter()
        targets = search_values(lm, requests, contexts, layer, settings, progress)
        seconds = time.perf_counter() - begin
        self.searched += len(requests)
        self.search_seconds += seconds
        if path is not None:
            with suppress(OutputError) if self.optional else nullcontext():
                _write(path, asked, targets, seconds)
        self._known[key] = targets
        return targets


@dataclass(frozen=True)
class SearchUnit:
    """One search of a memory, for a worker; its result is its file in the memory's folder.

    Attributes:
        requests: What is searched together.
        contexts: As of `search_values`.
        layer: As of `search_values`.
        settings: As of `search_values`.
        key: Digest of all that the search depends on, the worker's model with it.
    """

    requests: tuple[EditRequest, ...]
    contexts: tuple[AnyContext, ...]
    layer: int
    settings: TargetSettings
    key: str

    title = "targets"

    @classmethod
    def of(
        cls,
        lm: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[AnyContext],
        layer: int,
        settings: TargetSettings,
    ) -> SearchUnit:
        """The unit of a search on a model."""
        key = _key(search_identity(lm, requests, contexts, layer, settings))
        return cls(tuple(requests), tuple(contexts), layer, settings, key)

    @property
    def id(self) -> str:
        """The beginning of its key."""
        return self.key[:24]

    @property
    def size(self) -> int:
        """Steps of its search, at most."""
        return self.settings.steps * len(self.requests)

    def done(self, folder: Path) -> bool:
        """Whether the folder has it."""
        return (folder / _name(self.key)).exists()

    def run(self, world: World, folder: Path) -> None:
        """Make the search and keep it."""
        memory = ValueCache(self.requests, folder)
        memory._searched(world.lm, self.requests, self.contexts, self.layer, self.settings, world.progress)


def remembered_targets(requests: Sequence[EditRequest], workers: Workers | None = None) -> ValueCache:
    """The memory of one edit under EMENDO_HOME, so that a second try, or one after an interrupt, finds its searches.

    Args:
        requests: The facts of the edit.
        workers: Who makes searches.
    """
    # What another release of torch found is another search: it may differ in its last bits.
    folder = emendo_home() / "targets" / f"torch-{torch.__version__}"
    return ValueCache(requests, folder, optional=workers is None, workers=workers)


def _key(asked: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _name(key: str) -> str:
    return f"{key[:24]}.safetensors"


def _written_sha256(written: Sequence[LayerUpdate]) -> str:
    digest = hashlib.sha256()
    for part in written:
        digest.update(f"{part.layer}|{tuple(part.residuals.shape)}|{tuple(part.dual_keys.shape)}|".encode())
        for factor in (part.residuals, part.dual_keys):
            digest.update(factor.contiguous().numpy().data)
    return digest.hexdigest()


def search_identity(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[AnyContext],
    layer: int,
    settings: TargetSettings,
) -> dict[str, Any]:
    """All that the targets of one search depend on, as JSON values."""
    in_chat = any(request.chat is not None for request in requests) or any(
        isinstance(context, Context) for context in contexts
    )
    return {
        **({"template": template_sha256(lm.tokenizer)} if in_chat else {}),
        "search": SEARCH,
        "weights": lm.weights_digest(),
        "config": lm.config_digest(),
        "tokenizer": lm.tokenizer_digest(),
        "device": lm.device.type,
        "layer": layer,
        "settings": _settings_identity(settings),
        "contexts": context_record(contexts),
        "requests": [_request_identity(request) for request in requests],
    }


def _settings_identity(settings: TargetSettings) -> dict[str, Any]:
    """Settings as searches know them; a word's end that is not asked for is not named, as before it could be."""
    named = asdict(settings)
    if settings.word_end_weight == 0:
        del named["word_end_weight"], named["word_end_enough"]
    return named


def _request_identity(request: EditRequest) -> dict[str, Any]:
    """A request as searches know it; how it joins is named only where that makes another text than before it could."""
    row = request.to_dict()
    if spelled_as_stored(request.text, request.target, request.join):
        del row["join"]
    return row


def _write(path: Path, asked: dict[str, Any], targets: FoundValues, seconds: float) -> None:
    header = {"asked": asked, "seconds": seconds, "traces": [asdict(trace) for trace in targets.traces]}
    write_tensor_file(path, _FORMAT, {"value": targets.value, "delta": targets.delta}, header)


def _read(path: Path, asked: dict[str, Any], device: torch.device) -> tuple[FoundValues, float]:
    """The targets of a file and how long their search took.

    Raises:
        TargetFileError: The file is damaged, or holds another search.
    """
    tensors, header = read_tensor_file(path, _FORMAT)
    if header.get("asked") != asked:
        raise TargetFileError(f"{str(path)!r} holds another search than its name says; {_FORMAT.remedy}")
    try:
        traces = tuple(SearchTrace(**{**row, "losses": tuple(row["losses"])}) for row in header["traces"])
        value, delta = (tensors[name].to(device) for name in ("value", "delta"))
        return FoundValues(asked["layer"], value, delta, traces), float(header["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise TargetFileError(
            f"{str(path)!r} has a sound digest but not the contents of a search ({error!r}); {_FORMAT.remedy}"
        ) from error
