"""docs/reference/data.md against the code: the table of formats, the fields of a record and the kinds of probes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from emendo.datasets.formats import markdown_table
from emendo.requests import FIELDS, PROBE_KINDS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "data.md"


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_table_of_formats_is_that_of_the_code(page: str) -> None:
    table = page.split("<!-- formats -->\n")[1].split("\n<!-- /formats -->")[0]
    assert table == markdown_table(), (
        "replace it with: python -c 'from emendo.datasets.formats import markdown_table; print(markdown_table())'"
    )


def rows_under(page: str, heading: str) -> list[str]:
    """First cells of the table under a heading, in backticks."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)


def test_every_field_of_own_rows_is_described(page: str) -> None:
    assert rows_under(page, "Your own facts") == list(FIELDS)


def test_every_kind_of_probe_is_described(page: str) -> None:
    assert rows_under(page, "Probes") == list(PROBE_KINDS)
    for meaning in PROBE_KINDS.values():
        assert meaning in page
