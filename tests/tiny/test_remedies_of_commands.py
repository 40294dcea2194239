"""What a command advises is added to it, taken from its own message, and the command then goes on.

Each row is a command that is refused and the part of its message that is done: options that take the place of those
given or join them (`--set`, `--layers`, ...), or, where the part says to leave an option out, are taken away.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from tests.conftest import build_tiny
from tests.remedies import done, in_words
from tests.tiny.conftest import Command

FACT = "--prompt '{} is in' --subject Paris --target Rome"
QUICK = "--set target.steps=2 --set contexts.scheme=fixed --no-judge"
EDIT = f"edit --model MODEL {FACT} {QUICK}"
OTHER = f"edit --model MODEL --prompt '{{}} is in' --subject Paris --target Tokyo {QUICK}"
PLAN = f"edit --model MODEL {FACT} --plan-only"
EVAL = "eval --model MODEL --data facts.jsonl --plan-only"

ROWS: dict[str, tuple[str, str]] = {
    # settings that do not go together
    "residual at the mean": (
        f"{PLAN} --set keys.residual=mean --set target.site=resid_post",
        r"\((--set target.site=\w+)\)",
    ),
    "attention beside": (f"{PLAN} --set target.joint_attention=true", r"\((--set target.site=\w+)\)"),
    "shared, one by one": (
        f"{PLAN} --set target.shared=subject --set batching=one_by_one",
        r"\((--set batching=joint)\)",
    ),
    "plain keys by squares": (
        f"{PLAN} --method memit --set keys.constraint=plain",
        r"\((--set memorization.s=0)\)",
    ),
    "several layers for one": (f"{PLAN} --method rome --layers 1,2", r"\((--layers 2)\)"),
    "several layers for one, spread": (f"{PLAN} --method rome --layers 1,2", r"\((--set distribution=even)\)"),
    "layers in context": (f"{PLAN} --method in-context --layers 1", "leave --layers out"),
    "a setting without a value": (f"{PLAN} --set target.steps", r"such as (--set target.steps=20)"),
    # metrics and keys
    "a null space of nothing": (
        f"{EDIT} --method alphaedit --set preservation.threshold=1e-30",
        r"`(--set preservation.threshold=[^`]+)`",
    ),
    "too few tokens": (f"{EDIT} --method emmet --set moments.multiple=0.5", r"(--set moments.multiple=\d+)"),
    "a null space of nothing, by energy": (
        f"{EDIT} --method alphaedit --set preservation.threshold=1e-30",
        r"`(--set preservation.null_space=energy --set preservation.threshold=[^`]+)`",
    ),
    "too few tokens, a ridge": (
        f"{EDIT} --method emmet --set moments.multiple=0.5",
        r"(--set preservation.ridge=VALUE)",
    ),
    "nothing preserved": (f"{PLAN} --set preservation.weight=0", r"(--set preservation.weight=1.0)"),
    "equal keys": (
        f"edit --model MODEL --requests same.jsonl {QUICK} --method emmet --set target.shared=request",
        r"`(--set target.shared=subject)`",
    ),
    "equal keys, by squares": (
        f"edit --model MODEL --requests same.jsonl {QUICK} --method emmet --set target.shared=request",
        r"`(--method memit)`",
    ),
    "a text too short": (
        "moments collect --model MODEL --layers 1 --corpus short.txt --tokens 100000 --length 8",
        r"\((--tokens \d+)\)",
    ),
    # options of commands
    "a system prompt without chat": (f"{PLAN} --system Brief", r"expected (--chat) too"),
    "joining in chat": (f"{PLAN} --chat --join space", "leave it out"),
    "force without a gate": (f"{EDIT} --force", r"add (--gate default)"),
    "rejected without a gate": (f"{EDIT} --rejected r.safetensors", r"add (--gate default)"),
    "a result that is there": (f"{EDIT} --out done", r"\((--overwrite)\)"),
    "an update that is there": (
        "update scale done/update.safetensors --factor 2 --out done/update.safetensors",
        r"\((--force)\)",
    ),
    "no update": ("update scale done/update.safetensors --factor nan --out x.safetensors", r"\((--factor 0.5)\)"),
    "a dtype that is none": (f"{PLAN} --dtype float8", r"auto, (?P<value>float32).*\((--dtype)\)"),
    "more at once than there are": (f"{EVAL} --n 1 --batch-size 2", r"\((--n 2)\)"),
    "a smaller batch": (f"{EVAL} --n 1 --batch-size 2", r"\((--batch-size 1)\)"),
    "batches one at a time": (
        f"{EVAL} --n 2 --mode sequential --batch-size 2",
        r"use (--mode sequential-batched --batch-size 2)",
    ),
    "a schedule of nothing": (f"{EVAL} --n 2 --schedule final", r"use (--schedule immediate)"),
    "another mode": (f"{EVAL} --n 2 --schedule final", r"or (--mode sequential-batched)"),
    "an answer that it does not say": (
        "trace --model MODEL --prompt '{} is' --subject Japan --answer zebra --samples 1 --positions ends",
        r"\((--any-answer)\)",
    ),
    "a measure of nothing": (
        f"{EVAL} --n 2 --measure probes",
        r"leave the measure out \(measures.probes, --measure probes",
    ),
    "a gate's file": (
        "gate --model MODEL --update done/update.safetensors --config nothing.toml",
        r"'(?P<value>default)' \(--gate FILE, (--config) FILE\)",
    ),
    "no update named": ("export checkpoint --model MODEL --out exported", r"\((--update FILE)\)"),
    "a model to ask": (
        "see done/update.safetensors --prompt 'Paris is in' --answer Rome --out seen",
        r"add (--model MODEL)",
    ),
    "no device": (f"{PLAN} --device cuda", r"use (--device cpu)"),
    "no ledger": (f"{EDIT} --ledger none", r"make one \((emendo ledger init none --model MODEL)\)"),
    "a fact that is there": (f"{OTHER} --ledger book", r"in one step \((--replace)\)"),
    "a fact that is there, taken out": (
        f"{OTHER} --ledger book2",
        r"take the old edit out first \((emendo ledger revert [^)]+)\)",
    ),
    "no tokens": ("diff base done --model MODEL --prompts p.txt --new-tokens 0", r"\((--new-tokens 16) is usual\)"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    lm = build_tiny("llama")
    lm.model.save_pretrained(folder / "model")
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    lm.tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": "{} is in", "subject": subject, "target": "Rome"} for subject in ("Paris", "Japan")]
    same = [{"prompt": f"{{}} {verb}", "subject": "Paris", "target": "Rome"} for verb in ("is in", "was built in")]
    for name, content in (("facts.jsonl", rows), ("same.jsonl", same)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    (folder / "odd.json").write_text(json.dumps([{"prompt": "{} is in", "subject": "Paris", "goal": "Rome"}]))
    (folder / "short.txt").write_text("The capital of Japan is Tokyo. " * 8, encoding="utf-8")
    (folder / "p.txt").write_text("The capital is\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ROWS)
def test_what_a_command_advises_helps(name: str, emendo: Command, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    command, advice = ROWS[name]
    words = shlex.split(command.replace("MODEL", "model"))
    if name == "no device" and torch.cuda.is_available():
        pytest.skip("there is one")
    for ledger in re.findall(r"book\d?", command):
        code, _, err = emendo("ledger", "init", ledger, "--model", "model")
        assert code == 0, err
        code, _, err = emendo(*shlex.split(EDIT.replace("MODEL", "model")), "--ledger", ledger)
        assert code == 0, err
    if "done" in command + in_words(advice) and not (world / "done").exists():
        code, _, err = emendo(*shlex.split(EDIT.replace("MODEL", "model")), "--out", "done")
        assert code == 0, err
    code, _, err = emendo(*words)
    message = " ".join(err.split())
    assert code in (1, 2), "nothing was refused"
    found = re.search(advice, message)
    assert found, message
    if found.groups() and str(found[1]).startswith("emendo "):
        code, _, err = emendo(*shlex.split(in_words(found[1]))[1:])
        assert code == 0, err
        code, _, err = emendo(*words)
    else:
        code, _, err = emendo(*done(words, found, message))
    judged = "checks of the gate fail" in err  # which random weights cannot hold
    assert code == 0 or judged, err
