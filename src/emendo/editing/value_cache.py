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
from dataclasses import asdict, replace
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
from emendo.progress import Progress
from emendo.requests import EditRequest, spelled_as_stored

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

    Attributes:
        served: Requests that it has answered for.
        made: Requests that it has searched.
        made_seconds: Wall time of these searches.
        shared: Requests whose targets it found in the folder.
        shared_seconds: What those searches had taken when they were made.

    Raises:
        InputError: A request is given twice.
    """

    def __init__(self, requests: Sequence[EditRequest], folder: Path | None = None, *, optional: bool = False) -> None:
        self.requests = tuple(requests)
        self.folder, self.optional = folder, optional
        self.served = self.made = self.shared = 0
        self.made_seconds = self.shared_seconds = 0.0
        self._place = {request: number for number, request in enumerate(self.requests)}
        self._known: dict[str, FoundValues] = {}
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
        contexts: Sequence[str],
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
        self.served += len(requests)
        groups = share_groups(lm, requests, settings.shared)
        alone, size = replace(settings, shared="request"), settings.batch_size
        places = {group[0]: self._place[requests[group[0]]] for group in groups if len(group) == 1}
        found = {}
        for number in sorted({place // size for place in places.values()}):
            chunk = self.requests[number * size : (number + 1) * size]
            found[number] = self._searched(lm, chunk, contexts, layer, alone, progress)
        own = {index: (found[place // size], place % size) for index, place in places.items()}
        for group in groups:
            if len(group) > 1:
                sharing = [requests[index] for index in group]
                together = self._searched(lm, sharing, contexts, layer, settings, progress)
                own |= {index: (together, row) for row, index in enumerate(group)}
        rows = [own[index] for index in range(len(requests))]
        return FoundValues(
            layer,
            torch.stack([chunk.value[row] for chunk, row in rows]),
            torch.stack([chunk.delta[row] for chunk, row in rows]),
            tuple(chunk.traces[row] for chunk, row in rows),
        )

    def _searched(
        self,
        lm: EditableModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        layer: int,
        settings: TargetSettings,
        progress: Progress | None,
    ) -> FoundValues:
        """A chunk of the fixed order, or requests that share one v*: known, read, or searched."""
        asked = search_identity(lm, requests, contexts, layer, settings)
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        if key in self._known:
            return self._known[key]
        path = None if self.folder is None else self.folder / f"{key[:24]}.safetensors"
        if path is not None and path.exists():
            self._known[key], seconds = _read(path, asked, lm.device)
            self.shared += len(requests)
            self.shared_seconds += seconds
            return self._known[key]
        begin = time.perf_counter()
        targets = search_values(lm, requests, contexts, layer, settings, progress)
        seconds = time.perf_counter() - begin
        self.made += len(requests)
        self.made_seconds += seconds
        if path is not None:
            with suppress(OutputError) if self.optional else nullcontext():
                _write(path, asked, targets, seconds)
        self._known[key] = targets
        return targets


def remembered_targets(requests: Sequence[EditRequest]) -> ValueCache:
    """The memory of one edit under EMENDO_HOME, so that a second try, or one after an interrupt, finds its searches.

    Args:
        requests: The facts of the edit.
    """
    # What another release of torch found is another search: it may differ in its last bits.
    return ValueCache(requests, emendo_home() / "targets" / f"torch-{torch.__version__}", optional=True)


def search_identity(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    layer: int,
    settings: TargetSettings,
) -> dict[str, Any]:
    """All that the targets of one search depend on, as JSON values."""
    return {
        "search": SEARCH,
        "weights": lm.weights_digest(),
        "config": lm.config_digest(),
        "tokenizer": lm.tokenizer_digest(),
        "device": lm.device.type,
        "layer": layer,
        "settings": _settings_identity(settings),
        "contexts": list(contexts),
        "requests": [_request_identity(request) for request in requests],
    }


def _settings_identity(settings: TargetSettings) -> dict[str, Any]:
    """Settings as searches know them; a word's end that is not asked for is not named, as before it could be."""
    named = asdict(settings)
    if settings.word_end_weight == 0:
        del named["word_end_weight"]
    return named


def _request_identity(request: EditRequest) -> dict[str, str]:
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
