"""Every `emendo` command of a page is one that there is, with options that it has."""

from __future__ import annotations

from typing import Any

import pytest

from emendo.cli.app import _command
from tests.every import every
from tests.page_commands import Block, blocks, pages

BLOCKS = [block for page in pages() for block in blocks(page)]


def parse(arguments: list[str]) -> None:
    """Read a command line as the command would, without doing anything."""
    command: Any = _command()
    context = command.make_context("emendo", arguments)
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


def test_pages_have_commands() -> None:
    assert len(BLOCKS) > 60
    assert sum(len(list(block.emendo())) for block in BLOCKS) > 90
    assert {block.page for block in BLOCKS} >= {"README.md", "docs/start/quickstart.md", "docs/guides/ledger.md"}


def test_the_first_pages_run_whole() -> None:
    """What a stranger meets first has nothing that is left out but the installation."""
    first = [block for block in BLOCKS if block.page.startswith(("README", "docs/index", "docs/start"))]
    assert {block.reason for block in first} <= {None, "an installation or a check of the checkout"}
    assert sum(block.reason is None for block in first) >= 8


@every("block", BLOCKS, ids=lambda block: block.page)
def test_every_command_can_be_read(block: Block) -> None:
    for arguments in block.emendo():
        if not (block.reason or "").startswith("a synopsis") and arguments != ["--version"]:
            parse(arguments)


def test_what_is_misspelt_is_found() -> None:
    parse(["edit", "--model", "demo", "--plan-only"])
    for wrong in (["edit", "--modle", "demo"], ["edti"], ["ledger", "int"]):
        with pytest.raises(Exception, match="No such"):
            parse(wrong)
