"""A record of a ledger: one operation, chained to the one before it by that one's hash.

A record does not repeat the whole state. It says how many of the updates that were active before stay (`keep`, from the
first on) and which follow them (`added`); the state after it is ``before[:keep] + added``. That is enough for every
operation, because an update is planned on top of those before it: what comes after a change is a new update too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from emendo.errors import LedgerError
from emendo.io import strict_json
from emendo.io.versions import UPGRADE
from emendo.ledger.files import RESTORE, parse_json
from emendo.requests import EditRequest

FORMAT = "emendo.ledger.record"
VERSION = 1
OPERATIONS = ("init", "edit", "replace", "revert", "compact", "checkout")
MAKES_EDIT = ("edit", "replace")
"""Operations that write new facts: their id names the edit."""

MAX_BYTES = 64 << 20
"""Largest record that is read: far more than ten thousand requests need."""

_EDIT = {"requests": list, "method": dict, "seed": int, "moments": str, "environment": dict}
_DETAILS: dict[str, dict[str, type]] = {
    "init": {"base": dict, "model": str},
    "edit": _EDIT,
    "replace": {**_EDIT, "reverts": list},
    "revert": {"reverts": list, "how": str, "remade": list},
    "compact": {"tolerance": float, "error": float, "layers": list, "bytes": list},
    "checkout": {"target": object},
}
"""What later operations and the commands read of the details, by operation."""

_BASE = ("name", "model_type", "dtype", "weights_sha256", "tokenizer_sha256")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = ("format", "version", "number", "parent", "operation", "when", "who", "message", "keep", "added", "details")


@dataclass(frozen=True)
class Active:
    """An update that is active after a record.

    Attributes:
        edit: Id of the record that made the edit (or folded several): what `revert` is given. None inside the record
            that makes it, which cannot hold its own hash.
        update: `ModelUpdate.id`.
        file: SHA-256 of the update file: its name in ``objects/``.
        size: Bytes of that file.
        dropped: Positions of those of the edit's requests that were replaced since and are not in the update.
    """

    edit: str | None
    update: str
    file: str
    size: int
    dropped: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"dropped": list(self.dropped)}


@dataclass(frozen=True)
class Record:
    """One operation on a ledger.

    Attributes:
        number: Position in the chain; 0 is `init`.
        parent: Id of the record before; None for `init`.
        operation: One of `OPERATIONS`.
        when: Time of the operation in UTC, ISO 8601.
        who: User.
        message: Why.
        keep: Updates that stay active, from the first on.
        added: Updates that are active after those.
        details: What belongs to the operation (see `docs/guides/ledger.md`), as JSON values.
    """

    number: int
    parent: str | None
    operation: str
    when: str
    who: str
    message: str = ""
    keep: int = 0
    added: tuple[Active, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        """The record as its file holds it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "number": self.number,
            "parent": self.parent,
            "operation": self.operation,
            "when": self.when,
            "who": self.who,
            "message": self.message,
            "keep": self.keep,
            "added": [entry.to_dict() for entry in self.added],
            "details": self.details,
        }

    @property
    def data(self) -> bytes:
        """The record as it is stored."""
        # An earlier Emendo wrote bytes that are not UTF-8; a new record has none (`as_read_back`).
        return (strict_json.dumps(self.document, indent=1) + "\n").encode("utf-8", "surrogateescape")

    @cached_property
    def id(self) -> str:
        """SHA-256 of the stored bytes."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def requests(self) -> tuple[EditRequest, ...]:
        """The requests of a record that makes an edit.

        Raises:
            RequestError: One of them cannot be used.
            TypeError: One of them has other fields than this Emendo knows.
        """
        return tuple(EditRequest.from_dict(row) for row in self.details["requests"])

    @cached_property
    def now_active(self) -> tuple[Active, ...]:
        """What it adds, each update with the edit that it is of."""
        return tuple(entry if entry.edit else replace(entry, edit=self.id) for entry in self.added)

    def to_dict(self) -> dict[str, Any]:
        """The record with its id, as commands show it."""
        return {
            "id": self.id,
            "number": self.number,
            "parent": self.parent,
            "operation": self.operation,
            "when": self.when,
            "who": self.who,
            "message": self.message,
            "keep": self.keep,
            "added": [entry.to_dict() for entry in self.now_active],
            "details": self.details,
        }


def parse_record(data: bytes, id: str, path: Path) -> Record:
    """A record from its bytes, which must have the expected hash.

    Args:
        data: The bytes.
        id: The hash by which HEAD or the next record names it.
        path: How errors name it.

    Raises:
        LedgerError: Altered, of a newer version, or not a record.
    """
    if hashlib.sha256(data).hexdigest() != id:
        raise LedgerError(f"record {str(path)!r} was altered: its bytes do not have the hash {id[:12]}…; {RESTORE}")
    row = parse_json(data, path, "record")
    check_version(row, FORMAT, VERSION, f"record {str(path)!r}")
    try:
        record = _record(row)
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"record {str(path)!r} has a sound hash but is no record ({error}); {RESTORE}") from error
    vars(record)["id"] = id  # what `Record.id` would work out from the bytes
    return record


def as_read_back(record: Record) -> Record:
    """A new record as its file will be read, which is held before anything is written.

    Raises:
        LedgerError: It could be written and never read again; names the value.
    """
    try:
        return _record(strict_json.loads(strict_json.encoded(record.document, indent=1).decode("utf-8")))
    except KeyError as error:
        raise LedgerError(f"this {record.operation} cannot be kept: its details lack {error}; {_NOTHING}") from error
    except (TypeError, ValueError) as error:
        raise LedgerError(f"this {record.operation} cannot be kept: {error}; {_NOTHING}") from error


_NOTHING = "nothing was added to the ledger"


def check_version(row: Mapping[str, Any], expected: str, newest: int, what: str) -> None:
    """Refuse another format, and a version that this code does not know.

    Raises:
        LedgerError: Says which.
    """
    if row.get("format") != expected:
        raise LedgerError(f"{what} has format {str(row.get('format'))[:40]!r}, expected {expected!r}; {RESTORE}")
    version = row.get("version")
    if type(version) is not int or not 1 <= version <= newest:
        raise LedgerError(f"{what} has version {str(version)[:20]}, this Emendo reads up to {newest}; {UPGRADE}")


def is_sha256(value: object) -> bool:
    """Whether a value is a whole SHA-256 in lower-case hexadecimal: what may become part of a path."""
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _record(row: Mapping[str, Any]) -> Record:
    if sorted(row) != sorted(_FIELDS):
        raise ValueError(f"its fields are {sorted(row)}")
    number, parent = _count(row["number"]), row["parent"]
    if (parent is None) != (number == 0) or not (parent is None or is_sha256(parent)):
        raise ValueError("parent")
    if row["operation"] not in OPERATIONS or (row["operation"] == "init") != (number == 0):
        raise ValueError("operation")
    texts = [row["when"], row["who"], row["message"]]
    if not all(isinstance(text, str) for text in texts) or not isinstance(row["details"], dict):
        raise TypeError("when, who, message and details are texts and an object")
    _check_details(row["operation"], row["details"])
    if row["operation"] in MAKES_EDIT and not (_list(row["added"]) and row["details"]["requests"]):
        raise ValueError("it makes an edit of no request, or adds no update")
    return Record(
        number=number,
        parent=parent,
        operation=row["operation"],
        when=row["when"],
        who=row["who"],
        message=row["message"],
        keep=_count(row["keep"]),
        added=tuple(_active(entry) for entry in _list(row["added"])),
        details=row["details"],
    )


def _check_details(operation: str, details: Mapping[str, Any]) -> None:
    """Refuse details that lack something that is read later: a sound hash says nothing about who wrote them."""
    for name, kind in _DETAILS[operation].items():
        if not isinstance(details[name], kind):
            raise TypeError(f"its {name} is a {type(details[name]).__name__}")
    if operation == "init" and not all(isinstance(details["base"][name], str) for name in _BASE):
        raise TypeError("its base is no identity of a model")
    if operation in MAKES_EDIT:
        rows = details["requests"]
        if not all(isinstance(row, dict) and all(isinstance(row[name], str) for name in _REQUEST) for row in rows):
            raise TypeError("its requests are no requests")
        method = details["method"]
        if not isinstance(method["name"], str) or not isinstance(method["settings"], dict):
            raise TypeError("its method has no name and settings")
    if not all(is_sha256(id) for id in details.get("reverts", [])):
        raise TypeError("it reverts what has no id")
    if operation == "checkout" and not (details["target"] is None or is_sha256(details["target"])):
        raise TypeError("its target is no id")
    if operation == "compact" and [type(size) for size in details["bytes"]] != [int, int]:
        raise TypeError("its bytes are no two sizes")


_REQUEST = ("id", "prompt", "subject", "target")


def _active(row: Mapping[str, Any]) -> Active:
    if not isinstance(row, dict) or sorted(row) != ["dropped", "edit", "file", "size", "update"]:
        raise ValueError(f"an active update has the fields {sorted(row)}")
    if not is_sha256(row["update"]) or not is_sha256(row["file"]):
        raise ValueError("update and file are SHA-256")
    if row["edit"] is not None and not is_sha256(row["edit"]):
        raise ValueError("edit is a SHA-256 or null")
    dropped = tuple(_count(position) for position in _list(row["dropped"]))
    return Active(row["edit"], row["update"], row["file"], _count(row["size"]), dropped)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a {type(value).__name__} is no list")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
