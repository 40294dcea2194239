"""What an extra of Emendo brings, as a command that works wherever Emendo was installed from."""

from __future__ import annotations

import importlib.metadata
import re

_REQUIREMENT = re.compile(r"""^(?P<package>[^;]+?)\s*;.*\bextra\s*==\s*["'](?P<extra>[\w-]+)["']""")
_OWN = re.compile(r"^emendo\[([\w,-]+)\]$")


def packages_of(extra: str) -> list[str]:
    """The packages of an extra with their versions, as the installed Emendo declares them; those of nested ones too."""
    try:
        declared = importlib.metadata.requires("emendo") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path
        return []
    found: list[str] = []
    for line in declared:
        match = _REQUIREMENT.match(line)
        if match is None or match["extra"] != extra:
            continue
        own = _OWN.match(match["package"])
        found += [one for name in own[1].split(",") for one in packages_of(name)] if own else [match["package"]]
    return found


def pip_install(*extras: str) -> str:
    """The command that installs extras: by their packages, because Emendo itself may be on no index.

    Args:
        extras: Names in ``[project.optional-dependencies]``.
    """
    packages = [package for extra in extras for package in packages_of(extra)]
    return f"pip install {' '.join(map(repr, packages or [_by_name(extras)]))}"


def _by_name(extras: tuple[str, ...]) -> str:
    return f"emendo[{','.join(extras)}]"
