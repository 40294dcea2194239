"""Pushes to a stand-in of each server: the order of requests, the names, and every failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from emendo.errors import EmendoError, InputError, ProbeError, ServerError
from emendo.export import write_adapter, write_gguf_adapter
from emendo.models import EditableModel
from emendo.serving import ServerClient, make_probes, push, pushing, served_name, withdraw
from emendo.serving.client import Call
from emendo.serving.pushing import go_back
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.random_updates import random_update
from tests.serving_stand_in import FAULTS, StandIn, edited_weights, kind_of, stand_in
from tests.tiny.conftest import Command

FACTS = [{"prompt": "{} is in", "subject": f"Tower {n}", "target": "Rome and Milan"} for n in range(2)]
BY_NAME = ("vllm", "sglang")


@pytest.fixture(scope="module")
def lm() -> EditableModel:
    return build_tiny("llama")


@pytest.fixture(scope="module")
def updates(lm: EditableModel) -> list[ModelUpdate]:
    first = random_update(lm, {1: 3, 2: 1}, seed=1, requests=FACTS)
    return [first, random_update(lm, {2: 2}, [first], seed=2)]


@dataclass
class Served:
    """A stand-in with two edits at hand, and what a push to it needs."""

    world: StandIn
    lm: EditableModel
    updates: list[ModelUpdate]
    out: Path
    canaries: str
    names: tuple[str, str]

    def push(self, count: int, alias: str | None = "facts", **options: Any) -> Any:
        self.world.calls.clear()
        named = alias if self.world.engine in BY_NAME else None
        settings = {"out": self.out, "alias": named, "probes": [self.canaries], "timeout": 20.0, **options}
        return push(self.lm, self.updates[:count], self.world.address, self.world.engine, **settings)

    def alias(self) -> str | None:
        try:
            return served_name(self.out, "facts")
        except InputError:
            return None

    def clients_get(self) -> str | None:
        """What clients get: through the alias, or by the scales."""
        if self.world.engine in BY_NAME:
            return self.alias()
        active = [name for name, scale in self.world.scales.items() if scale and name != "their-own"]
        return active[0] if active else None


@contextmanager
def serving(
    engine: str, lm: EditableModel, updates: list[ModelUpdate], folder: Path, computed: dict[Any, Any]
) -> Iterator[Served]:
    """A stand-in; what it and Emendo compute is computed once for all tests."""
    with stand_in(engine, lm) as world, pytest.MonkeyPatch.context() as patch:
        world.known = computed.setdefault("answers", {})
        known = computed.setdefault("probes", {})

        def probes_once(lm: EditableModel, updates: list[ModelUpdate], files: list[str]) -> Any:
            key = (id(lm), len(updates))
            return known.setdefault(key, known.get(key) or make_probes(lm, updates, files))

        patch.setattr(pushing, "make_probes", probes_once)
        (folder / "canaries.jsonl").write_text('{"prompt": "The largest ocean is"}\n{"prompt": "2 + 2 ="}\n')
        files = []
        for count in (1, 2):
            write = write_gguf_adapter if engine == "llamacpp" else write_adapter
            files.append(write(lm, updates[:count], folder / "out"))
            world.weights[files[-1].name] = edited_weights(lm, updates[:count])
        if engine == "llamacpp":
            world.adapters = {"their-own": "/models/their-own.gguf", **{one.name: str(one.path) for one in files}}
            world.scales = {"their-own": 0.5}
        names = (files[0].name, files[1].name)
        yield Served(world, lm, updates, folder / "out", str(folder / "canaries.jsonl"), names)


@pytest.fixture(scope="module")
def computed() -> dict[Any, Any]:
    return {}


@pytest.fixture(params=[*BY_NAME, "llamacpp"])
def served(
    request: pytest.FixtureRequest,
    lm: EditableModel,
    updates: list[ModelUpdate],
    tmp_path: Path,
    computed: dict[Any, Any],
) -> Iterator[Served]:
    with serving(request.param, lm, updates, tmp_path, computed) as found:
        yield found


@pytest.fixture(params=BY_NAME)
def by_name(
    request: pytest.FixtureRequest,
    lm: EditableModel,
    updates: list[ModelUpdate],
    tmp_path: Path,
    computed: dict[Any, Any],
) -> Iterator[Served]:
    """Of a server that knows adapters by name."""
    with serving(request.param, lm, updates, tmp_path, computed) as found:
        yield found


@pytest.fixture
def by_scale(
    lm: EditableModel, updates: list[ModelUpdate], tmp_path: Path, computed: dict[Any, Any]
) -> Iterator[Served]:
    """Of the server that has scales."""
    with serving("llamacpp", lm, updates, tmp_path, computed) as found:
        yield found


# ---- the order -------------------------------------------------------------------------------------------------


def test_a_push_loads_asks_switches_and_forgets_the_old_one(by_name: Served) -> None:
    first, second = by_name.names
    done = by_name.push(1)
    assert by_name.world.kinds() == ["look", "ask base", f"load {first}", "ask adapter"]
    assert (done.model, done.before, by_name.alias()) == (first, "base", first)
    assert max(one.difference for one in (*done.base, *done.edited)) < 1e-4
    assert [one.kind for one in done.edited] == ["fact", "fact", "canary", "canary"]
    done = by_name.push(2)
    assert by_name.world.kinds() == ["look", "ask base", f"load {second}", "ask adapter", f"unload {first}"]
    assert (done.before, by_name.alias(), list(by_name.world.adapters)) == (first, second, [second])

    done.rollback()
    assert (by_name.alias(), list(by_name.world.adapters)) == (first, [first])
    assert by_name.world.kinds()[-3:] == ["look", f"load {first}", f"unload {second}"]

    by_name.world.calls.clear()
    world = by_name.world
    assert withdraw(world.address, world.engine, out=by_name.out, alias="facts") == first
    assert world.kinds() == ["look", f"unload {first}"]
    assert (by_name.alias(), world.adapters) == ("base", {})
    assert go_back(world.address, world.engine, out=by_name.out, alias="facts") == first
    assert (by_name.alias(), list(world.adapters)) == (first, [first])


def test_scales_are_switched_by_one_request_and_those_of_others_stay(by_scale: Served) -> None:
    first, second = by_scale.names
    world = by_scale.world
    done = by_scale.push(1)
    checked = ["as a client", "slots", "clear", "as a client"]
    asked = ["ask base", "slots", "clear", "ask adapter", "slots", "clear"]
    assert world.kinds() == ["look", *checked, *asked, "switch", "look", "slots", "clear"]
    assert {body["id_slot"] for _, path, body in world.calls if kind_of(path, body) == "clear"} == {0, 1}
    assert world.scales == {"their-own": 0.5, first: 1.0, second: 0.0}
    assert by_scale.push(2).before == f"their-own, {first}"
    assert world.scales == {"their-own": 0.5, first: 0.0, second: 1.0}
    done.rollback()
    assert world.scales == {"their-own": 0.5, first: 0.0, second: 0.0}
    by_scale.push(2)
    world.calls.clear()
    assert withdraw(world.address, "llamacpp") == second
    assert world.kinds() == ["look", "switch", "look", "slots", "clear", *checked]
    assert world.scales == {"their-own": 0.5, first: 0.0, second: 0.0}


def test_the_same_push_again_loads_nothing(by_name: Served) -> None:
    by_name.push(1)
    done = by_name.push(1)
    assert by_name.world.kinds() == ["look", "ask base", "ask adapter"]
    assert (done.model, by_name.alias()) == (by_name.names[0], by_name.names[0])


def test_without_an_alias_nothing_is_forgotten(by_name: Served) -> None:
    by_name.push(1, alias=None)
    by_name.push(2, alias=None)
    assert list(by_name.world.adapters) == list(by_name.names)
    assert not (by_name.out / "aliases.json").exists()
    world = by_name.world
    assert withdraw(world.address, world.engine, adapter=by_name.names[0]) == by_name.names[0]
    assert list(world.adapters) == [by_name.names[1]]


def test_an_adapter_of_two_aliases_is_kept_for_the_other(by_name: Served) -> None:
    by_name.push(1)
    by_name.push(1, alias="other")
    by_name.push(2)
    assert set(by_name.world.adapters) == set(by_name.names)
    assert served_name(by_name.out, "other") == by_name.names[0]
    by_name.push(2, alias="other", keep_old=True)
    assert set(by_name.world.adapters) == set(by_name.names)


def test_the_server_may_see_the_folder_elsewhere(by_name: Served, tmp_path: Path) -> None:
    (tmp_path / "mounted").symlink_to(by_name.out)
    by_name.push(1, server_folder=str(tmp_path / "mounted"))
    assert by_name.world.adapters == {by_name.names[0]: str(tmp_path / "mounted" / by_name.names[0])}


def test_a_dry_run_sends_nothing_but_get(served: Served) -> None:
    served.push(1)
    before = (served.clients_get(), dict(served.world.adapters), dict(served.world.scales))
    told: list[str] = []
    done = served.push(2, dry_run=True, told=told.append)
    assert {method for method, _, _ in served.world.calls} == {"GET"}
    assert (served.clients_get(), served.world.adapters, served.world.scales) == before
    calls = [line.split(maxsplit=2) for line in told if line.startswith(("GET", "POST"))]
    words = [kind_of(path, json.loads(body[0]) if body else None) for _, path, *body in calls]
    assert done.dry
    if served.world.engine in BY_NAME:
        first, second = served.names
        assert f"alias facts: {first} → {second}" in told
        assert words == ["look", *["ask base"] * 2, f"load {second}", *["ask adapter"] * 4, f"unload {first}"]
    else:
        assert words[0] == "look"
        assert [word for word in words if word in ("switch", "clear")][-3:] == ["switch", "clear", "clear"]
    with pytest.raises(InputError, match="nothing to take back"):
        done.rollback()


# ---- failures --------------------------------------------------------------------------------------------------


FAILURES = [
    *(("vllm", step, "error") for step in ("look", "ask base", "load", "ask adapter")),
    *(("sglang", step, "error") for step in ("look", "ask base", "load", "ask adapter")),
    *(("llamacpp", step, "error") for step in ("look", "as a client", "slots", "clear", "ask base", "ask adapter")),
    ("llamacpp", "switch", "error"),
    *((engine, "ask adapter", fault) for engine in (*BY_NAME, "llamacpp") for fault in FAULTS[1:]),
    *(("llamacpp", "switch", fault) for fault in ("drop", "slow")),
    *(("vllm", "load", fault) for fault in ("drop", "slow")),
]


@pytest.mark.parametrize(("served", "step", "fault"), FAILURES, indirect=["served"])
def test_whatever_fails_the_old_edit_stays_served(served: Served, step: str, fault: str) -> None:
    served.push(1)
    before = (served.clients_get(), dict(served.world.adapters), dict(served.world.scales))
    broken = []

    def fails_once(path: str, body: Any) -> str | None:
        if broken or not kind_of(path, body).startswith(step):
            return None
        broken.append(path)
        return fault

    served.world.fault = fails_once
    with pytest.raises(ServerError) as found:
        served.push(2, timeout=0.4 if fault == "slow" else 20.0)
    assert broken
    assert (served.clients_get(), served.world.adapters, served.world.scales) == before, str(found.value)
    served.world.fault = lambda path, body: None
    served.push(2)
    assert served.clients_get() == served.names[1], "and the next push goes through"


def test_wrong_answers_leave_the_old_edit_served(served: Served) -> None:
    served.push(1)
    before = (served.clients_get(), dict(served.world.adapters), dict(served.world.scales))
    served.world.offset = -1.5
    with pytest.raises(ProbeError, match=r"with the adapter emendo-\w+ 4 of 4 probes differ by more than 0.05 nats"):
        served.push(2)
    assert (served.clients_get(), served.world.adapters, served.world.scales) == before
    served.push(2, tolerance=2.0)
    assert served.clients_get() == served.names[1]


def test_a_server_of_another_model_is_told_before_anything_is_loaded(served: Served) -> None:
    served.world.lm, served.world.known = build_tiny("llama", seed=1), {}
    with pytest.raises(ProbeError, match="with the unedited model 2 of 2"):
        served.push(1)
    assert {kind.split()[0] for kind in served.world.kinds()}.isdisjoint({"load", "switch"})


def test_an_old_adapter_that_cannot_be_forgotten_is_told_and_does_no_harm(by_name: Served) -> None:
    by_name.push(1)
    by_name.world.fault = lambda path, body: "error" if "unload" in path else None
    done = by_name.push(2)
    assert "out of memory" in (done.left or "")
    assert by_name.alias() == by_name.names[1]
    by_name.world.fault = lambda path, body: None


def test_a_server_that_ignores_the_switch_is_told(by_scale: Served) -> None:
    real = by_scale.world.scales

    class Stuck(dict[str, float]):
        def update(self, *_: Any, **__: Any) -> None:
            """Nothing is set."""

    by_scale.world.scales = Stuck(real)
    with pytest.raises(ServerError, match=r"was told the scales .* The scales of before were put back"):
        by_scale.push(1)


def test_llama_cpp_without_the_adapter_says_how_to_start_it(by_scale: Served) -> None:
    by_scale.world.adapters = {"their-own": "/models/their-own.gguf"}
    with pytest.raises(InputError, match=r"Start one beside it .*--lora-scaled .*emendo-\w+\.gguf:0"):
        by_scale.push(1)
    assert by_scale.world.kinds() == ["look"]


def test_llama_cpp_that_keeps_old_answers_in_memory_is_refused(by_scale: Served) -> None:
    by_scale.push(1)
    by_scale.world.remembered = 8
    with pytest.raises(ServerError, match=r"Start it with --cache-ram 0\. Clients get what they got before"):
        by_scale.push(2)
    assert by_scale.clients_get() == by_scale.names[0]
    with pytest.raises(ServerError, match=r"has the scales, but this server keeps prompts in memory"):
        withdraw(by_scale.world.address, "llamacpp")
    assert by_scale.clients_get() is None


def test_a_server_without_the_endpoint_says_how_to_start_it(by_name: Served) -> None:
    with pytest.raises(ServerError, match=r"--enable-lora .* that can read"):
        by_name.push(1, server_folder="/nowhere")
    assert by_name.alias() is None


def test_refusals(served: Served) -> None:
    world = served.world
    cases: list[tuple[dict[str, Any], str]] = [
        ({"server": "ftp://host"}, "no address of a server"),
        ({"server": "http://me:secret@127.0.0.1"}, "EMENDO_SERVER_KEY"),
        ({"engine": "ollama"}, "expected one of llamacpp, vllm, sglang"),
        ({"server": "http://127.0.0.1:9"}, "no answer of"),
    ]
    for change, words in cases:
        given = {"server": world.address, "engine": world.engine, **change}
        with pytest.raises(EmendoError, match=words):
            push(served.lm, served.updates, given["server"], given["engine"], out=served.out, timeout=5.0)
    with pytest.raises(EmendoError, match="has no adapter 'emendo-none'"):
        withdraw(world.address, world.engine, adapter="emendo-none")
    if world.engine not in BY_NAME:
        with pytest.raises(InputError, match="Leave out --alias"):
            withdraw(world.address, world.engine, alias="facts")
        with pytest.raises(InputError, match="push the update of before again"):
            go_back(world.address, world.engine, out=served.out, alias=None)
        return
    with pytest.raises(InputError, match=r"--alias.*--adapter"):
        withdraw(world.address, world.engine)
    with pytest.raises(InputError, match="no alias 'facts'"):
        withdraw(world.address, world.engine, out=served.out, alias="facts")
    with pytest.raises(InputError, match="stood for nothing before"):
        go_back(world.address, world.engine, out=served.out, alias="facts")
    served.push(1)
    other = "sglang" if world.engine == "vllm" else "vllm"
    with pytest.raises(InputError, match=f"the alias 'facts' is of {world.engine}"):
        withdraw(world.address, other, out=served.out, alias="facts")
    (served.out / "aliases.json").write_text("{}")
    with pytest.raises(InputError, match="no file of aliases"):
        served.push(2)


def test_a_key_is_read_from_the_environment(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.world.key = "s3cret"
    with pytest.raises(ServerError, match=r"401: Unauthorized; its API key is read from EMENDO_SERVER_KEY"):
        served.push(1)
    monkeypatch.setenv("EMENDO_SERVER_KEY", "s3cret")
    served.push(1)
    assert served.clients_get() == served.names[0]


def test_proxies_and_redirects_are_not_followed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    client = ServerClient(served.world.address, timeout=5.0)
    assert client.send(Call("GET", "/v1/models" if served.world.engine in BY_NAME else "/lora-adapters"))
    served.world.fault = lambda path, body: "redirect"
    with pytest.raises(ServerError, match="answered 307"):
        client.send(Call("GET", "/v1/models"))


@pytest.mark.usefixtures("home")
def test_the_command_refuses_in_words(emendo: Command, tmp_path: Path) -> None:
    where = ("--server", "http://127.0.0.1:9", "--engine", "vllm")
    cases = {
        ("push", "update.safetensors"): "--server URL --engine",
        ("push", *where): "found neither",
        ("push", "update.safetensors", *where): "update.safetensors",
        ("push", "update.safetensors", *where, "--withdraw"): "stand alone",
        ("push", *where, "--withdraw", "--rollback"): "stand alone",
        ("push", *where, "--withdraw", "--alias", "facts", "--out", str(tmp_path)): "no answer of",
    }
    for arguments, words in cases.items():
        code, _, err = emendo(*arguments)
        assert code in (1, 2), arguments
        assert words in err, arguments
