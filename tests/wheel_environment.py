"""The built wheel in an environment of its own, as a stranger has it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def built_wheel(folder: Path) -> Path:
    """Build the checkout's wheel into a folder."""
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *build, str(ROOT)], check=True)
    (found,) = folder.glob("emendo-*.whl")
    return found


def wheel_environment(wheel: Path, environment: Path) -> tuple[Path, Path]:
    """A new environment with the wheel in it; the libraries that it needs are those of this one.

    Returns:
        Its interpreter and the folder of its packages; its `bin` has the command `emendo` too.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    site = next((environment / "lib").glob("python*/site-packages"))
    install = ["install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(wheel)], check=True)
    # The wheel comes first on the path. An editable install of this environment is a .pth file, not read there.
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    command = environment / "bin" / "emendo"
    command.write_text(f'#!/bin/sh\nexec {python} -m emendo "$@"\n')
    command.chmod(0o755)
    return python, site
