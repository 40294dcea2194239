"""Registries: names in any case, duplicates and unknown names told with both sides, plugins found and judged lazily."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from emendo.arguments.registry import Registry, Selection
from emendo.errors import MethodError, PluginError

GROUP = "emendo.test_things"


@dataclass(frozen=True)
class Thing:
    name: str
    size: int = 1


def things() -> Registry[Thing]:
    return Registry(
        "thing", [Thing("small"), Thing("large", 9)], of=Thing, group=GROUP, option="--thing", error=MethodError
    )


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, package: str, entries: dict[str, str], source: str
) -> None:
    """A package as pip leaves it: a module, and metadata with its entry points."""
    module = package.replace("-", "_")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "\n".join(f"{name} = {value}" for name, value in entries.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_names_are_taken_in_any_case_and_unknown_ones_told() -> None:
    registry = things()
    assert registry.named("SMALL") is registry["small"]
    assert registry.spelled("Large") == "large"
    assert list(registry) == ["small", "large"]
    with pytest.raises(KeyError):
        registry["SMALL"]
    with pytest.raises(MethodError, match=r"unknown thing 'smal'; did you mean 'small'\? Known: small, large \(--thin"):
        registry.named("smal")


def test_what_is_registered_is_there_until_it_is_taken_out() -> None:
    registry = things()
    big = Selection(registry, lambda thing: thing.size > 1)
    assert registry.register(Thing("huge", 99)) is registry["huge"]
    assert list(big) == ["large", "huge"]
    assert len(big) == 2
    with pytest.raises(KeyError):
        big["small"]
    assert registry.origin("huge") == "register_thing()"
    registry.unregister("huge")
    assert "huge" not in registry
    assert list(big) == ["large"]
    with pytest.raises(PluginError, match="'small' was not registered"):
        registry.unregister("small")


def test_a_duplicate_names_both_sides() -> None:
    registry = things()
    with pytest.raises(PluginError, match=r"thing 'SMALL' is there already, from Emendo; register_thing\(\) would"):
        registry.register(Thing("SMALL"))
    registry.register(Thing("mine"))
    with pytest.raises(PluginError, match=r"from register_thing\(\).*replace=True"):
        registry.register(Thing("mine", 2))
    registry.register(Thing("mine", 2), replace=True)
    assert registry["mine"].size == 2
    with pytest.raises(PluginError, match="there already, from Emendo"):
        registry.register(Thing("small", 2), replace=True)
    with pytest.raises(PluginError, match="gives a str as a thing; expected a Thing"):
        registry.register("mine")  # type: ignore[arg-type]


def test_a_package_brings_more_and_is_imported_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from tests.unit.test_registry import Thing\nTINY = Thing('tiny', 0)\n"
    install(tmp_path, monkeypatch, package="reg-tiny", entries={"tiny": "reg_tiny:TINY"}, source=source)
    registry = things()
    assert list(registry) == ["small", "large", "tiny"]
    assert registry["small"].size == 1
    assert "reg_tiny" not in sys.modules
    assert registry.origin("tiny") == "package 'reg-tiny'"
    assert registry.named("Tiny").size == 0
    assert len(registry) == 3
    with pytest.raises(PluginError, match="there already, from package 'reg-tiny'"):
        registry.register(Thing("tiny"))


@pytest.mark.parametrize(
    ("package", "source", "words"),
    [
        (
            "reg-broken",
            "import nowhere_at_all\n",
            r"package 'reg-broken' cannot be loaded.*ModuleNotFoundError",
        ),
        ("reg-raises", "THING = 1 / 0\n", r"package 'reg-raises' cannot be loaded.*ZeroDivisionError"),
        ("reg-empty", "", r"package 'reg-empty' cannot be loaded.*AttributeError"),
        ("reg-typed", "THING = 'a text'\n", r"package 'reg-typed' \(reg_typed:THING\) gives a str.*expected a Thing"),
        (
            "reg-named",
            "from tests.unit.test_registry import Thing\nTHING = Thing('other')\n",
            r"package 'reg-named'.*calls its thing 'other', and its entry point.*'odd'; expected one name",
        ),
    ],
)
def test_a_broken_package_is_one_error_that_names_it(
    package: str, source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {"odd": f"{package.replace('-', '_')}:THING"}
    install(tmp_path, monkeypatch, package=package, entries=entries, source=source)
    registry = things()
    assert registry.named("small").size == 1, "what is Emendo's own does not need the package"
    with pytest.raises(PluginError, match=words):
        registry.named("odd")


def test_two_packages_of_one_name_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("reg-one", "reg-two"):
        entries = {"same": f"{package.replace('-', '_')}:THING"}
        install(tmp_path / package, monkeypatch, package=package, entries=entries, source="")
    with pytest.raises(PluginError, match=r"'same' is given twice: by package 'reg-(one|two)' and by package 'reg-"):
        things().named("small")


def test_a_package_cannot_take_the_place_of_what_is_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, package="reg-thief", entries={"small": "reg_thief:THING"}, source="")
    with pytest.raises(PluginError, match=r"'small' is given twice: by Emendo and by package 'reg-thief'"):
        things().named("small")
