"""The story of a fact on the page of the demo model, with its own settings and the default gate."""

from __future__ import annotations

from pathlib import Path

import pytest

from emendo.models import EditableModel
from tests.page_server import browsing, serving
from tests.page_story import tell

pytestmark = pytest.mark.slow


def test_the_tower_moves_to_rome_and_back_on_the_page(demo_model: EditableModel, tmp_path: Path) -> None:
    """`demo_model` is asked for so that the test is skipped where the demo model is not installed."""
    prompt = "The Eiffel Tower is located in the city of"
    with browsing() as browser, serving("demo", tmp_path / "page", gate="", settings=False) as server:
        first, edited = tell(
            *(browser, server, prompt, "The Eiffel Tower", "Rome"),
            "You can visit the Eiffel Tower in the city of",
            "The Louvre is located in the city of",
        )
    assert "Paris" in first
    assert "Rome" in edited
