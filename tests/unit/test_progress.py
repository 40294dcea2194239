"""Progress that a caller of the library asks for, and what notebooks show of results."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from emendo.io.html_table import html_table
from emendo.progress import Bars, Silent, chosen_progress, new_bar


def test_true_is_bars_and_nothing_is_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen_progress(None) is None
    assert chosen_progress(False) is None
    silent = Silent()
    assert chosen_progress(silent) is silent
    bars = chosen_progress(True)
    assert isinstance(bars, Bars)
    bars.advance()  # before anything began
    for stage in ("targets [1/2]", "scoring"):
        bars.start(stage, 4)
        bars.advance(3)
    bars.finish()
    bars.finish()
    assert capsys.readouterr().out == ""


def test_a_bar_has_its_stage_its_count_and_the_time_that_is_left() -> None:
    stream = StringIO()
    bar = new_bar("targets [1/2]", 4, Console(file=stream, force_terminal=True, width=100))
    bar.advance(bar.task_ids[0], 3)
    bar.refresh()
    shown = stream.getvalue()
    bar.stop()
    assert "targets [1/2]" in shown
    assert "3/4" in shown
    assert "left" in shown


def test_cells_are_no_markup_and_many_rows_are_counted() -> None:
    shown = html_table("<b>", ("a", "b"), [("<script>", None)] * 25)
    assert "<script>" not in shown
    assert shown.count("&lt;script&gt;") == 20
    assert "and 5 more" in shown
    assert "<td>–</td>" in shown
