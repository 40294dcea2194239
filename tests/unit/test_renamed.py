"""Scripts for the version before still run: old module and class names lead to the new ones, and say so."""

from __future__ import annotations

import importlib

import pytest

import emendo
from emendo.io.renamed import MODULES


@pytest.mark.parametrize("old", sorted(MODULES))
def test_every_old_module_leads_to_modules_that_are_there(old: str) -> None:
    for home in MODULES[old]:
        importlib.import_module(home)
    with pytest.warns(DeprecationWarning, match="is now"):
        importlib.reload(importlib.import_module(old))


def test_old_names_are_the_new_ones() -> None:
    with pytest.warns(DeprecationWarning, match="emendo.editing.session"):
        importlib.reload(importlib.import_module("emendo.session"))
    assert importlib.import_module("emendo.session").EditSession is emendo.EditSession
    assert importlib.import_module("emendo.update").ModelUpdate is emendo.ModelUpdate
    assert (
        importlib.import_module("emendo.text").continuation is importlib.import_module("emendo.requests").continuation
    )
    assert emendo.ModelAdapter is emendo.EditableModel  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = importlib.import_module("emendo.plan").nothing
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("emendo.nowhere")
