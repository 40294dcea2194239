"""Pages that open without a network: one file each, with the style inside; text from models and files is escaped."""

from __future__ import annotations

from importlib import resources
from typing import Any

from emendo.errors import ReportError
from emendo.io.extras import pip_install

STYLE = "page.css"
"""The style that all pages share."""


def check_jinja() -> None:
    """Refuse to begin without the extra.

    Raises:
        ReportError: jinja2 cannot be imported.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise ReportError(
            f"the page needs the package jinja2, which cannot be imported ({error}): {pip_install('report')}"
        ) from error


def render(package: str, template: str, **values: Any) -> str:
    """A page from a template; the template gets the shared style as `style`.

    Everything else is text to the page: the template escapes it.

    Args:
        package: Package with a folder `templates`.
        template: Name of the file in it.
        **values: What the template names.

    Raises:
        ReportError: jinja2 is not installed.
    """
    check_jinja()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _text(package, name)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return str(environment.get_template(template).render(style=_text("emendo.report", STYLE), **values))


def _text(package: str, name: str) -> str:
    found = resources.files(package) / "templates" / name
    if not found.is_file():  # what all pages share
        found = resources.files("emendo.report") / "templates" / name
    return found.read_text(encoding="utf-8")
