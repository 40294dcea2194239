"""`emendo edit --repeat`: one fact after another from standard input, each in the model within seconds."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emendo.cli.console import Terminal
from emendo.errors import EmendoError, InputError, RequestError
from emendo.io.writable import check_writable_file

if TYPE_CHECKING:
    from emendo.editing.session import PreparedMethod
    from emendo.updates.update import ModelUpdate

_ANSWER_TOKENS = 8
"""New tokens of the answer that is shown after an edit."""

HOW = 'a fact a line, {"prompt": "The capital of {} is", "subject": "France", "target": "Rome"}; or undo'
"""What standard input takes."""

_TAKEN = frozenset({"--repeat", "--model", "--method", "--layers", "--set", "--out", "--overwrite"}) | frozenset(
    {"--seed", "--device", "--dtype", "--load-in", "--json", "--quiet"}
)
"""Options that mean something here; the others belong to one plan of facts that are known before."""


def check_repeat(given: Sequence[str], out: Path | None, *, overwrite: bool) -> None:
    """Refuse options that mean nothing here, and a file that is there or cannot be written.

    Args:
        given: Options of the command line.
        out: File for the update.
        overwrite: It may be replaced.

    Raises:
        InputError: Names them.
        OutputError: The file cannot be written.
    """
    if excluded := [name for name in given if name not in _TAKEN]:
        raise InputError(
            f"--repeat reads its facts from standard input ({HOW}) and writes each of them; it excludes "
            f"{', '.join(excluded)}"
        )
    if out is not None:
        if out.exists() and not overwrite:
            raise InputError(f"{out} exists; expected a new file for the update of all facts, or --overwrite")
        check_writable_file(out)


def repeat(terminal: Terminal, ready: PreparedMethod, lines: Iterable[str], out: Path | None) -> None:
    """Write the fact of each line, or say why not, until there are no more lines.

    Args:
        terminal: Of the command.
        ready: The method, made ready.
        lines: JSON objects as in a file of requests, or ``undo``.
        out: File for the sum of what is in the model at the end; None: nothing is written.
    """
    terminal.line(f"Ready: {HOW}", style="bold")
    written: list[ModelUpdate] = []
    try:
        for line in lines:
            if text := line.strip():
                _take(terminal, ready, text, written)
    finally:  # an interrupt loses no fact
        if out is not None:
            _save(terminal, written, out)


def _take(terminal: Terminal, ready: PreparedMethod, text: str, written: list[ModelUpdate]) -> None:
    if text == "undo":
        _undo(terminal, ready, written)
        return
    try:
        _write(terminal, ready, _fact(text), written)
    except EmendoError as error:  # of this fact; those before it stay, those after it come
        terminal.line(f"Not written: {error}", style="red")
        terminal.row({"error": str(error), "written": len(written)})


def _fact(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RequestError(f"found {text[:80]!r}; expected {HOW}")
    return found


def _write(terminal: Terminal, ready: PreparedMethod, fact: dict[str, Any], written: list[ModelUpdate]) -> None:
    begin = time.perf_counter()
    plan = ready.edit(fact)
    seconds = time.perf_counter() - begin
    written.append(plan.update)
    request = plan.requests[0]
    answer = ready.session.lm.generate(request.text, _ANSWER_TOKENS)
    terminal.line(f"{len(written)}. {request.text} → {' '.join(answer.split())}  ({seconds:.2f} s)")
    for warning in plan.warnings:
        terminal.line(f"Note: {warning}", style="yellow")
    terminal.row(
        {
            "request": request.to_dict(),
            "answer": answer,
            "seconds": seconds,
            "search_seconds": plan.seconds["targets"],
            "update": plan.update.id,
            "written": len(written),
        }
    )


def _undo(terminal: Terminal, ready: PreparedMethod, written: list[ModelUpdate]) -> None:
    """Take the last fact out again; the weights are then those before it, bit for bit."""
    if not written:
        terminal.line("Nothing to undo.", style="yellow")
        terminal.row({"error": "nothing to undo", "written": 0})
        return
    ready.session.move_to(written[:-1])
    gone = written.pop()
    terminal.line(f"Undone: {gone.info['requests'][0]['subject']}; {len(written)} fact(s) are in the model.")
    terminal.row({"undone": gone.id, "written": len(written)})


def _save(terminal: Terminal, written: list[ModelUpdate], out: Path) -> None:
    from emendo.updates.merge import merge

    if not written:
        terminal.line("No fact was written, so there is no update file.")
        return
    merged = written[0] if len(written) == 1 else merge(written)
    merged.save(out)
    terminal.line(f"Update: {out} ({len(written)} facts, {merged.nbytes / 1024:.0f} KiB)")


def standard_input() -> Iterable[str]:
    """Lines as they come."""
    return iter(sys.stdin.readline, "")
