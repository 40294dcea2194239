"""`emendo methods`: the composition table from the configurations, and one method or baseline in full."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from emendo.methods import BASELINES, CATALOGUE, METHODS, MethodConfig, method_named, register_method
from emendo.methods.settings import PostStep
from emendo.methods.table import Composition, by_axis, compose, plain_settings, single
from tests.every import every
from tests.tiny.conftest import Command

pytestmark = pytest.mark.usefixtures("home")

QUICK = ["--set", "target.steps=2", "--set", "contexts.scheme=fixed", "--set", "moments.multiple=4"]
FACT = ["--prompt", "{} is located in the city of", "--subject", "The Eiffel Tower", "--target", "Rome"]


def rebuilt(table: Composition, name: str) -> dict[str, dict[str, Any]]:
    """The settings of a method as the table tells them: the plain default, and what differs."""
    plain = by_axis(plain_settings())
    return {axis: {**values, **table.methods[name].get(axis, {})} for axis, values in plain.items()}


@every("name", METHODS)
def test_the_table_loses_nothing(name: str) -> None:
    table = compose(METHODS)
    assert rebuilt(table, name) == by_axis(METHODS[name].settings())
    plain = by_axis(plain_settings())
    for axis, values in table.methods[name].items():
        for setting, value in values.items():
            assert single(axis, plain[axis]) or value != plain[axis][setting]
            assert setting in table.plain[axis]
    assert set(table.plain) | set(table.alike) == set(plain)
    assert not set(table.plain) & set(table.alike)


@dataclass(frozen=True)
class Mood:
    colour: str = "grey"


@dataclass(frozen=True)
class MoodyConfig(MethodConfig):
    mood: Mood = field(default_factory=Mood)


def test_a_new_axis_shows_up_by_being_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emendo.methods.table.MethodConfig", MoodyConfig)
    calm, merry = MoodyConfig("calm", "a test"), MoodyConfig("merry", "a test", mood=Mood("red"))
    assert compose({"calm": calm}).alike["mood"] == {"colour": "grey"}
    table = compose({"calm": calm, "merry": merry})
    assert table.plain["mood"] == {"colour": "grey"}
    assert (table.methods["calm"]["mood"], table.methods["merry"]["mood"]) == ({}, {"colour": "red"})


def test_a_new_method_is_one_entry(emendo: Command, model: str, request: pytest.FixtureRequest) -> None:
    own = replace(METHODS["memit"], name="memit-cap", source="a test", post=PostStep(kind="cap", max_ratio=0.01))
    register_method(own)
    request.addfinalizer(lambda: CATALOGUE.unregister(own.name))
    document = json.loads(emendo("methods", "--json")[1])
    assert document["methods"]["memit-cap"]["axes"]["post"] == {"kind": "cap", "max_ratio": 0.01}
    assert "kind=cap" in emendo("methods")[1]
    code, text, _ = emendo("methods", "memit-cap")
    assert code == 0
    assert "a test" in text
    arguments = ["edit", "--model", model, *FACT, "--method", "memit-cap", *QUICK, "--json"]
    code, text, err = emendo(*arguments)
    assert code == 0, err
    assert max(layer["relative_norm"] for layer in json.loads(text)["layers"]) <= 0.01 * (1 + 1e-6)


def test_the_table_of_methods(emendo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text, err = emendo("methods", "--json")
    assert (code, err) == (0, "")
    document = json.loads(text)
    assert document["methods"].keys() == METHODS.keys()
    assert document["baselines"].keys() == BASELINES.keys()
    assert document["methods"]["rome"]["axes"]["keys"] == {"average": "flat", "constraint": "plain"}
    for width in (80, 300):
        monkeypatch.setenv("COLUMNS", str(width))
        code, text, err = emendo("methods")
        assert (code, err) == (0, "")
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        heads = [line for line in lines if line.startswith("┃ method")]
        assert (len(heads) == 1) == (width == 300), "as many parts as there is need for"
        columns = [cell.strip() for line in heads for cell in line.strip("┃").split("┃")]
        assert [name for name in columns if name != "method"] == list(document["plain"])
        assert sum(line.startswith("│ emmet-published") for line in lines) == len(heads)
        for whole in ("null_space=absolute", "joint_attention=true", "fine_tune.max_change=none"):
            assert whole in text, "no cell is folded"


@every("name", [*METHODS, *BASELINES])
def test_one_in_full(name: str, emendo: Command) -> None:
    code, text, err = emendo("methods", name, "--json")
    assert (code, err) == (0, "")
    document = json.loads(text)
    config = method_named(name)
    assert document["source"] == config.source
    assert document["deviations"] == list(config.deviations)
    settings = json.loads(json.dumps(config.settings()))
    assert document["settings"] == {setting: value for setting, value in settings.items() if setting != "layers"}
    assert document["kind"] == ("baseline" if name in BASELINES else "method")
    code, text, err = emendo("methods", name, "--all")
    assert (code, err) == (0, "")
    for setting in document["settings"]:
        assert setting in text
    words = " ".join(text.split())
    for deviation in config.deviations:
        assert " ".join(deviation.split()) in words


def test_presets_are_shown_with_their_source(emendo: Command) -> None:
    presets = json.loads(emendo("methods", "memit", "--json")[1])["presets"]
    assert presets["GPT2-XL"]["layers"] == [13, 14, 15, 16, 17]
    assert presets["GPT2-XL"]["settings"]["preservation.weight"] == 20000
    text = emendo("methods", "memit")[1]
    for words in ("GPT2-XL", "13-17", "preservation.weight=20000", "MEMIT public code"):
        assert words in text
    assert presets["GPT2-XL"]["shape"] == "gpt2, 48 layers of 1600"
    assert "gpt2, 48 layers of 1600" in text
    presets = json.loads(emendo("methods", "ft-l", "--json")[1])["presets"]
    assert presets["GPT-J-6B"]["settings"] == {"fine_tune.max_change": 5e-5}
    assert json.loads(emendo("methods", "lora", "--json")[1])["presets"] == {}


def test_an_unknown_name_to_show(emendo: Command) -> None:
    code, out, err = emendo("methods", "pmett")
    assert (code, out) == (2, "")
    assert "did you mean 'pmet'" in err
