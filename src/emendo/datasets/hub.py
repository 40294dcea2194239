"""Rows of a dataset of the Hugging Face hub at one commit, or of a local dataset folder, through `datasets`.

A branch or a tag can move, so only a full commit hash is taken. Offline the library falls back on any revision that
is in its cache; the commit of what it opened is therefore compared with the one that was asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.datasets.json_rows import Row
from emendo.errors import DatasetError
from emendo.io.extras import pip_install

PREFIX = "hf:"

_FORM = "hf:OWNER/NAME@COMMIT[:CONFIG[:SPLIT]] or hf:./FOLDER[:CONFIG[:SPLIT]]"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class HubSource:
    """A dataset as ``hf:...`` names it.

    Attributes:
        name: Id on the hub, or path of a folder.
        revision: Commit; None for a folder.
        config: Configuration; None for the only or default one.
        split: Split; None for the only one.
    """

    name: str
    revision: str | None
    config: str | None = None
    split: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a local folder: its name then begins with ``.``, ``/`` or ``~``, as no id does."""
        return _is_path(self.name)


@checked
def parse_source(source: str) -> HubSource:
    """The parts of ``hf:...``.

    Raises:
        DatasetError: It is not of that form, has no commit, or could mean a folder.
    """
    rest = source.removeprefix(PREFIX)
    folder = _is_path(rest)
    name, *tail = rest.split(":") if folder else [rest.partition("@")[0], *rest.partition("@")[2].split(":")]
    revision = None if folder else tail.pop(0)
    if len(tail) > 2 or not name or (not folder and not _HUB_NAME.fullmatch(name)):
        raise DatasetError(f"cannot read the data set {source!r}; expected {_FORM}")
    if not folder and not _COMMIT.fullmatch(revision or ""):
        found = f"the revision {revision!r}, which can move" if revision else "no revision"
        raise DatasetError(
            f"{source!r} names {found}; expected the 40 hexadecimal digits of a commit, as the dataset's page shows "
            f"them under Files > History: {_FORM}"
        )
    if not folder and Path(name).exists():
        raise DatasetError(
            f"{source!r} could be the dataset of the hub or the folder {name!r} here, which the library would prefer; "
            f"for the folder write hf:./{name}, for the hub run elsewhere"
        )
    config, split = ([part or None for part in tail] + [None, None])[:2]
    return HubSource(name, revision, config, split)


def open_hub(source: str) -> tuple[dict[str, Any], Iterator[Row]]:
    """The dataset's origin and its rows.

    The digest is that of the rows, so that equal rows have equal digests wherever they were read from.

    Raises:
        DatasetError: The library is missing, the dataset, its configuration or split cannot be opened, or a row holds
            what JSON lacks.
    """
    parsed = parse_source(source)
    dataset, split = _open(parsed, source)
    rows = [dict(row) for row in dataset]
    digest = hashlib.sha256()
    for number, row in enumerate(rows, start=1):
        digest.update(_json(row, f"{source!r} row {number}") + b"\n")
    origin = {
        "source": source,
        "container": "datasets",
        "sha256": digest.hexdigest(),
        "revision": parsed.revision,
        "config": parsed.config,
        "split": split,
        "fingerprint": dataset._fingerprint,
    }
    return origin, (Row(number, row) for number, row in enumerate(rows, start=1))


def _json(row: dict[str, Any], where: str) -> bytes:
    """A row as JSON, of which the digest is made.

    A value that JSON lacks is refused: what Python prints of it need not say all that it holds, or say it twice alike.

    Raises:
        DatasetError: Names the first such field.
    """
    parts = []
    for name, value in row.items():
        try:
            parts.append(f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}")
        except (TypeError, ValueError) as error:
            raise DatasetError(
                f"{where}: field {name!r} holds a {type(value).__name__} that JSON lacks ({error}); expected texts, "
                "finite numbers, lists and objects. Write the dataset to a .jsonl file without this field, or with its "
                "text, and name that file"
            ) from error
    return f"{{{', '.join(parts)}}}".encode()


def _open(parsed: HubSource, source: str) -> tuple[Any, str]:
    """The prepared dataset and the name of its split."""
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(f"reading {source!r} needs the package datasets: {pip_install('data')}") from error
    path = str(Path(parsed.name).expanduser()) if parsed.is_folder else parsed.name
    try:
        builder = datasets.load_dataset_builder(path, parsed.config, revision=parsed.revision)
        if parsed.revision is not None and builder.hash != parsed.revision:
            raise DatasetError(
                f"{source!r} is not at hand at that commit: the library opened {builder.hash!r} from its cache. "
                "Go online once (unset HF_HUB_OFFLINE), or name the commit that is cached"
            )
        builder.download_and_prepare()
        splits = list(builder.info.splits or {})
        split = parsed.split or (splits[0] if len(splits) == 1 else None)
        if split is None or split not in splits:
            config = parsed.config or ""
            raise DatasetError(
                f"{source!r}: {'no split is named' if split is None else f'there is no split {split!r}'}; its splits "
                f"are {', '.join(splits)}: add :{config}:SPLIT"
            )
        return builder.as_dataset(split=split), split
    except DatasetError:
        raise
    except Exception as error:  # the library raises many kinds, network ones among them
        first = next(iter(str(error).splitlines()), type(error).__name__)
        hint = (
            "Expected a folder with .jsonl, .json, .csv or .parquet files of equal fields"
            if parsed.is_folder
            else "Check id, commit, configuration and network, or name a file"
        )
        raise DatasetError(f"cannot open the dataset {source!r}: {first}. {hint}") from error


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~"))
