"""Models of a world: every family trains by the one recipe, with the same bits each time, and is found by its name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emendo.cli.app import run
from emendo.errors import ModelNotFoundError
from emendo.models import load
from emendo.models.outline import outline
from emendo.models.worlds import recipe as recipes
from emendo.models.worlds import store
from emendo.models.worlds.families import FAMILIES
from emendo.models.worlds.recipe import Recipe, train
from emendo.worlds import World, make_world

SHORT = Recipe(most=1, cool_down=1, warm_up=2)


@pytest.fixture(scope="module")
def small() -> World:
    return make_world(sizes={"person": 10, "city": 4, "work": 4, "company": 2})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: World) -> Path:
    """Whoever asks for a model of the world gets one that was trained for two passes."""
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path))
    monkeypatch.setattr(store, "make_world", lambda: small)
    monkeypatch.setattr(store, "Recipe", lambda: SHORT)
    return tmp_path


QUICK = ("gpt2", "mixtral")
"""A dense family and one of experts; the others are slow, and Llama is trained by the tests below."""


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_learns(family: str, small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    one_pass = recipes._one_pass
    monkeypatch.setattr(recipes, "_one_pass", lambda *args: losses.append(one_pass(*args)) or losses[-1])
    model, _, training = train(family, small, replace(SHORT, most=2))
    assert model.config.model_type == family
    assert losses[-1] < losses[0] - 0.5
    assert training.passes == len(losses) == 3
    assert training.parameters < 3_000_000


def test_a_training_gives_the_same_bits_whatever_stood_before(small: World) -> None:
    first = train("llama", small, SHORT)[0].state_dict()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        second = train("llama", small, SHORT)[0].state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_rate_falls_when_enough_is_known() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
    schedule = recipes._Schedule(Recipe(learning_rate=1.0, warm_up=2, enough=0.5, cool_down=2, most=9), optimizer)
    rates = []
    for known in (0.1, 0.6, 0.2, 0.2):
        for through in (0.0, 0.5):
            schedule.step(through)
            rates.append(optimizer.param_groups[0]["lr"])
        schedule.passed(known)
    assert schedule.done
    assert rates == [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_a_model_is_trained_once_and_found_by_its_name(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load("world:llama")
    assert lm.name == "world:llama"
    assert outline("world:llama").weight(0).shape == lm.weight(0).shape
    monkeypatch.setattr(store, "train", lambda *_: pytest.fail("it is trained again"))
    assert load("World:LLAMA").weights_digest() == lm.weights_digest()
    (folder,) = (quick / "models").iterdir()
    assert folder.name.startswith("world-llama-")


def test_a_damaged_model_is_trained_again(quick: Path) -> None:
    digest = load("world:llama").weights_digest()
    (folder,) = (quick / "models").iterdir()
    (folder / "model.safetensors").write_bytes(b"")
    assert load("world:llama").weights_digest() == digest


def test_an_unknown_family_is_told_the_known_ones() -> None:
    with pytest.raises(ModelNotFoundError, match=r"unknown family .*'lama'; did you mean 'llama'.*--model world:NAME"):
        load("world:lama")


def test_the_command_lists_and_trains(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["worlds", "list", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["worlds"].values()) == {None}
    assert run(["worlds", "train", "gpt2", "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)["worlds"]["gpt2"]
    assert trained["training"]["passes"] == 2
    assert run(["worlds", "list"]) == 0
    assert "world:gpt2" in capsys.readouterr().out
    assert run(["worlds", "train", "gpt3"]) == 2
