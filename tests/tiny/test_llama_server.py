"""A real llama.cpp server with an adapter of Emendo: its answers, the switch, and the way back, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from emendo.errors import InputError, ProbeError, ServerError
from emendo.export import write_gguf_adapter, write_gguf_model
from emendo.models import EditableModel, load
from emendo.requests import record_from_dict
from emendo.serving import ServerClient, make_probes, push, withdraw
from emendo.serving.client import Call
from emendo.serving.engines import LlamaCpp
from emendo.updates.update import ModelUpdate
from tests.ledger_world import ledger_of
from tests.llama_server import llama_server
from tests.random_updates import random_update
from tests.tiny.conftest import Command
from tests.tiny_gguf import write_tiny_gguf

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

FACTS = [{"prompt": "{} is in", "subject": f"Tower {n}", "target": "Rome 埃菲尔"} for n in range(4)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "base.gguf")


@pytest.fixture(scope="module")
def lm(base: Path) -> EditableModel:
    return load(base, device="cpu")


@pytest.fixture(scope="module")
def updates(lm: EditableModel) -> list[ModelUpdate]:
    first = random_update(lm, {1: 3, 2: 1}, seed=1, requests=FACTS)
    return [first, random_update(lm, {2: 2}, [first], seed=2)]


@pytest.fixture(scope="module")
def folder(lm: EditableModel, updates: list[ModelUpdate], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of the first update and of both."""
    folder = tmp_path_factory.mktemp("adapters")
    for count in (1, 2):
        write_gguf_adapter(lm, updates[:count], folder)
    return folder


@pytest.fixture(scope="module")
def server(base: Path, folder: Path) -> Iterator[str]:
    with llama_server(base, sorted(folder.glob("*.gguf"))) as address:
        yield address


def scales(server: str) -> dict[str, float]:
    client, engine = ServerClient(server), LlamaCpp()
    return {name: row.scale for name, row in engine.state(client.send(engine.look())).adapters.items()}


def test_it_answers_as_emendo_computes_is_switched_and_withdrawn_by_one_call(
    lm: EditableModel, updates: list[ModelUpdate], folder: Path, server: str
) -> None:
    first = push(lm, updates[:1], server, "llamacpp", out=folder)
    assert (first.before, scales(server)[first.model]) == ("the base", 1.0)
    assert len(first.edited) == 8
    assert max(one.difference for one in (*first.base, *first.edited)) < 0.01
    probes = make_probes(lm, updates[:1])
    assert max(abs(probe.edited - probe.base) for probe in probes) > 0.5, "the edit changes answers"

    both = push(lm, updates, server, "llamacpp", out=folder)
    assert both.before == first.model
    assert scales(server) == {first.model: 0.0, both.model: 1.0}
    assert max(one.difference for one in both.edited) < 0.01
    both.rollback()
    assert scales(server) == {first.model: 1.0, both.model: 0.0}

    sent: list[str] = []
    assert withdraw(server, "llamacpp", told=sent.append) == first.model
    assert sum("/lora-adapters [" in line for line in sent) == 1, "one call changes what is served"
    assert set(scales(server).values()) == {0.0}


def test_a_fact_is_probed_in_chat_where_it_was_asked_there(lm: EditableModel, base: Path, tmp_path: Path) -> None:
    lm.tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "
    request = record_from_dict({"question": "Where is {}?", "subject": "the Tower", "target": "Rome"}).request
    update = random_update(lm, {1: 1}, requests=[request.to_dict()])
    (probe, *_) = make_probes(lm, [update])
    assert probe.kind == "fact"
    assert lm.tokenizer.decode(probe.question.prompt).startswith("[user] Where is the Tower?")
    adapter = write_gguf_adapter(lm, [update], tmp_path)
    with llama_server(base, [adapter.path]) as address:
        push(lm, [update], address, "llamacpp", out=tmp_path)


def as_a_client(server: str, lm: EditableModel) -> float:
    """What a client gets that names no adapter and lets the server keep its prompt, as is usual."""
    ids, token = lm.encode(FACTS[0]["prompt"].format("The tower that everybody asks about")), 5
    body = {"prompt": ids, "n_predict": 1, "n_probs": 1, "temperature": 0.0, "logit_bias": [[token, 1000.0]]}
    answer = ServerClient(server).send(Call("POST", "/completion", body))
    return float(answer["completion_probabilities"][0]["logprob"])


def test_no_client_is_answered_from_what_was_computed_before_a_switch(
    lm: EditableModel, updates: list[ModelUpdate], base: Path, folder: Path
) -> None:
    with llama_server(base, sorted(folder.glob("*.gguf"))) as address:
        before = [as_a_client(address, lm) for _ in range(3)]
        done = push(lm, updates[:1], address, "llamacpp", out=folder)
        after = [as_a_client(address, lm) for _ in range(3)]
        withdraw(address, "llamacpp")
        again = [as_a_client(address, lm) for _ in range(3)]
    with llama_server(base, [Path(done.path)]) as address:
        push(lm, updates[:1], address, "llamacpp", out=folder)
        fresh = as_a_client(address, lm)
    assert abs(before[0] - fresh) > 0.2
    assert after == pytest.approx([fresh] * 3, abs=0.02)
    assert again == pytest.approx([before[0]] * 3, abs=0.02)


def test_a_server_that_keeps_prompts_beside_its_slots_is_refused(
    lm: EditableModel, updates: list[ModelUpdate], base: Path, folder: Path
) -> None:
    with llama_server(base, sorted(folder.glob("*.gguf")), cache_ram=64) as address:
        with pytest.raises(ServerError, match=r"--cache-ram 0"):
            push(lm, updates[:1], address, "llamacpp", out=folder)
        assert set(scales(address).values()) == {0.0}


def test_an_adapter_that_holds_something_else_is_not_switched_to(
    lm: EditableModel, updates: list[ModelUpdate], base: Path, folder: Path, tmp_path: Path
) -> None:
    right = write_gguf_adapter(lm, updates[:1], folder).path
    other = write_gguf_adapter(lm, updates, folder).path
    wrong = tmp_path / right.name
    wrong.write_bytes(other.read_bytes())
    with llama_server(base, [wrong]) as address:
        with pytest.raises(ProbeError, match=r"the adapter emendo-\w+ \d+ of 8 probes"):
            push(lm, updates[:1], address, "llamacpp", out=folder)
        assert set(scales(address).values()) == {0.0}


def test_a_server_of_another_model_is_told(
    lm: EditableModel, updates: list[ModelUpdate], base: Path, folder: Path, tmp_path: Path
) -> None:
    other = write_gguf_model(lm, updates, tmp_path / "other.gguf", base=base).path
    adapters = sorted(folder.glob("*.gguf"))
    with llama_server(other, adapters) as address:
        with pytest.raises(ProbeError, match="with the unedited model"):
            push(lm, updates, address, "llamacpp", out=folder)
        assert set(scales(address).values()) == {0.0}


@pytest.mark.usefixtures("home")
def test_the_command(
    emendo: Command,
    lm: EditableModel,
    updates: list[ModelUpdate],
    base: Path,
    folder: Path,
    server: str,
    tmp_path: Path,
) -> None:
    file = str(updates[0].save(tmp_path / "update"))
    where = ("--server", server, "--engine", "llamacpp", "--out", str(folder))
    common = ("--model", str(base), "--device", "cpu", "--quiet")
    before = scales(server)
    code, text, err = emendo("push", file, *where, *common, "--dry-run")
    assert (code, err) == (0, "")
    assert "GET /lora-adapters" in text
    assert "POST /completion" in text
    assert "POST /lora-adapters" in text
    assert scales(server) == before
    code, text, err = emendo("push", file, *where, *common, "--json")
    assert (code, err) == (0, "")
    done = json.loads(text)["push"]
    assert scales(server)[done["model"]] == 1.0
    code, text, _ = emendo("push", *where, "--withdraw")
    assert code == 0
    assert done["model"] in text
    assert set(scales(server).values()) == {0.0}

    ledger_of(tmp_path / "ledger", lm, updates, str(base))
    code, text, err = emendo("push", "--ledger", str(tmp_path / "ledger"), *where, "--device", "cpu", "--quiet")
    assert (code, err) == (0, "")
    assert "All clients get emendo-" in text
    assert sorted(scales(server).values()) == [0.0, 1.0]
    emendo("push", *where, "--withdraw")


def test_an_adapter_that_the_server_was_not_started_with(
    lm: EditableModel, updates: list[ModelUpdate], folder: Path, server: str
) -> None:
    with pytest.raises(InputError, match=r"--lora-scaled .*emendo-\w+\.gguf:0"):
        push(lm, updates[:1], server, "llamacpp", out=folder, fold=0.9)
