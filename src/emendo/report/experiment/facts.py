"""What was run: models, data, versions and the rest of the provenance, as pairs for a list."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emendo.methods.fairness import differences_between
from emendo.report.experiment.axes import axis_value
from emendo.report.experiment.folder import Experiment, entry
from emendo.report.experiment.text import shown

_HASH_SHOWN = 16


def facts(experiment: Experiment) -> list[tuple[str, str]]:
    """Name and value of every fact that is known; a fact that differs between cells lists all its values."""
    found = [(name, _joined(values)) for name, values in _facts(experiment)]
    return [(name, text) for name, text in found if text]


def configuration(experiment: Experiment) -> str:
    """The experiment's configuration as JSON text; empty where there is none."""
    config = experiment.document.get("config")
    return shown(json.dumps(config, indent=2, ensure_ascii=False), 20_000) if config else ""


def warnings_of(experiment: Experiment) -> list[str]:
    """What makes cells of one report hard to compare: other code, other libraries, other settings than the method's."""
    notes = []
    for what, path in (("commits", "commit"), ("versions", "versions")):
        seen = {repr(cell.get(path)) for cell in experiment.done}
        if len(seen) > 1:
            notes.append(f"Cells were run with {len(seen)} different {what}; see What was run.")
    known = [(cell.plan, cell.get("resolved")) for cell in experiment.done]
    found = differences_between([(plan, resolved) for plan, resolved in known if isinstance(resolved, Mapping)])
    return notes + ([f"Cells differ in more than the method: {'; '.join(found)}."] if found else [])


def _facts(experiment: Experiment) -> Iterator[tuple[str, list[str]]]:
    document = experiment.document
    counts = {state: len(experiment.in_state(state)) for state in ("done", "failed", "missing", "damaged")}
    yield "cells", [", ".join(f"{n} {state}" for state, n in counts.items() if n or state == "done")]
    yield "command", [_command(document.get("command"))]
    for axis in ("method", "mode", "schedule", "seed"):
        yield axis, [str(axis_value(cell, axis)) for cell in experiment.cells if axis_value(cell, axis) != "–"]
    for kind in ("model", "data"):
        known = entry(document, f"base.{'models' if kind == 'model' else kind}")
        known = known if isinstance(known, Mapping) else {}
        names = dict.fromkeys(str(axis_value(cell, kind)) for cell in experiment.cells)
        for name in dict.fromkeys([*names, *map(str, known)]):
            yield f"{kind} {name}", [_pairs(known[name]) if isinstance(known.get(name), Mapping) else "not read yet"]
    yield "commit", _everywhere(experiment, "commit")
    versions = [document.get("versions"), *(cell.get("versions") for cell in experiment.cells)]
    yield "versions", [_pairs(found) for found in versions if isinstance(found, Mapping)]


def _pairs(value: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_hash_text(key, part)}" for key, part in value.items() if part is not None)


def _hash_text(key: str, value: Any) -> str:
    text = str(value)
    return f"{text[:_HASH_SHOWN]}…" if "sha256" in key and len(text) > _HASH_SHOWN else text


def _command(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _everywhere(experiment: Experiment, path: str) -> list[str]:
    values = [entry(experiment.document, path), *(cell.get(path) for cell in experiment.cells)]
    return [str(value) for value in values if value is not None]


def _joined(values: Sequence[str]) -> str:
    return shown("; ".join(dict.fromkeys(value for value in values if value)), 2000)
