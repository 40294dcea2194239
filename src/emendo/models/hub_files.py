"""The files of a hub repository, fetched in the order in which they are checked: small ones before weights."""

from __future__ import annotations

import socket
import warnings
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache
from transformers.utils import cached_file

from emendo.errors import EmendoWarning
from emendo.models.folder import ADAPTER_CONFIG, CONFIG, INDEX, SETTINGS, WEIGHTS


def fetch_settings(name: str) -> tuple[Path, str]:
    """Fetch the JSON files that a reader of the repository would follow.

    Args:
        name: The id.

    Returns:
        The folder of the cache that they are in, and the commit, so that no later file comes from another.

    Raises:
        OSError: The repository cannot be reached, or holds no model.
    """
    _check_reachable(name)
    lm = cached_file(name, ADAPTER_CONFIG, _raise_exceptions_for_missing_entries=False)
    found = lm or cached_file(name, CONFIG)
    if found is None:
        raise OSError(f"{name} has no {CONFIG}.")
    folder = Path(found).parent
    for file in SETTINGS:
        cached_file(name, file, revision=folder.name, _raise_exceptions_for_missing_entries=False)
    return folder, folder.name


def _check_reachable(name: str) -> None:
    """Say at once that nobody answers, where the hub's library would try again for most of a minute.

    Raises:
        OSError: The hub cannot be reached, and the repository is not in its cache.
    """
    address = urlsplit(constants.ENDPOINT)
    if is_offline_mode() or getproxies().get(address.scheme):
        return  # nothing is asked; or only the proxy knows whom it reaches
    try:
        socket.create_connection((address.hostname or "", address.port or _PORTS[address.scheme]), _PATIENCE).close()
    except OSError as error:
        if not isinstance(try_to_load_from_cache(name, CONFIG), str):
            raise OSError(
                f"there is no folder of that name, and the hub ({address.netloc}) cannot be reached to look for one "
                f"({error.strerror or error})."
            ) from error
        warnings.warn(
            f"the hub ({address.netloc}) cannot be reached; {name} is taken from its cache, which HF_HUB_OFFLINE=1 "
            "does without waiting",
            EmendoWarning,
            stacklevel=2,
        )


_PORTS = {"http": 80, "https": 443}
_PATIENCE = 5.0
"""Seconds for the hub to answer."""


def fetch_weights(name: str, commit: str, files: list[str]) -> list[Path]:
    """Fetch the files with the weights.

    Args:
        name: The id.
        commit: Of the repository.
        files: Their names.

    Raises:
        OSError: The repository cannot be reached, or lacks one.
    """
    found = [cached_file(name, file, revision=commit) for file in files]
    return [Path(path) for path in found if path is not None]


def has_safetensors(name: str, commit: str, folder: Path) -> bool:
    """Whether the repository has weights as safetensors; one file of them is fetched by that."""
    if (folder / INDEX).exists():
        return True
    return cached_file(name, WEIGHTS, revision=commit, _raise_exceptions_for_missing_entries=False) is not None
