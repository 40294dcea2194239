"""The page of a trace: heat maps as SVG with a table behind each, averages first."""

from __future__ import annotations

from collections.abc import Sequence

from emendo.report.heat import group_of
from emendo.report.html import render
from emendo.report.lines import placed
from emendo.report.trace.heat import average_heats, fact_heats
from emendo.report.trace.panels import average_panels
from emendo.report.trace.words import explain, fact_row, peaks
from emendo.tracing import Average, Trace

MOST_FACTS = 20
"""Facts whose own heat maps stand on the page; all of them are in trace.safetensors and trace.json."""


def page(trace: Trace, averages: Sequence[Average]) -> str:
    """The whole page.

    Args:
        trace: The facts.
        averages: Over them.

    Raises:
        ReportError: jinja2 is not installed.
    """
    several = len(trace.facts) > 1
    mean_heats = average_heats(trace, averages) if several else []
    return render(
        "emendo.report.trace",
        "trace.html.j2",
        title=_title(trace),
        settings=explain(trace),
        peaks=peaks(trace, averages),
        averages=group_of(mean_heats) if several else None,
        panels=[placed(panel) for panel in average_panels(trace, averages)] if several else [],
        facts=[
            {"row": fact_row(fact, trace.kinds), "group": group_of(fact_heats(fact, trace.kinds))}
            for fact in trace.facts[:MOST_FACTS]
        ],
        left_out=max(0, len(trace.facts) - MOST_FACTS),
        total=len(trace.facts),
        skipped=trace.skipped,
        kinds=trace.kinds,
        emendo=trace.made["versions"]["emendo"],
    )


def _title(trace: Trace) -> str:
    name = trace.made["model"]["name"]
    return f"{trace.facts[0].text} · {name}" if len(trace.facts) == 1 else f"{len(trace.facts)} facts in {name}"
