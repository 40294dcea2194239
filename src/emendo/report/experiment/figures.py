"""Which plots an experiment gives."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from emendo.report.experiment.axes import FACETS, axis_value, sweeps
from emendo.report.experiment.curve_figures import curve_figures
from emendo.report.experiment.figure import Figure
from emendo.report.experiment.folder import Cell, Experiment
from emendo.report.experiment.grid_figures import across_mode_figures, overview_figures, sweep_figures
from emendo.report.experiment.text import shortened


def figures_of(experiment: Experiment) -> list[Figure]:
    """Every plot that the finished cells allow, the scores first."""
    facets: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in experiment.done:
        facets[tuple(str(axis_value(cell, name)) for name in FACETS)].append(cell)
    figures = across_mode_figures(experiment.done)
    for index, (facet, cells) in enumerate(facets.items()):
        place = ", ".join(shortened(part, 40) for part in facet)
        figures += _facet_figures(cells, place, f"-{index + 1}" if len(facets) > 1 else "")
    return _named_apart(figures)


def _named_apart(figures: Sequence[Figure]) -> list[Figure]:
    """The figures with unique names, which are file names: those of two axes may be cut to the same one."""
    seen: Counter[str] = Counter()
    named = []
    for figure in figures:
        seen[figure.name] += 1
        again = seen[figure.name]
        named.append(figure if again == 1 else replace(figure, name=f"{figure.name}-again-{again}"))
    return named


def _facet_figures(cells: Sequence[Cell], place: str, suffix: str) -> list[Figure]:
    swept = sweeps(cells)
    figures = [] if swept else overview_figures(cells, place, suffix)
    for axis, lines in swept:
        figures += sweep_figures(axis, lines, place, suffix)
    return figures + curve_figures(cells, place, suffix)
