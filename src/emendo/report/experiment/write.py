"""From an experiment's folder to report.html, report.md and plots/ in it."""

from __future__ import annotations

from pathlib import Path

from emendo.arguments import checked
from emendo.errors import OutputError
from emendo.io.in_place import replaced_files
from emendo.io.whole_file import write_bytes, write_text
from emendo.io.writable import check_writable
from emendo.progress import Progress, Watched, watching
from emendo.report.experiment.drawing import Picture, draw
from emendo.report.experiment.figures import figures_of
from emendo.report.experiment.folder import Experiment, read_experiment
from emendo.report.experiment.markdown import PLOTS, markdown_text
from emendo.report.experiment.page import page
from emendo.report.html import check_jinja
from emendo.report.packages import check_matplotlib


@checked
def write_report(folder: str | Path, *, out: str | Path | None = None, progress: Watched = None) -> dict[str, Path]:
    """Make the report of an experiment, finished or not; the same folder gives the same bytes.

    Args:
        folder: What `emendo experiment` wrote.
        out: Where the report goes; None puts it into the folder itself.
        progress: Told about the stage "plots".

    Returns:
        The page, the Markdown file and the folder of plots: ``"page"``, ``"markdown"``, ``"plots"``.

    Raises:
        ReportError: The folder is no experiment, or a package of the extra is missing.
        OutputError: The report cannot be written.
    """
    check_matplotlib()
    check_jinja()
    experiment = read_experiment(folder)
    target = experiment.folder if out is None else Path(out).expanduser()
    check_writable(target)
    pictures = _draw_all(experiment, watching(progress))
    with replaced_files(target) as draft:
        write_text(draft / "report.md", markdown_text(experiment, [picture.figure for picture in pictures]))
        write_text(draft / "report.html", page(experiment, pictures))
        _write_plots(target / PLOTS, pictures)
    _remove_other_plots(target / PLOTS, pictures)
    return {"page": target / "report.html", "markdown": target / "report.md", "plots": target / PLOTS}


def _draw_all(experiment: Experiment, progress: Progress) -> list[Picture]:
    figures = figures_of(experiment)
    progress.start("plots", len(figures))
    pictures = []
    try:
        for figure in figures:
            pictures.append(draw(figure))
            progress.advance()
    finally:
        progress.finish()
    return pictures


def _write_plots(folder: Path, pictures: list[Picture]) -> None:
    """The PNG files."""
    with replaced_files(folder) as draft:
        for picture in pictures:
            write_bytes(draft / f"{picture.figure.name}.png", picture.png)


def _remove_other_plots(folder: Path, pictures: list[Picture]) -> None:
    """Take away plots of an earlier report, which no page refers to any more.

    Raises:
        OutputError: The folder cannot be written.
    """
    names = {f"{picture.figure.name}.png" for picture in pictures}
    try:
        for old in folder.glob("*.png"):
            if old.name not in names:
                old.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {str(folder)!r}: {error}; choose a writable folder (--out)") from error
