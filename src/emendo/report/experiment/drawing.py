"""Plots as PNG and SVG. The only module that imports matplotlib; it keeps no state there."""

from __future__ import annotations

import io
import itertools
import textwrap
import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from emendo.report.experiment.figure import BASELINE, Figure, Line, Panel

# Okabe and Ito 2008, "Color universal design": told apart with any colour vision. Yellow is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--")
_GREY = "#666666"

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.8,
    "svg.fonttype": "path",
    "svg.hashsalt": "emendo",  # element names, and so the file, depend on the plot alone
}

_SIZES = {1: (1, 1, 8.0, 4.8), 2: (1, 2, 11.0, 4.6), 3: (1, 3, 13.0, 4.6), 4: (2, 2, 11.0, 8.0)}
"""Rows, columns, width and height in inches, by number of panels."""


@dataclass(frozen=True)
class Picture:
    """A drawn figure.

    Attributes:
        figure: What it shows.
        png: For files.
        svg: For the page.
    """

    figure: Figure
    png: bytes
    svg: bytes


def draw(figure: Figure) -> Picture:
    """Draw a figure.

    Args:
        figure: With at least one panel.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    rows, columns, width, height = _SIZES[min(len(figure.panels), 4)]
    labels = _labels(figure)
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that DejaVu lacks is drawn as boxes, which says enough.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph", category=UserWarning)
        canvas = Canvas(figsize=(width, height + 0.24 * -(-len(labels) // _columns(labels))), layout="constrained")
        FigureCanvasAgg(canvas)
        grid = canvas.subplots(rows, columns, squeeze=False)
        for panel, axes in zip(figure.panels, grid.flat, strict=True):
            _draw_panel(axes, figure, panel, labels)
        canvas.suptitle(_plain(figure.title), fontsize=14, fontweight="bold", color="#111111")
        _legend(canvas, labels, note="\n".join(textwrap.wrap(_plain(figure.note), int(width * 12))))
        png = _saved(canvas, "png")
        canvas.set_layout_engine("none")  # everything has its place now; finding it takes as long as drawing it
        return Picture(figure, png, _saved(canvas, "svg"))


def _labels(figure: Figure) -> list[str]:
    """Every line's label, in the order of the panels; its place decides colour, marker and dash."""
    found = dict.fromkeys(line.label for panel in figure.panels for line in panel.lines)
    return sorted(found, key=lambda label: label != BASELINE)


def _draw_panel(axes: Any, figure: Figure, panel: Panel, labels: list[str]) -> None:
    ordered = [label for label in labels if any(line.label == label for line in panel.lines)]
    for line in panel.lines:
        shift = ordered.index(line.label) - (len(ordered) - 1) / 2
        _draw_line(axes, figure, line, _look(line.label, labels), shift)
    if panel.title:
        axes.set_title(_plain(panel.title) + (f" ({panel.unit})" if panel.unit else ""))
    axes.set_ylabel(panel.unit or _plain(panel.title))
    axes.set_xlabel(_plain(figure.x_label))
    if panel.log and all(value.value > 0 for line in panel.lines for _, value in line.points):
        axes.set_yscale("log")
    elif panel.bounds is not None:
        axes.set_ylim(*panel.bounds)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.margins(y=0.12)
    _x_axis(axes, figure)


def _x_axis(axes: Any, figure: Figure) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    if figure.x_log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    if figure.ticks:
        turned = sum(len(label) for _, label in figure.ticks) > 44
        axes.set_xticks(
            [x for x, _ in figure.ticks],
            [_plain(label) for _, label in figure.ticks],
            rotation=30 if turned else 0,
            ha="right" if turned else "center",
        )
    places = [x for x, _ in figure.ticks]
    if not figure.connected:
        axes.set_xlim(-0.6, len(places) - 0.4)
    elif figure.x_log and len(places) > 1:  # the same in every panel, also where one has no value at an end
        axes.set_xlim(places[0] / 1.25, places[-1] * 1.25)
    elif len(places) > 1:
        margin = 0.06 * (places[-1] - places[0])
        axes.set_xlim(places[0] - margin, places[-1] + margin)


def _draw_line(axes: Any, figure: Figure, line: Line, look: dict[str, Any], shift: float) -> None:
    means: dict[float, list[float]] = defaultdict(list)
    for x, value in line.points:
        means[x].append(value.value)
        if value.low is not None and value.high is not None:
            at = _shifted(x, shift, figure)
            # Drawn as an absolute span: a percentile interval need not hold the value itself.
            axes.plot([at, at], [value.low, value.high], color=look["color"], linewidth=1.4, alpha=0.75, zorder=2)
            axes.plot([at, at], [value.low, value.high], "_", color=look["color"], markersize=6, alpha=0.75, zorder=2)
    points = [(_shifted(x, shift, figure), value.value) for x, value in line.points]
    dense = len(points) > 40
    axes.plot(*zip(*points, strict=True), look["marker"] if not dense else "", color=look["color"], markersize=5.5)
    if figure.connected:
        joined = [(_shifted(x, shift, figure), sum(values) / len(values)) for x, values in means.items()]
        axes.plot(*zip(*joined, strict=True), color=look["color"], linestyle=look["linestyle"], linewidth=1.8)


def _shifted(x: float, shift: float, figure: Figure) -> float:
    """Beside the other lines' points, so that intervals do not hide one another."""
    places = [place for place, _ in figure.ticks]
    if len(places) < 2:
        return x + 0.09 * shift if places else x
    # A small part of the way to the next tick for each line.
    if figure.x_log:
        step = min(b / a for a, b in itertools.pairwise(places))
        return float(x * step ** (shift / 28))
    step = min(b - a for a, b in itertools.pairwise(places))
    return x + shift * step / (28 if figure.connected else 12)


def _look(label: str, labels: list[str]) -> dict[str, Any]:
    if label == BASELINE:
        return {"color": _GREY, "marker": ".", "linestyle": ":"}
    place = [other for other in labels if other != BASELINE].index(label)
    turn, index = divmod(place, len(COLOURS))
    marker = _MARKERS[(index + turn) % len(_MARKERS)]
    return {"color": COLOURS[index], "marker": marker, "linestyle": _DASHES[turn % len(_DASHES)]}


def _legend(canvas: Any, labels: list[str], note: str) -> None:
    """Lines by name, under the note that says what was measured."""
    from matplotlib.lines import Line2D

    handles = []
    for label in labels:
        look = _look(label, labels)
        handles.append(Line2D([], [], **look, linewidth=1.8, markersize=6, label=_plain(label)))
    legend = canvas.legend(
        handles=handles,
        loc="outside lower center",
        ncols=_columns(labels),
        frameon=False,
        fontsize=10.5,
        title=note,
        title_fontsize=9.5,
    )
    legend.get_title().set_color("#333333")
    legend.get_title().set_multialignment("center")


def _columns(labels: list[str]) -> int:
    """Columns of the legend: as many as fit into a line of about a hundred characters."""
    return max(1, min(len(labels), 100 // (max(map(len, labels)) + 6)))


def _plain(text: str) -> str:
    """Text that matplotlib draws as it is: a dollar would begin a formula."""
    return text.replace("$", r"\$")


def _saved(canvas: Any, form: str) -> bytes:
    stream = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    canvas.savefig(stream, format=form, dpi=130, metadata=metadata, facecolor="white")
    return stream.getvalue()
