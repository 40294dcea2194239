"""What is advised about mixtures of experts, workers, servers and the page is done, to the letter, and helps."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from emendo.export import write_adapter, write_gguf_adapter
from emendo.models import load
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.random_updates import random_update
from tests.remedies import done
from tests.serving_stand_in import edited_weights, stand_in
from tests.tiny.conftest import Command

FACT = "--prompt '{} is in' --subject Paris --target Rome"
QUICK = "--set target.steps=2 --set contexts.scheme=fixed --no-judge"
MIXED = f"edit --model mixture {FACT} --layers 1 {QUICK}"
PLAIN = f"edit --model model {FACT} --layers 1 {QUICK}"
OPTIONS = "--model model --out pushed --probe probes.jsonl --timeout 20"
PUSH = f"push first.safetensors {OPTIONS}"
NAMES = "--server ADDRESS --engine vllm"
AWAY = f"push --withdraw --out pushed {NAMES}"
PAGE = "ui --model model --ledger desk --gate none"

ROWS: dict[str, tuple[str, str, str]] = {
    # mixtures of experts
    "a null space of experts": (
        f"{MIXED} --method alphaedit --set moments.multiple=20",
        r"\((--set preservation.null_space=off)",
        "",
    ),
    "an expert's metric": (
        f"{MIXED} --method memit --set moments.multiple=0.1 --set preservation.dead_ridge=0",
        r"\((--set moments.multiple=20)\)",
        "",
    ),
    "an expert's metric, a ridge": (
        f"{MIXED} --method memit --set moments.multiple=0.1 --set preservation.dead_ridge=0",
        r"\((--set preservation.ridge=[^)]+)\)",
        "",
    ),
    "experts that too few keys reach": (
        f"{MIXED} --method emmet --set moments.multiple=0.5 --set preservation.ridge=0.1",
        r"\((--set moments.multiple=40)\)",
        "",
    ),
    "experts that too few keys reach, by squares": (
        f"{MIXED} --method emmet --set moments.multiple=0.5 --set preservation.ridge=0.1",
        r"`(--method memit)`",
        "",
    ),
    # workers
    "no workers": (f"{PLAIN} --workers 0", r"--workers 0; expected at least (1)", f"{PLAIN} --workers FOUND"),
    "workers for a model in few bits": (
        f"{PLAIN} --load-in int8 --workers 1",
        "leave the workers out",
        f"{PLAIN} --load-in int8",
    ),
    "workers twice": (f"{PLAIN} --workers 1 --ray local", "exclude each other; give one", f"{PLAIN} --workers 1"),
    # servers
    "no server": (
        f"{PUSH} --alias facts",
        r"--server URL --engine llamacpp\|(vllm)\|sglang",
        f"{PUSH} --alias facts --server ADDRESS --engine FOUND",
    ),
    "an engine that is none": (
        f"{PUSH} --server ADDRESS --engine vlm --alias facts",
        r"expected one of .*\b(vllm)\b.* \(--engine\)",
        f"{PUSH} --server ADDRESS --engine FOUND --alias facts",
    ),
    "no model for a push": (
        f"push first.safetensors --out pushed --probe probes.jsonl --alias facts {NAMES}",
        r"made for \(--model\)",
        f"{PUSH} --alias facts {NAMES}",
    ),
    "a null space of experts, another method": (
        f"{MIXED} --method alphaedit --set moments.multiple=20",
        r"or (--method memit)\)",
        "",
    ),
    "an address that is none": (
        f"{PUSH} --server HOST --engine vllm --alias facts",
        r"such as (http://)127.0.0.1:8000 \(--server\)",
        f"{PUSH} --server FOUNDHOST --engine vllm --alias facts",
    ),
    "a server that is not there": (
        f"{PUSH} --server http://127.0.0.1:9 --engine vllm --alias facts",
        r"a server that runs \(--server, --timeout\)",
        f"{PUSH} {NAMES} --alias facts",
    ),
    "a name for scales": (
        f"{PUSH} --server SCALES --engine llamacpp --alias facts",
        "Leave out --alias",
        f"{PUSH} --server SCALES --engine llamacpp",
    ),
    "nothing to withdraw": (AWAY, r"clients use \(--alias\)", f"{AWAY} --alias facts"),
    "nothing to withdraw, the adapter": (AWAY, r"the adapter \(--adapter\)", f"{AWAY} --adapter ADAPTER"),
    "an adapter that is not there": (
        f"{AWAY} --adapter other",
        r"found ([\w-]+) \(--adapter\)",
        f"{AWAY} --adapter FOUND",
    ),
    "an alias that is not there": (f"{AWAY} --alias other", r"was pushed \(--alias, --out\)", f"{AWAY} --alias facts"),
    "a rollback of scales": (
        "push --rollback --out pushed --server SCALES --engine llamacpp",
        r"or (--withdraw)",
        "push FOUND --out pushed --server SCALES --engine llamacpp",
    ),
    "a rollback of the first push": (
        f"push --rollback --alias facts --out pushed {NAMES}",
        "expected a second push",
        f"push first.safetensors second.safetensors {OPTIONS} {NAMES} --alias facts && "
        f"push --rollback --alias facts --out pushed {NAMES}",
    ),
    # the page
    "a page for others": (f"{PAGE} --host 0.0.0.0", "or leave --host out", PAGE),
    "a page for others, with a password": (
        f"{PAGE} --host 0.0.0.0",
        r"set (EMENDO_UI_PASSWORD)",
        f"{PAGE} --host 0.0.0.0",
    ),
    "a port that is taken": (f"{PAGE} --port TAKEN", r"\((--port 0) takes", ""),
}
"""A command that is refused, what it advises, and what is done then; where nothing: the advised options are given."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for name, family in (("model", "llama"), ("mixture", "qwen3_moe")):
        lm = build_tiny(family)
        lm.model.save_pretrained(folder / name)
        lm.tokenizer.save_pretrained(folder / name)
    lm = load(folder / "model")
    first = random_update(lm, {1: 1}, seed=1)
    first.save(folder / "first.safetensors")
    random_update(lm, {2: 1}, [first], seed=2).save(folder / "second.safetensors")
    (folder / "probes.jsonl").write_text('{"prompt": "The largest ocean is"}\n', encoding="utf-8")
    return folder


@pytest.fixture
def places(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Words of commands that stand for a place: two servers, of names and of scales, and a port that is taken."""
    monkeypatch.chdir(world)
    shutil.rmtree("pushed", ignore_errors=True)
    base = load("model")  # adapters are named by the model's name too
    updates = [ModelUpdate.load(f"{name}.safetensors") for name in ("first", "second")]
    with stand_in("vllm", base) as names, stand_in("llamacpp", base) as scales, socket.socket() as taken:
        for count in (1, 2):
            held = edited_weights(base, updates[:count])
            names.weights[write_adapter(base, updates[:count], "pushed").name] = held
        adapter = write_gguf_adapter(base, updates[:1], "pushed")
        scales.weights[adapter.name] = edited_weights(base, updates[:1])
        scales.adapters[adapter.name] = str(adapter.path)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield {
            "ADDRESS": names.address,
            "HOST": names.address.removeprefix("http://"),
            "SCALES": scales.address,
            "TAKEN": str(taken.getsockname()[1]),
            "ADAPTER": next(iter(names.weights)),
        }


def words_of(command: str, places: dict[str, str]) -> list[str]:
    for word, value in places.items():
        command = command.replace(word, value)
    return shlex.split(command)


@pytest.mark.parametrize("name", ROWS)
def test_what_is_advised_helps(
    name: str, emendo: Command, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emendo.ui.serve.serve", lambda *args, **kwargs: None)  # the page is there; nobody looks
    command, advice, then = ROWS[name]
    words = words_of(command, places)
    if "--withdraw" in words or "--rollback" in words:
        code, _, err = emendo(*words_of(f"{PUSH} {NAMES} --alias facts", places))
        assert code == 0, err
    code, _, err = emendo(*words)
    message = " ".join(err.split())
    assert code in (1, 2), "nothing was refused"
    found = re.search(advice, message)
    assert found, message
    if "EMENDO_UI_PASSWORD" in found.groups():
        monkeypatch.setenv("EMENDO_UI_PASSWORD", "a long password")
    filled = then.replace("FOUND", found[1] if found.groups() else "")
    for again in [words_of(part, places) for part in filled.split(" && ")] if then else [done(words, found, message)]:
        code, _, err = emendo(*again)
        assert code == 0, err
