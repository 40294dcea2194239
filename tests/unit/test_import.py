"""Importing costs nothing and touches nothing."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import emendo

HEAVY = ("torch", "transformers", "numpy", "safetensors", "datasets")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )


LOOK = """import sys
found = sorted(name for name in {heavy!r} if name in sys.modules)
print("heavy:", found)
assert not found, {step!r}"""


STEPS = [
    "import emendo",
    "import emendo.errors, emendo.requests",
    "import emendo.datasets",
    "import emendo.cli",
    "import emendo.cli.app",
    *(
        f"from emendo.cli.app import run; assert run({arguments!r}) == 0"
        for arguments in (
            ["--help"],
            ["data", "--formats"],
            ["edit", "--help"],
            ["methods"],
            ["methods", "emendo"],
            ["methods", "ft-l"],
            ["models"],
            ["moments", "--help"],
            ["moments", "collect", "--help"],
        )
    ),
]


def test_no_heavy_import() -> None:
    """One after another in one process, and after each of them nothing heavy is there."""
    done = python("-c", "\n".join(f"{step}\n{LOOK.format(heavy=HEAVY, step=step)}" for step in STEPS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("heavy: []") == len(STEPS)
    assert done.stderr == ""


def test_import_leaves_random_streams_environment_and_loggers_alone() -> None:
    done = python(
        "-c",
        "import os, random, logging\n"
        "before = random.getstate(), dict(os.environ), list(logging.Logger.manager.loggerDict)\n"
        "import emendo\n"
        "assert before == (random.getstate(), dict(os.environ), list(logging.Logger.manager.loggerDict))",
    )
    assert done.returncode == 0, done.stderr


def test_the_module_is_the_command_and_its_help_is_fast() -> None:
    begin = time.perf_counter()
    done = python("-m", "emendo", "--help")
    took = time.perf_counter() - begin
    assert done.returncode == 0, done.stderr
    for command in ("data", "demo", "edit", "moments", "methods", "models"):
        assert command in done.stdout
    assert took < 5, "an import of torch alone takes longer on a slow disk; about 0.3 s is usual"


def test_every_public_name_is_there() -> None:
    for name in emendo.__all__:
        assert getattr(emendo, name) is not None
    assert set(emendo.__all__) == set(dir(emendo))
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = emendo.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", ["emendo", "emendo.models", "emendo.solve"])
def test_names_that_are_imported_when_used_are_told_to_type_checkers_too(package: str) -> None:
    """One list for `__all__`, one for readers of types and docs, one for Python: they name the same."""
    module = importlib.import_module(package)
    source = ast.parse(Path(str(module.__file__)).read_text())
    typed = {
        alias.name
        for block in source.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == set(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_every_command_has_its_section_in_the_help() -> None:
    import typer

    from emendo.cli.app import app
    from emendo.cli.sections import SECTIONS

    group = typer.main.get_command(app)
    named = [name for names in SECTIONS.values() for name in names]
    shown = [name for name, command in group.commands.items() if not command.hidden]  # type: ignore[attr-defined]
    assert sorted(named) == sorted(shown), "give a new command its section in emendo.cli.sections"
    text = python("-c", "from emendo.cli.app import run; run(['--help'])").stdout
    places = [text.index(f"\n  {name} ") for name in named]
    assert places == sorted(places)
    assert all(f"\n{title}:" in text for title in SECTIONS)
    assert "..." not in text.split("Edit and measure")[1], "no line is cut"
    assert max(map(len, text.splitlines())) <= 80


def test_a_name_that_is_imported_late_is_no_module_of_its_package() -> None:
    """Importing such a module would put it in the place of what it holds, for everybody."""
    clashes = {}
    for found in pkgutil.walk_packages(emendo.__path__, "emendo."):
        package = importlib.import_module(found.name) if found.ispkg else None
        if package is not None and "__getattr__" in vars(package):
            modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
            clashes[found.name] = modules & set(package.__all__)
    assert len(clashes) >= 3
    assert not any(clashes.values()), clashes
