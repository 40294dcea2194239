"""The files of a hub repository, fetched in the order in which they are checked: small ones before weights."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import cached_file

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
    lm = cached_file(name, ADAPTER_CONFIG, _raise_exceptions_for_missing_entries=False)
    found = lm or cached_file(name, CONFIG)
    if found is None:
        raise OSError(f"{name} has no {CONFIG}.")
    folder = Path(found).parent
    for file in SETTINGS:
        cached_file(name, file, revision=folder.name, _raise_exceptions_for_missing_entries=False)
    return folder, folder.name


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
