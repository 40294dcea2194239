"""The packages that pages and pictures need, asked for before anything is computed."""

from __future__ import annotations

from emendo.errors import ReportError
from emendo.io.extras import pip_install
from emendo.report.html import check_jinja


def check_packages(*, pictures: bool = True) -> None:
    """Refuse to begin without the packages that draw.

    Args:
        pictures: Whether PNG files will be drawn; importing matplotlib takes half a second.

    Raises:
        ReportError: A package of the extra `report` is missing.
    """
    if pictures:
        check_matplotlib()
    check_jinja()


def check_matplotlib() -> None:
    """Refuse to begin without the extra.

    Raises:
        ReportError: matplotlib cannot be imported.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ReportError(
            f"plots need the package matplotlib, which cannot be imported ({error}): {pip_install('report')}"
        ) from error
