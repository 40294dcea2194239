"""Advice on what to install: packages that an index has, of extras that there are."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

from emendo.io.extras import packages_of, pip_install

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
INSTALLED = set(importlib.metadata.metadata("emendo").get_all("Provides-Extra") or ()) & EXTRAS.keys()
_CALL = re.compile(r"pip_install\(([^)]*)\)")


def test_every_extra_that_code_names_is_there() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    named = {name for text in texts for call in _CALL.findall(text) for name in re.findall(r"'([a-z]+)'", call)}
    assert named >= {"demo", "gguf", "report", "ui", "data"}
    assert named <= EXTRAS.keys()
    # An index has no emendo: advice names what it has.
    assert not [text for text in texts if re.search(r"pip install '?emendo", text)]


@pytest.mark.parametrize("extra", sorted(INSTALLED))
def test_an_extra_is_the_packages_that_it_declares(extra: str) -> None:
    found = packages_of(extra)
    assert found
    assert all(re.match(r"[a-z]", package) and not package.startswith("emendo") for package in found)
    assert pip_install(extra) == f"pip install {' '.join(map(repr, found))}"


def test_nested_extras_and_several() -> None:
    assert {re.match(r"[\w-]+", one)[0] for one in packages_of("demo")} == {"gguf", "accelerate"}  # type: ignore[index]
    assert packages_of("nosuch") == []
    assert pip_install("nosuch") == "pip install 'emendo[nosuch]'"
