"""The kinds of inputs of the fuzz of the commands: each makes files wrong and gives the command that reads them."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy
import pyarrow
from pyarrow import parquet

from tests.fuzz_seeds import CANARIES, EXPERIMENT, FORMATS
from tests.mutations import TEXTS, as_json, changed, damaged, rewritten, weird

if TYPE_CHECKING:
    from tests.fuzz_commands import Fuzz

Case: TypeAlias = Callable[["Fuzz", random.Random, Path], list[str]]

QUICK = [
    "--set",
    "target.steps=1",
    "--set",
    "contexts.scheme=fixed",
    "--set",
    "moments.multiple=2",
    "--layers",
    "1",
    "--no-judge",
]
FACT = ["--prompt", "{} is in", "--subject", "Paris", "--target", "Rome"]


def _facts(draw: random.Random, folder: Path) -> Path:
    """A file of facts."""
    rows = draw.choice(FORMATS)
    rows = changed(rows, draw) if draw.random() < 0.8 else rows
    kind = draw.choice((".json", ".jsonl", ".jsonl", ".csv", ".tsv", ".yaml", ".txt", "", ".parquet", ".npz"))
    if kind in (".parquet", ".npz"):
        return _binary(draw, folder / f"facts{kind}", rows)
    if kind in (".csv", ".tsv") and isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        out = io.StringIO()
        writer = csv.DictWriter(out, sorted({str(key) for row in rows for key in row}), extrasaction="ignore")
        writer.writeheader()
        writer.writerows([{str(key): value for key, value in row.items()} for row in rows])
        content = rewritten(out.getvalue(), draw) if draw.random() < 0.7 else out.getvalue().encode("utf-8", "replace")
    elif kind == ".yaml":
        content = rewritten(json.dumps(rows, indent=1), draw)
    elif kind == ".jsonl" and isinstance(rows, list):
        content = b"\n".join(as_json(row, draw) for row in rows)
    else:
        content = as_json(rows, draw)
    if draw.random() < 0.4:
        content = damaged(content, draw)
    path = folder / f"facts{kind}"
    if draw.random() < 0.1:
        path, content = folder / f"facts{kind}.gz", gzip.compress(content, mtime=0)
        content = damaged(content, draw) if draw.random() < 0.5 else content
    path.write_bytes(content)
    return path


def _binary(draw: random.Random, path: Path, rows: object) -> Path:
    """A table as pyarrow writes it, or an archive of NumPy, where the rows can be written so; damaged mostly."""
    table = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    out = io.BytesIO()
    if path.suffix == ".npz":
        numpy.savez(
            out, **{str(key)[:20] or "x": numpy.zeros(3) for row in table[:1] for key in row if "\0" not in str(key)}
        )
    else:
        with contextlib.suppress(pyarrow.ArrowException, OverflowError, ValueError, TypeError):
            parquet.write_table(pyarrow.Table.from_pylist(table), out)
    content = out.getvalue()
    path.write_bytes(damaged(content, draw) if draw.random() < 0.7 else content)
    return path


def data(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """`emendo data`."""
    formats = ("auto", "emendo", "counterfact", "zsre", "knowedit", "mquake", "known-facts", "zrse")
    more = draw.choice(([], ["--json"], ["--format", draw.choice(formats)], ["--examples", "100"]))
    return ["data", str(_facts(draw, folder)), *more]


def requests(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """Facts read by the commands that have a model."""
    facts, model = str(_facts(draw, folder)), ["--model", str(fuzz.model)]
    ways: tuple[list[str], ...] = (
        ["edit", *model, "--requests", facts, "--plan-only"],
        ["edit", *model, "--requests", facts, "--plan-only", "--json"],
        ["edit", *model, "--requests", facts, "--plan-only", "--chat", "--system", "Be brief."],
        ["eval", *model, "--data", facts, "--n", "1", "--plan-only"],
        ["gate", *model, "--requests", facts, "--config", str(fuzz.good / "gate.toml")],
        ["trace", *model, "--facts", facts, "--samples", "1", "--positions", "ends", "--kind", "hidden", "--n", "1"],
    )
    return draw.choices(ways, (8, 4, 2, 4, 1, 1))[0]


def edits(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """Edits that are made."""
    return ["edit", "--model", str(fuzz.model), "--requests", str(_facts(draw, folder)), *QUICK, "--out", "out"]


def tensor_file(fuzz: Fuzz, draw: random.Random, path: Path, name: str) -> Path:
    """A tensor file: its bytes damaged, or its header changed."""
    content = (fuzz.good / name).read_bytes()
    size = int.from_bytes(content[:8], "little")
    if draw.random() < 0.5:
        content = damaged(content, draw)
    else:
        header = changed(json.loads(content[8 : 8 + size]), draw)
        text = as_json(header, draw) if draw.random() < 0.3 else json.dumps(header).encode("utf-8", "surrogatepass")
        content = len(text).to_bytes(8, "little") + text + content[8 + size :]
    path.write_bytes(content)
    return path


def updates(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """Update files."""
    bad = str(tensor_file(fuzz, draw, folder / "bad.safetensors", draw.choice(("first", "second")) + ".safetensors"))
    good, model = str(fuzz.good / "second.safetensors"), ["--model", str(fuzz.model)]
    ways: tuple[list[str], ...] = (
        ["update", "show", bad],
        ["update", "show", bad, "--json"],
        ["update", "merge", good, bad, "--out", "merged.safetensors"],
        ["update", "fold", bad, "--out", "folded.safetensors"],
        ["update", "scale", bad, "--factor", draw.choice(("0.5", "nan", "1e40", "-1")), "--out", "scaled.safetensors"],
        ["see", bad],
        ["gate", *model, "--update", bad, "--config", str(fuzz.good / "gate.toml")],
        ["export", "peft", *model, "--update", bad, "--out", "out"],
        ["diff", "base", bad, *model, "--prompts", str(fuzz.good / "prompts.txt"), "--new-tokens", "2"],
    )
    return draw.choices(ways, (8, 8, 4, 4, 4, 1, 1, 2, 1))[0]


def ledgers(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """A ledger, of which a file is damaged, changed, lost, doubled or another's."""
    book = folder / "ledger"
    shutil.copytree(fuzz.good / "ledger", book)
    files = sorted(path for path in book.rglob("*") if path.is_file())
    path = draw.choice(files)
    what = draw.randrange(5)
    if path.suffix == ".json" and what <= 1:
        path.write_bytes(as_json(changed(json.loads(path.read_bytes()), draw), draw))
    elif what <= 2:
        path.write_bytes(damaged(path.read_bytes(), draw))
    elif what == 3:
        path.unlink()
        if draw.random() < 0.3:
            path.mkdir()
    else:
        path.write_bytes(draw.choice(files).read_bytes())
    ids = [path.stem for path in (book / "records").iterdir()] + ["base", "", "0", "zz", "ffff", "\udce9"]
    one = draw.choice(ids)
    at = ["--ledger", str(book)]
    ways: tuple[list[str], ...] = (
        ["log", *at, *draw.choice(([], ["--json"]))],
        ["show", one, *at],
        ["verify", *at, *draw.choice(([], ["--json"]))],
        ["checkout", *([one] if draw.random() < 0.7 else []), *at, "--who", "me"],
        ["checkout", one, *at, "--out", "state.safetensors"],
        ["compact", *at, "--tolerance", draw.choice(("1e-6", "nan", "2"))],
        ["revert", one, *at, "--how", "algebraic"],
        ["see", *at],
    )
    return draw.choices(ways, (4, 4, 4, 3, 2, 2, 2, 1))[0]


def experiments(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """`emendo experiment` with a file in YAML."""
    good = (fuzz.good / "experiment.yaml").read_text(encoding="utf-8")
    if draw.random() < 0.5:
        content = rewritten(good, draw)
    else:
        content = as_json(changed({**EXPERIMENT, "models": [str(fuzz.model)]}, draw), draw)  # YAML is wider than JSON
    (folder / "experiment.yaml").write_bytes(damaged(content, draw) if draw.random() < 0.2 else content)
    return ["experiment", "experiment.yaml", "--plan-only", "--out", "runs", *draw.choice(([], ["--json"]))]


def gates(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """`emendo gate` with limits in TOML and canaries in JSON lines."""
    toml, canaries = (fuzz.good / "gate.toml").read_text(encoding="utf-8").encode(), CANARIES
    if draw.random() < 0.6:
        toml = rewritten(toml.decode(), draw)
        toml = damaged(toml, draw) if draw.random() < 0.3 else toml
    else:
        canaries = changed(CANARIES, draw)
    (folder / "gate.toml").write_bytes(toml)
    lines = canaries if isinstance(canaries, list) else [canaries]
    (folder / "canaries.jsonl").write_bytes(b"\n".join(as_json(row, draw) for row in lines))
    return [
        "gate",
        "--model",
        str(fuzz.model),
        "--update",
        str(fuzz.good / "first.safetensors"),
        "--config",
        "gate.toml",
    ]


def gguf(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """A GGUF file, mostly its header."""
    content = bytearray((fuzz.good / "tiny.gguf").read_bytes())
    if draw.random() < 0.6:
        for _ in range(draw.choice((1, 2, 4))):
            at = draw.randrange(2000)
            content[at : at + draw.choice((1, 4, 8))] = draw.randbytes(draw.choice((1, 4, 8)))
        (folder / "bad.gguf").write_bytes(content)
    else:
        (folder / "bad.gguf").write_bytes(damaged(bytes(content), draw))
    return ["edit", "--model", "bad.gguf", *FACT, "--plan-only"]


def folders(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """A model's folder with one of its files wrong."""
    shutil.copytree(fuzz.model, folder / "model")
    path = draw.choice(sorted((folder / "model").iterdir()))
    if path.suffix == ".json" and draw.random() < 0.8:
        path.write_bytes(as_json(changed(json.loads(path.read_bytes()), draw), draw))
    elif draw.random() < 0.7:
        path.write_bytes(damaged(path.read_bytes(), draw))
    else:
        path.unlink()
        if draw.random() < 0.5:
            index = {
                "metadata": {},
                "weight_map": {"a": draw.choice(("../x.safetensors", "a.bin", "", 7, "model.safetensors"))},
            }
            (folder / "model" / "model.safetensors.index.json").write_bytes(as_json(index, draw))
    return ["edit", "--model", "model", *FACT, "--plan-only"]


def stores(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """A store of second moments, one of which is damaged; a corpus."""
    model = ["--model", str(fuzz.model)]
    if draw.random() < 0.4:
        lines = [{"text": "The capital of Japan is Tokyo. " * 20}] * 3
        content = b"\n".join(as_json(row, draw) for row in (changed(lines, draw) if draw.random() < 0.8 else lines))
        (folder / "text.jsonl").write_bytes(damaged(content, draw) if draw.random() < 0.4 else content)
        more = ["--tokens", "40", "--length", draw.choice(("8", "0", "-1", "99999999"))]
        return ["moments", "collect", *model, "--layers", "1", "--corpus", "text.jsonl", *more]
    home = Path(fuzz.home)
    shutil.rmtree(home / "moments", ignore_errors=True)
    shutil.copytree(fuzz.good / "store", home / "moments")
    path = draw.choice(sorted(path for path in (home / "moments").rglob("*") if path.is_file()))
    at = path.relative_to(home / "moments")
    if path.suffix == ".safetensors":
        tensor_file(fuzz, draw, path, str(Path("store") / at))
    else:
        path.write_bytes(damaged(path.read_bytes(), draw))
    ways = (["moments", "list"], ["moments", "verify"], ["edit", *model, *FACT, *QUICK, "--out", "out"])
    return draw.choices(ways, (4, 4, 1))[0]


def reports(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """The folder of an experiment."""
    shutil.copytree(fuzz.good / "results", folder / "results")
    path = draw.choice(sorted((folder / "results").rglob("*.json")))
    found = changed(json.loads(path.read_bytes()), draw)
    path.write_bytes(damaged(path.read_bytes(), draw) if draw.random() < 0.3 else as_json(found, draw))
    return ["report", "results"]


def word_of(draw: random.Random, word: str, fuzz: Fuzz, kept: float = 0.75) -> str:
    """A word of a command line, or another in its place."""
    if draw.random() < kept:
        return word
    names = (
        "base",
        str(fuzz.model),
        str(fuzz.good / "first.safetensors"),
        str(fuzz.good),
        "/dev/null",
        "/dev/zero",
        ".",
    )
    other = draw.choice((*TEXTS, *names, "--json", "--out", "\udce9", str(weird(draw)), "1e999", "-1", "nan"))
    return other.replace("\0", "") if "\0" in other else other  # no system hands it over


def command_lines(fuzz: Fuzz, draw: random.Random, folder: Path) -> list[str]:
    """Words of good command lines exchanged, left out and added."""
    model, first = ["--model", str(fuzz.model)], str(fuzz.good / "first.safetensors")
    lines: tuple[list[str], ...] = (
        ["edit", *model, *FACT, *QUICK, "--plan-only", "--seed", "1", "--join", "auto", "--method", "emmet"],
        ["edit", *model, *FACT, "--plan-only", "--set", "target.steps=3", "--set", "preservation.weight=1"],
        ["eval", *model, "--data", str(fuzz.good / "facts.jsonl"), "--n", "2", "--mode", "batch", "--plan-only"],
        ["gate", "--print-default", "--config", "default"],
        ["trace", *model, "--prompt", "{} is", "--subject", "Japan", "--samples", "1", "--window", "1", "--noise", "3"],
        ["see", first, "--out", "out", "--nodes", "2"],
        ["diff", "base", first, *model, "--prompts", str(fuzz.good / "prompts.txt"), "--new-tokens", "1"],
        ["experiment", str(fuzz.good / "experiment.yaml"), "--plan-only", "--n", "1", "--out", "runs"],
        ["update", "show", first],
        ["update", "fold", first, "--tolerance", "1e-6", "--max-rank", "3", "--out", "x.safetensors"],
        ["update", "scale", first, "--factor", "2", "--out", "x.safetensors", "--force"],
        ["export", "peft", *model, "--update", first, "--fold", "0.1", "--base-name", "a/b", "--out", "out"],
        ["moments", "collect", *model, "--layers", "1", "--tokens", "40", "--length", "8", "--accumulate", "float32"],
        ["moments", "list"],
        ["log", "--ledger", str(fuzz.good / "ledger")],
        ["show", "base", "--ledger", str(fuzz.good / "ledger")],
        ["checkout", "base", "--ledger", str(fuzz.good / "ledger"), "--out", "x.safetensors"],
        ["verify", "--ledger", str(fuzz.good / "ledger"), "--json"],
        ["init", "book", *model, "--who", "me", "-m", "why"],
        ["report", str(fuzz.good / "nothing")],
        ["data", str(fuzz.good / "facts.jsonl"), "--format", "auto", "--examples", "2"],
        ["methods", "emmet", "--json"],
        ["models", "llama"],
        ["models", str(fuzz.model), "--json"],
        ["doctor", "--json"],
        ["export", "gguf-lora", *model, "--update", first, "--base", str(fuzz.good / "tiny.gguf"), "--out", "out"],
        ["export", "gguf-in-place", "--base", str(fuzz.good / "tiny.gguf"), "--update", first, "--out", "out.gguf"],
        ["push", first, "--server", "http://127.0.0.1:9", "--engine", "vllm", *model, "--alias", "a", "--timeout", "1"],
        ["edit", *model, "--repeat", "--method", "emmet", "--out", "sum.safetensors"],
        ["ui", *model, "--ledger", "book", "--host", "127.0.0.1", "--port", "0", "--gate", "none", "--password", "x"],
        ["harness", *model, "--tasks", "mmlu_sample", "--include", ".", "--data", "f.csv", "--limit", "1"],
        ["eval", *model, "--data", str(fuzz.good / "facts.jsonl"), "--n", "1", "--format", "emendo", "--plan-only"],
        ["layers", *model, "--facts", str(fuzz.good / "none.jsonl"), "--n", "1", "--layers", "1"],
        ["--version"],
    )
    words = [word_of(draw, word, fuzz) for word in draw.choice(lines)]
    if draw.random() < 0.2:
        words.pop(draw.randrange(len(words)))
    if draw.random() < 0.1:
        words.insert(draw.randrange(len(words) + 1), words[draw.randrange(len(words))] if words else "")
    return ["--help"] if words[:1] == ["demo"] else words  # it loads a real model


CASES: tuple[tuple[str, Case, int], ...] = (
    ("data", data, 300),
    ("requests", requests, 100),
    ("edits", edits, 4),
    ("updates", updates, 150),
    ("ledgers", ledgers, 130),
    ("experiments", experiments, 90),
    ("gates", gates, 40),
    ("gguf", gguf, 20),
    ("folders", folders, 30),
    ("stores", stores, 40),
    ("reports", reports, 4),
    ("command lines", command_lines, 120),
)
"""Name, what makes it, and how often of the sum of all."""
