"""Panels of lines as one PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from emendo.report.lines import COLOURS, Panel, bounds
from emendo.report.packages import check_matplotlib

_MARKS = ("o", "s", "D", "^", "v")


def draw_panels(title: str, note: str, panels: Sequence[Panel]) -> bytes:
    """All panels in two columns.

    Args:
        title: One line.
        note: What was measured, and how.
        panels: At least one.

    Raises:
        ReportError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(panels) // 2)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9}):
        canvas = Figure(figsize=(10.5, 1.2 + 2.4 * rows), layout="constrained")
        FigureCanvasAgg(canvas)
        grid = canvas.subplots(rows, 2, squeeze=False).flatten()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(grid, panels, strict=False):
            for line, colour, mark in zip(panel.lines, COLOURS, _MARKS, strict=False):
                x, y = [p.x for p in line.points], [p.y for p in line.points]
                style = "-" if line.joined else ""
                axes.plot(x, y, linestyle=style, marker=mark, markersize=4, color=colour, label=_plain(line.name))
                for point in line.points:
                    if point.interval is not None:
                        axes.plot([point.x, point.x], point.interval, color=colour, linewidth=1)
            for value, _ in panel.marked:
                axes.axvline(value, color="#16181d", linewidth=0.9, linestyle="--")
            axes.set_xlim(panel.span[0] - 0.5, panel.span[1] + 0.5)
            axes.set_ylim(*bounds(panel))
            axes.set_title(_plain(f"{panel.title} ({panel.unit})" if panel.unit else panel.title), fontsize=9.5)
            axes.set_xlabel(panel.x, fontsize=8.5)
            axes.grid(axis="y", color="#d5d8de", linewidth=0.7)
            if len(panel.lines) > 1:
                axes.legend(fontsize=8, frameon=False)
        canvas.suptitle(_plain(title), fontsize=12, fontweight="bold")
        canvas.supxlabel(_plain(textwrap.fill(note, 130)), fontsize=8.5, color="#333333")
        stream = io.BytesIO()
        canvas.savefig(stream, format="png", dpi=120, metadata={"Software": None}, facecolor="white")
        return stream.getvalue()


def _plain(text: str) -> str:
    return text.replace("$", r"\$")
