"""Second moments on disk: one verified safetensors file for each fingerprint and layer.

Layout, under ``$EMENDO_HOME/moments`` (``~/.cache/emendo/moments`` unless the variable is set)::

    <first 16 hex digits of the fingerprint>/layer-05.safetensors

A file holds one tensor, ``total``: the lower triangle of the sum of k kᵀ, row by row, in the dtype it was
accumulated in. A symmetric matrix loses nothing by that, and a mean or a merge after loading is bit for bit
what it was before. Of a mixture of experts ``total`` has a row an expert, ``counts`` how many keys are in each, and
``sample_keys`` and ``sample_experts`` the keys that are kept whole. Its header is a `MomentHeader`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.errors import MomentsError
from emendo.io.home import emendo_home
from emendo.io.printable import quoted
from emendo.io.tensor_file import TensorFileFormat, read_tensor_file, read_tensor_file_header, write_tensor_file
from emendo.io.versions import versions
from emendo.shapes import Moment
from emendo.solve import BlockMoment
from emendo.statistics.expert_moment import ExpertSecondMoment
from emendo.statistics.openings import OPENINGS
from emendo.statistics.packed import LayerMoment, moment_of, moment_tensors
from emendo.statistics.spec import Fingerprint

FORMAT = TensorFileFormat(
    name="emendo.moment",
    version=2,  # 2: sums of experts; a single sum is written as version 1, which older programs read
    error=MomentsError,
    remedy="delete the file and collect again (emendo moments collect)",
    destination="set EMENDO_HOME to a directory that can be written",
)


@dataclass(frozen=True)
class MomentHeader:
    """What a stored second moment says about itself.

    Args:
        fingerprint: What it is valid for.
        layer: Layer number.
        module: Dotted name of the module whose inputs were counted.
        model: Name of the model, for people; the fingerprint's digest is what counts.
        created: UTC time of collection, ISO 8601.
        emendo_version: Version that wrote the file.
    """

    fingerprint: Fingerprint
    layer: int
    module: str
    model: str = ""
    created: str = ""
    emendo_version: str = ""

    @classmethod
    @checked
    def now(cls, fingerprint: Fingerprint, layer: int, module: str, model: str) -> MomentHeader:
        """A header for a moment collected just now."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(fingerprint, layer, module, model, created, versions()["emendo"])

    @classmethod
    @checked
    def from_json(cls, values: Mapping[str, Any]) -> MomentHeader:
        """The header that `to_json` wrote.

        Raises:
            KeyError: A field is missing.
        """
        names = ("layer", "module", "model", "created", "emendo_version")
        return cls(Fingerprint.from_json(values["fingerprint"]), **{name: values[name] for name in names})

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return {
            "fingerprint": self.fingerprint.to_json(),
            "layer": self.layer,
            "module": self.module,
            "model": self.model,
            "created": self.created,
            "emendo_version": self.emendo_version,
        }


@dataclass(frozen=True)
class StoredMoment:
    """A second moment with its header.

    Args:
        moment: The sum and the count.
        header: Where it comes from.
        path: The file.
        cached: Whether it was found on disk rather than collected by this call.
    """

    moment: LayerMoment
    header: MomentHeader
    path: Path
    cached: bool = True

    def mean(self) -> Moment | BlockMoment:
        """C = E[k kᵀ] in float64, or its blocks."""
        if isinstance(self.moment, ExpertSecondMoment):
            return self.moment.mean(self.header.module)
        return self.moment.mean()


@dataclass(frozen=True)
class StoreEntry:
    """One file of the store, without its tensor.

    Args:
        path: The file.
        size: Bytes.
        header: What it says about itself; None where it cannot be read.
        problem: What is wrong with it; None where nothing was found.
    """

    path: Path
    size: int
    header: MomentHeader | None
    problem: str | None = None


class MomentStore:
    """The cache directory of second moments.

    Args:
        root: The directory; None: ``moments`` under EMENDO_HOME.
    """

    @checked
    def __init__(self, root: Path | str | None = None) -> None:
        self.root = emendo_home() / "moments" if root is None else Path(root).expanduser()

    @checked
    def folder(self, fingerprint: Fingerprint) -> Path:
        """Where the layers of one collection lie, unfinished ones included."""
        return self.root / fingerprint.digest[:16]

    @checked
    def path(self, fingerprint: Fingerprint, layer: int) -> Path:
        """The file of one layer."""
        return self.folder(fingerprint) / f"layer-{layer:02d}.safetensors"

    @checked
    def get(self, fingerprint: Fingerprint, layer: int, module: str) -> StoredMoment | None:
        """The stored moment of a layer, or None where there is none.

        Raises:
            MomentsError: There is a file, but it is damaged or belongs to something else.
        """
        path = self.path(fingerprint, layer)
        # Not path.exists(): that raises for a name that no file can have.
        return read_moment(path, fingerprint, module) if os.path.exists(path) else None

    @checked
    def by_digest(self, digest: str, layer: int, module: str) -> StoredMoment | None:
        """The stored moment that an update was planned with, by the digest that it records; None where there is none.

        Args:
            digest: Of the fingerprint.
            layer: Layer number.
            module: Dotted name of the module.

        Raises:
            MomentsError: There is a file, but it is damaged.
        """
        path = self.root / digest[:16] / f"layer-{layer:02d}.safetensors"
        if not os.path.exists(path):
            return None
        found = read_moment(path, module=module)
        return found if found.header.fingerprint.digest == digest else None

    @checked
    def require(self, fingerprint: Fingerprint, layer: int, module: str, *, model: str = "MODEL") -> StoredMoment:
        """The stored moment of a layer.

        Args:
            fingerprint: What it must be valid for.
            layer: Layer number.
            module: Dotted name of the module.
            model: How the command in an error message names the model.

        Raises:
            MomentsError: There is none; says how the nearest one differs and how to collect the right one.
        """
        if (stored := self.get(fingerprint, layer, module)) is not None:
            return stored
        others = [entry for entry in self.entries() if entry.header is not None and entry.header.module == module]
        nearest = min(
            ((entry.header.fingerprint.differences(fingerprint), entry) for entry in others if entry.header),
            key=lambda pair: len(pair[0]),
            default=None,
        )
        command = collect_command(fingerprint, layer, model)
        if nearest is None:
            raise MomentsError(f"no second moment of {module} in {self.root}. Collect it: {command}")
        differences, entry = nearest
        raise MomentsError(
            f"no second moment of {module} that fits; the nearest, {entry.path}, differs in "
            f"{'; '.join(differences)}. Collect the right one: {command}"
        )

    @checked
    def put(self, moment: LayerMoment, header: MomentHeader) -> StoredMoment:
        """Write a moment; whole or not at all.

        Raises:
            MomentsError: The count is not what the fingerprint says.
            OutputError: The directory cannot be written.
        """
        if moment.count != header.fingerprint.tokens:
            raise MomentsError(
                f"a moment of {moment.count} keys cannot be stored as one of {header.fingerprint.tokens}"
            )
        path = self.path(header.fingerprint, header.layer)
        write_tensor_file(path, format_of(moment), moment_tensors(moment), header.to_json())
        return StoredMoment(moment, header, path, cached=False)

    def entries(self) -> list[StoreEntry]:
        """All files, headers only: fast, but damaged tensors go unnoticed (`verify`)."""
        found = []
        for path in sorted(self.root.glob("*/layer-*.safetensors")):
            try:
                header, problem = MomentHeader.from_json(read_tensor_file_header(path, FORMAT)), None
            except MomentsError as error:
                header, problem = None, str(error)
            except (KeyError, TypeError) as error:
                header, problem = None, _incomplete(path, error)
            found.append(StoreEntry(path, path.stat().st_size, header, problem))
        return found

    def verify(self) -> list[StoreEntry]:
        """All files, each read in full and checked against its digest."""
        found = []
        for entry in self.entries():
            problem = entry.problem
            if problem is None:
                try:
                    read_moment(entry.path)
                except MomentsError as error:
                    problem = str(error)
            found.append(StoreEntry(entry.path, entry.size, entry.header, problem))
        return found


@checked
def read_moment(path: Path, fingerprint: Fingerprint | None = None, module: str | None = None) -> StoredMoment:
    """Read one file, checked against its digest and, where given, against what it should be.

    Raises:
        MomentsError: The file is missing, damaged, or belongs to something else; says what differs.
    """
    tensors, values = read_tensor_file(path, FORMAT)
    try:
        header = MomentHeader.from_json(values)
        moment = moment_of(tensors, header.fingerprint.tokens)
    except (KeyError, TypeError) as error:
        raise MomentsError(_incomplete(path, error)) from error
    differences = header.fingerprint.differences(fingerprint) if fingerprint is not None else []
    if module is not None and header.module != module:
        differences.append(f"module: found {header.module}, expected {module}")
    if differences:
        expected = fingerprint or header.fingerprint
        raise MomentsError(
            f"{path} is another second moment; {'; '.join(differences)}. Collect the right one: "
            f"{collect_command(expected, header.layer)}"
        )
    return StoredMoment(moment, header, path)


def collect_command(fingerprint: Fingerprint, layer: int, model: str = "MODEL") -> str:
    """The command that collects what a fingerprint describes."""
    corpus = fingerprint.corpus
    named = {"self": "self", "openings": OPENINGS, "dataset": corpus.get("id"), "text": "FILE"}
    source = named.get(str(corpus.get("kind")), "CORPUS")
    parts = [
        f"emendo moments collect --model {quoted(model)} --layers {layer} --corpus {quoted(source)}",
        f"--tokens {fingerprint.tokens} --length {fingerprint.length}",
    ]
    return " ".join(parts + ["--exclude-first"] * fingerprint.exclude_first)


def format_of(*moments: LayerMoment) -> TensorFileFormat:
    """The format that a file of these moments is written in: the oldest that has them."""
    return FORMAT if any(isinstance(one, ExpertSecondMoment) for one in moments) else replace(FORMAT, version=1)


def _incomplete(path: Path, error: Exception) -> str:
    return f"{str(path)!r} has no complete header ({error!r}); {FORMAT.remedy}"
