"""The heat maps of a trace as one PNG."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

from emendo.report.heat import Heat, colour, legend, scale_of
from emendo.report.packages import check_matplotlib


def draw_heats(title: str, note: str, heats: Sequence[Heat]) -> bytes:
    """All heat maps side by side under one scale.

    Args:
        title: One line.
        note: What was measured, and how.
        heats: At least one.

    Raises:
        ReportError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    scale = scale_of(heats)
    rows = max(len(heat.rows) for heat in heats)
    style = {"font.family": "DejaVu Sans", "font.size": 10}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph", category=UserWarning)
        canvas = Figure(figsize=(1.5 + 4.6 * len(heats), 1.9 + 0.3 * rows), layout="constrained")
        FigureCanvasAgg(canvas)
        grid = canvas.subplots(1, len(heats) + 1, squeeze=False, width_ratios=[*[1.0] * len(heats), 0.045])
        for axes, heat in zip(grid[0], heats, strict=False):
            colours = [[to_rgb(colour(value, scale)) for value in row] for row in heat.values]
            _draw(axes, heat, colours)
        bar = grid[0][-1]
        steps = legend(scale)
        bar.imshow([[to_rgb(c)] for _, c in steps], aspect="auto", origin="lower", extent=(0, 1, *_extent(scale)))
        bar.axhline(0, color="black", linewidth=0.8)
        bar.set_xticks([])
        bar.yaxis.tick_right()
        bar.set_title("effect", fontsize=9)
        canvas.suptitle(title.replace("$", r"\$"), fontsize=12, fontweight="bold")
        text = textwrap.fill(note, 60 * len(heats)).replace("$", r"\$")
        canvas.supxlabel(text, fontsize=8.5, color="#333333")
        stream = io.BytesIO()
        canvas.savefig(stream, format="png", dpi=130, metadata={"Software": None}, facecolor="white")
        return stream.getvalue()


def _draw(axes: Any, heat: Heat, colours: list[list[tuple[float, float, float]]]) -> None:
    axes.imshow(colours, aspect="auto", interpolation="nearest")
    axes.set_title(heat.title, fontsize=10)
    labels = [f"{text}*" if subject else text for text, subject in heat.rows]
    axes.set_yticks(range(len(labels)), [label.replace("$", r"\$") for label in labels])
    if heat.labels:
        turned = 0 if max(map(len, heat.labels)) < 4 else 90
        axes.set_xticks(range(len(heat.labels)), [label.replace("$", r"\$") for label in heat.labels], rotation=turned)
    axes.set_xlabel(heat.column)


def _extent(scale: tuple[float, float]) -> tuple[float, float]:
    return scale if scale[1] > scale[0] else (scale[0] - 0.5, scale[1] + 0.5)
