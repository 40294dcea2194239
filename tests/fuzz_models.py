"""Kinds of inputs of the fuzz that are about models: what they are, exports, servers, the page, pictures, harness."""

from __future__ import annotations

import base64
import json
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz_cases import FACT, QUICK, Case, tensor_file, word_of
from tests.mutations import TEXTS, as_json, changed, damaged, rewritten, weird
from tests.serving_stand_in import FAULTS

if TYPE_CHECKING:
    from tests.fuzz_commands import Fuzz

_TEMPLATES = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    "{{ messages[0]['content'] }}",
    "{{ raise_exception('no') }}",
    "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
    "{{ messages",
    "{{ ''.__class__.__mro__ }}",
    "{{ 1 / 0 }}",
    "{{ nothing.at.all }}",
)


def configurations(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """`emendo models` and `emendo doctor` of a configuration, without weights."""
    config = json.loads((fuzz.model / "config.json").read_bytes())
    (folder / "model").mkdir()
    content = as_json(changed(config, draw), draw)
    (folder / "model" / "config.json").write_bytes(damaged(content, draw) if draw.random() < 0.3 else content)
    doctor = ["doctor", "model", "--edits", draw.choice(("1", "100", "0", str(10**9))), "--method", "emmet"]
    return draw.choices((["models", "model"], ["models", "model", "--json"], doctor), (4, 3, 1))[0]


def tokenizers(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """A model's folder whose tokenizer is SentencePiece's or tiktoken's file, or a chat template, made wrong."""
    model = folder / "model"
    shutil.copytree(fuzz.model, model)
    what = draw.randrange(3)
    if what == 0:
        (model / "chat_template.jinja").write_text(draw.choice(_TEMPLATES), encoding="utf-8")
        return [
            "edit",
            "--model",
            "model",
            *FACT,
            "--chat",
            *draw.choice(([], ["--system", "Be brief"])),
            "--plan-only",
        ]
    (model / "tokenizer.json").unlink()
    if what == 1:
        content = (fuzz.good / "tokenizer.model").read_bytes()
    else:
        content = b"".join(base64.b64encode(bytes([value])) + b" %d\n" % value for value in range(256))
    (model / "tokenizer.model").write_bytes(damaged(content, draw) if draw.random() < 0.9 else content)
    if draw.random() < 0.3:
        named = draw.choice(("LlamaTokenizer", "GemmaTokenizer", "TokenizersBackend", "T5Tokenizer", "x", ""))
        (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}), encoding="utf-8")
    return ["edit", "--model", "model", *FACT, "--plan-only"]


def repeated(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """`emendo edit --repeat` with lines of facts, undo and nonsense."""
    fact = {"prompt": "{} is in", "subject": "Paris", "target": "Rome"}
    lines = [
        draw.choice((as_json(changed(fact, draw), draw), b"undo", as_json(weird(draw), draw), b"{}", b"undo undo"))
        for _ in range(draw.choice((0, 1, 2, 4)))
    ]
    fuzz.typed = (b"\n".join(lines)).decode("utf-8", draw.choice(("replace", "surrogateescape")))
    quick = [word for word in QUICK if word != "--no-judge"]
    return ["edit", "--model", str(fuzz.model), "--repeat", "--method", "emmet", *quick, "--out", "sum.safetensors"]


def exports(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """Updates and GGUF files that are exported, one of them damaged."""
    bad = draw.random() < 0.5
    update, base = str(fuzz.good / "first.safetensors"), str(fuzz.good / "tiny.gguf")
    if bad:
        update = str(tensor_file(fuzz, draw, folder / "bad.safetensors", "first.safetensors"))
    else:
        base = str(folder / "base.gguf")
        Path(base).write_bytes(damaged((fuzz.good / "tiny.gguf").read_bytes(), draw))
    given, model = ["--update", update], ["--model", str(fuzz.model)]
    ways: tuple[list[str], ...] = (
        ["export", "checkpoint", *model, *given, "--out", "out", "--dtype", draw.choice(("auto", "float16", "int8"))],
        ["export", "peft", *model, *given, "--out", "out", "--fold", draw.choice(("0", "1e-3", "nan", "2", "-1"))],
        ["export", "gguf-lora", *model, *given, "--out", "out", *draw.choice(([], ["--base", base]))],
        ["export", "gguf", *model, *given, "--base", base, "--out", "out.gguf"],
        ["export", "gguf-in-place", "--base", base, *given, "--out", "out.gguf"],
        ["export", "in-place", *model, *given, "--out", "out"],
        ["export", "hub", "out", "--repo", draw.choice(("me/it", "me", "a b/c", "", "me/../x"))],
    )
    return [word_of(draw, word, fuzz, 0.93) for word in draw.choice(ways)]


def pushes(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """`emendo push` to a server that answers wrongly now and then; aliases that somebody changed."""
    engine = draw.choice(("llamacpp", "vllm", "sglang"))
    server = fuzz.server(engine)
    rate = draw.choice((0.0, 0.1, 0.5))
    faults = [fault for fault in FAULTS if fault != "slow"]
    server.fault = lambda path, body: draw.choice(faults) if draw.random() < rate else None
    (folder / "served").mkdir()
    if draw.random() < 0.5:
        alias = {
            "server": server.address,
            "engine": engine,
            "model": "emendo-x",
            "path": "x",
            "before": ["emendo-y", "y"],
        }
        content = as_json(changed({"format": "emendo.aliases", "aliases": {"facts": alias}}, draw), draw)
        (folder / "served" / "aliases.json").write_bytes(content)
    named = draw.choice(([], ["--alias", "facts"], ["--alias", draw.choice(TEXTS).replace("\0", "")]))
    more = draw.choice(([], ["--dry-run"], ["--withdraw"], ["--rollback"], ["--tolerance", "9"], ["--timeout", "1"]))
    updates = [] if {"--withdraw", "--rollback"} & set(more) else [str(fuzz.good / "first.safetensors")]
    to = ["--server", server.address, "--engine", engine, "--model", str(fuzz.model), "--out", "served"]
    return [word_of(draw, word, fuzz, 0.95) for word in ["push", *updates, *to, *named, *more]]


def pages(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """Commands that draw a page of a file that is wrong: prompts, texts, facts, a run that goes on."""
    model, first = ["--model", str(fuzz.model)], str(fuzz.good / "first.safetensors")
    prompts = (fuzz.good / "prompts.txt").read_bytes()
    lines = [{"prompt": "The capital is"}, {"prompt": "It stands in"}]
    if draw.random() < 0.5:
        (folder / "p.jsonl").write_bytes(b"\n".join(as_json(row, draw) for row in [changed(lines, draw), *lines]))
    else:
        (folder / "p.jsonl").write_bytes(damaged(prompts, draw))
    asked = ["--prompt", draw.choice(TEXTS).replace("\0", ""), "--answer", draw.choice(TEXTS).replace("\0", "")]
    fact = ["--prompt", draw.choice(("{} is", "{}", "is {} {}", "")), "--subject", draw.choice(("Japan", "", "é", " "))]
    small = ["--samples", "1", "--positions", "ends", "--out", "out"]
    ways: tuple[list[str], ...] = (
        ["diff", "base", first, *model, "--prompts", "p.jsonl", "--new-tokens", draw.choice(("1", "0", "-1", "500"))],
        ["diff", draw.choice(("base", "ledger:now", "ledger:zz", first)), first, *model, "--prompts", "p.jsonl"],
        ["see", first, *model, *asked, "--nodes", draw.choice(("1", "2", "0")), "--out", "out"],
        ["see", first, *model, "--text", "p.jsonl", "--out", "out"],
        ["trace", *model, *fact, "--kind", draw.choice(("hidden", "mlp", "nothing")), *small],
        ["layers", *model, "--facts", str(fuzz.good / "facts.jsonl"), "--n", "2", "--layers", "1", "--out", "out"],
        ["report", "out"],
    )
    line = draw.choices(ways, (6, 3, 3, 3, 3, 1, 1))[0]
    if line[0] == "trace" and draw.random() < 0.4:
        (folder / "out" / "parts").mkdir(parents=True)
        (folder / "out" / "parts" / draw.choice(("0.safetensors", "x", "trace.safetensors"))).write_bytes(b"PK")
    return [word_of(draw, word, fuzz, 0.95) for word in line]


def page(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """`emendo ui`, whose server ends as soon as it is begun."""
    shutil.copytree(fuzz.good / "ledger", folder / "ledger")
    if draw.random() < 0.5:
        path = draw.choice(sorted(path for path in (folder / "ledger").rglob("*") if path.is_file()))
        path.write_bytes(damaged(path.read_bytes(), draw))
    host = draw.choice(("127.0.0.1", "0.0.0.0", "localhost", "::1", "no such host", "", "256.1.1.1"))
    more = draw.choice(([], ["--password", "x"], ["--password", "long enough for it"], ["--method", "memit"]))
    gate = draw.choice(("default", "none", "nothing.toml", str(fuzz.good / "gate.toml"), "/dev/zero"))
    line = [
        "ui",
        "--model",
        str(fuzz.model),
        "--ledger",
        "ledger",
        "--host",
        host,
        "--port",
        "0",
        "--gate",
        gate,
        *more,
    ]
    return [word_of(draw, word, fuzz, 0.95) for word in line]


def harness(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """`emendo harness` with a task in YAML and its items, both wrong now and then."""
    tasks, items = folder / "tasks", fuzz.good / "questions.jsonl"
    shutil.copytree(fuzz.good / "tasks", tasks)
    task = tasks / "mmlu_sample.yaml"
    if draw.random() < 0.5:
        task.write_bytes(rewritten(task.read_text(encoding="utf-8"), draw))
    content = items.read_bytes()
    (folder / "questions.jsonl").write_bytes(damaged(content, draw) if draw.random() < 0.6 else content)
    asked = [
        "--tasks",
        draw.choice(("mmlu_sample", "mmlu_sample", "nothing", "tasks/mmlu_sample.yaml", ",", "")),
        "--include",
        "tasks",
    ]
    more = draw.choice(([], ["--limit", "1"], ["--limit", "-1"], ["--num-fewshot", "1"], ["--batch-size", "0"]))
    return ["harness", "--model", str(fuzz.model), *asked, "--data", "questions.jsonl", *more]


MODEL_CASES: tuple[tuple[str, Case, int], ...] = (
    ("configurations", configurations, 60),
    ("tokenizers", tokenizers, 25),
    ("repeated", repeated, 10),
    ("exports", exports, 40),
    ("pushes", pushes, 10),
    ("pages", pages, 40),
    ("page", page, 15),
    ("harness", harness, 4),
)
"""Name, what makes it, and how often of the sum of all."""
