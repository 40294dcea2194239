"""What a further measure is: how it is asked and summarised, and what reports show of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from emendo.evaluate.snapshot import Snapshot
from emendo.requests import EditRecord


@dataclass(frozen=True)
class Column:
    """One column of a report's tables and one panel of its plots: where in a summary the number is.

    A path is dotted. ``{when}`` in it is ``before`` or ``after``; without it, the number is of the whole run.

    Attributes:
        key: Unique name.
        label: As tables head it.
        unit: As plots say it; empty for a pure number.
        value: Path of the number.
        form: Format specification of the number.
        meaning: One line for people.
        interval: Path of its interval; empty without one.
        count: Path of what it rests on; empty without one.
        scale: Factor on number and interval, such as 100 for percent.
        bounds: Of the plotted axis; None fits the data.
        counted: What `count` counts.
        spread: How the interval is made.
        base: Path of the unedited model's own value, shown with its scores; empty without one.
    """

    key: str
    label: str
    unit: str
    value: str
    form: str
    meaning: str
    interval: str = ""
    count: str = ""
    scale: float = 1.0
    bounds: tuple[float, float] | None = None
    counted: str = ""
    spread: str = ""
    base: str = ""


@dataclass(frozen=True)
class Panel:
    """A figure of a measure.

    Attributes:
        name: Of the figure's file; `SIDE_EFFECTS` for the figure and the columns that side effects share.
        title: Its heading.
        columns: What is in it.
    """

    name: str
    title: str
    columns: tuple[Column, ...]


SIDE_EFFECTS = "side-effects"
"""Name of the panel of side effects, which several measures share with perplexity."""


@dataclass(frozen=True)
class Curve:
    """A measure as a point of the curve that a sequence of edits draws.

    Attributes:
        title: Of its panel.
        unit: Of its numbers.
        most: Records that are asked at a point, the first ones.
        value: The number from what was asked.
    """

    title: str
    unit: str
    most: int
    value: Callable[[Any], float | None]


@dataclass(frozen=True)
class Given:
    """What else a measure may look at.

    Attributes:
        before: The unedited model with the same records; None where the unedited model itself is asked.
        wanted: Names of all measures that are made.
    """

    before: Snapshot | None
    wanted: frozenset[str]


@dataclass(frozen=True)
class Measure:
    """A measure beside scores, perplexity and samples, which every experiment has.

    Attributes:
        name: In configurations, on the command line (``--measure``) and in summaries.
        meaning: One line for people.
        stage: What the time that it takes is called.
        ask: Its answer, as JSON values.
        summarise: The summary from the unedited model's answer (None without one) and those of the edited model, one a
            batch or one of the end; None where there is nothing to tell.
        of_base: The unedited model has an answer of its own, which is kept.
        prepare: What `ask` needs of the unedited model while it is unedited.
        rows: The answer has one row a record, which goes into the record's line as well.
        by_format: Made where the records are of the data set's format ``zsre``, not where it is asked for.
        since: Version of the folder that names it everywhere; what later ones name only where it is made.
        needs: Whether a record has what it asks for; None: every record has.
        needed: What `needs` wants, in words, and what else to take.
        whole_cases: Facts of one case have to be in one batch.
        panels: Columns and figures of reports.
        curve: Its point of the curve; None without one.
        line: One line for people from its summary; None: its means are a table.
        title: Of that table.
        share: What the means are shares of, in its heading.
    """

    name: str
    meaning: str
    stage: str
    ask: Callable[[Snapshot, Given], Any]
    summarise: Callable[[Any, Sequence[Any]], dict[str, Any] | None]
    of_base: bool = True
    prepare: Callable[[Snapshot], object] | None = None
    rows: bool = False
    by_format: bool = False
    since: int = 2
    needs: Callable[[EditRecord], bool] | None = None
    needed: tuple[str, str] = ("", "")
    whole_cases: bool = False
    panels: tuple[Panel, ...] = ()
    curve: Curve | None = None
    line: Callable[[dict[str, Any]], str] | None = None
    title: str = ""
    share: str = ""
