"""What the command line shows: progress and messages on standard error, results on standard output."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emendo.io import strict_json
from emendo.io.printable import printable, printable_json
from emendo.progress import new_bar

_EVERY = 30.0
"""Seconds between two signs of life of a stage, where there is no bar."""

_PATIENCE = 0.3
"""Seconds until a command on a terminal says that it has begun; reading torch's modules takes several."""

_SHOWN_AS = {"targets": "targets, steps of the search"}
"""What a stage counts, where its name does not say it."""

_NOTES = {
    "second moments": 'Collecting key statistics (second moments; "covariance" in ROME and MEMIT), once per model, '
    "layers and text; later edits read them from EMENDO_HOME."
}
"""What is said once when a stage begins that will not come again."""


class Terminal:
    """One command's output, and the `Progress` that the library reports to.

    Args:
        json_output: Standard output carries one JSON document and nothing else.
        quiet: Nothing on standard error but errors.
    """

    def __init__(self, *, json_output: bool = False, quiet: bool = False) -> None:
        self.json_output = json_output
        self.quiet = quiet
        self.out = Console(soft_wrap=False)
        self.err = Console(stderr=True, quiet=quiet)
        self.seconds: dict[str, float] = {}
        self._bar: Any = None
        self._stage = ""
        self._begin = self._told = 0.0
        self._done = 0
        self._total: int | None = None
        self._noted: set[str] = set()
        self._waiting = threading.Timer(_PATIENCE, self._dim, ("starting …",))
        self._waiting.daemon = True
        if self.err.is_terminal and not quiet:
            self._waiting.start()

    # ---- Progress ----------------------------------------------------------------------------------------

    def start(self, stage: str, total: int | None = None) -> None:
        """Show a stage: a live bar on a terminal, lines elsewhere."""
        self.finish()
        self._waiting.cancel()
        self._stage, self._begin = stage, time.perf_counter()
        self._done, self._total, self._told = 0, total, self._begin
        if (note := _NOTES.get(stage)) and stage not in self._noted:
            self._noted.add(stage)
            self.message(note)
        if not self.err.is_terminal:
            self._dim(f"{stage} …")
        elif not self.quiet:
            self._bar = new_bar(printable(_SHOWN_AS.get(stage, stage)), total, self.err)

    def advance(self, n: int = 1) -> None:
        """Count finished units."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], n)
            return
        self._done += n
        now = time.perf_counter()
        if self._stage and now - self._told >= _EVERY:
            self._told = now
            of = "" if self._total is None else f" of {self._total}"
            left = "" if not self._total else f", about {self._left(now):.0f} s left"
            counted = _SHOWN_AS.get(self._stage, self._stage)
            self._dim(f"{counted}: {self._done}{of} after {now - self._begin:.0f} s{left}")

    def _left(self, now: float) -> float:
        """Seconds that the stage still takes if it goes on as it did."""
        return (now - self._begin) * max((self._total or 0) - self._done, 0) / max(self._done, 1)

    def finish(self) -> None:
        """End the stage and add its time."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._stage:
            took = time.perf_counter() - self._begin
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + took
            self._dim(f"{self._stage}: {took:.1f} s")
            self._stage = ""

    def _dim(self, text: str) -> None:
        self._waiting.cancel()
        self.err.print(f"  {printable(text)}", style="dim", highlight=False, markup=False)

    # ---- results -----------------------------------------------------------------------------------------

    def message(self, text: str) -> None:
        """One line for people, on standard error."""
        self._waiting.cancel()
        self.err.print(printable(text, keep="\n"), highlight=False, markup=False)

    def result(self, document: dict[str, Any]) -> None:
        """The JSON document, where it was asked for."""
        self._waiting.cancel()
        if self.json_output:
            print_json(document, indent=2)

    def row(self, document: dict[str, Any]) -> None:
        """One of many JSON documents, a line each as it comes, where JSON was asked for."""
        if self.json_output:
            print_json(document)

    def table(self, title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table for people, on standard output; nothing under --json."""
        self._waiting.cancel()
        if self.json_output:
            return
        table = Table(
            title=_cell(title) if title else None,
            title_justify="left",
            title_style="bold",
            header_style="bold",
            highlight=False,
        )
        for name in header:
            table.add_column(_cell(name), overflow="fold")
        for row in rows:
            table.add_row(*(_cell(cell) for cell in row))
        self.out.print(table)

    def wide_table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table in as many parts as the terminal is too narrow for, each with the first column.

        Args:
            title: Of the first part.
            header: Names of the columns.
            rows: Cells, which may hold several lines.
        """
        widths = [
            max(cell_len(line) for row in (header, *rows) for line in row[column].split("\n"))
            for column in range(len(header))
        ]
        for part, columns in enumerate(_parts(widths, self.out.width)):
            self.table(
                title if part == 0 else f"{title} (continued)",
                [header[column] for column in columns],
                ([row[column] for column in columns] for row in rows),
            )

    def line(self, text: str, *, unbroken: bool = False, style: str | None = None) -> None:
        """A line of the result for people, on standard output; nothing under --json.

        Args:
            text: The line.
            unbroken: It stays one line however narrow the terminal is, to be copied.
            style: Colour, on a terminal that has it.
        """
        if not self.json_output:
            self._waiting.cancel()
            self.out.print(printable(text), highlight=False, markup=False, soft_wrap=unbroken, style=style)


def print_json(document: dict[str, Any], indent: int | None = None) -> None:
    """A JSON document on standard output, with escapes for what that cannot show.

    Args:
        document: What JSON holds.
        indent: As in `json.dumps`.
    """
    text = printable_json(strict_json.dumps(document, indent=indent))
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeError:
        text = json.dumps(json.loads(text), indent=indent)
    print(text, flush=True)


_BORDER = 3  # of a column: a rule, and a space on each side


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns of each part of a table, so that no part is wider than `room` where that can be."""
    parts: list[list[int]] = []
    used = room
    for column in range(1, len(widths)):
        need = widths[column] + _BORDER
        if used + need > room:
            parts.append([0])
            used = widths[0] + _BORDER + 1
        parts[-1].append(column)
        used += need
    return parts


STYLES = {
    **dict.fromkeys(("good", "pass", "said", "kept"), "green"),
    **dict.fromkeys(("doubtful", "not measured, pass", "changed"), "yellow"),
    **dict.fromkeys(("bad", "fail", "not measured, fail", "not said", "lost"), "red"),
}
"""Colour of a verdict, of a check and of an answer."""


def coloured(outcome: str, text: str | None = None) -> Text:
    """A cell of a table in the colour of an outcome.

    Args:
        outcome: A name of `STYLES`; another one has no colour.
        text: What the cell says; None: the outcome.
    """
    return Text(printable(outcome if text is None else text), style=STYLES.get(outcome, ""))


def _cell(value: object, style: str = "") -> Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return Text("–")
    # Text, because rich would read brackets in a string as markup.
    return Text(f"{value:.1f}" if isinstance(value, float) else printable(str(value), keep="\n"), style=style)


def shortened(text: str, most: int) -> str:
    """The beginning of a text that is too long to be shown."""
    return text if len(text) <= most else text[: most - 1] + "…"
