"""A sign of life of every command that loads a model comes before torch does, whose modules take seconds to read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

COMMANDS = (
    "edit --model demo --prompt {} --subject Paris --target Rome",
    "demo",
    "gate --model demo --update update.safetensors",
    "eval --model demo --data facts.jsonl --n 1",
    "experiment grid.yaml",
    "trace --model demo --prompt {} --subject Paris",
    "layers --model demo --facts facts.jsonl",
    "see update.safetensors --model demo",
    "diff base update.safetensors --model demo --prompts prompts.txt",
    "requests expand facts.jsonl --model demo --out out.yaml",
    "moments collect --model demo --layers 1",
    "harness --model demo --tasks piqa",
    "export checkpoint --model demo --update update.safetensors --out out",
    "push update.safetensors --server http://127.0.0.1:9 --engine vllm --model demo",
    "ledger init facts --model demo",
    "worlds train llama",
    "doctor demo",
    "models demo",
    "moments list",
    "ui --model demo --ledger facts",
)

_WATCH = """
import json, os, pty, select, sys, time
from importlib.machinery import ModuleSpec

import emendo.cli.app as app


class Never:
    \"\"\"An import of torch that takes for ever.\"\"\"

    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "gradio", "numpy"):
            return ModuleSpec(name, self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        time.sleep(600)


def begun(words):
    child, screen = pty.fork()
    if not child:
        sys.meta_path.insert(0, Never())
        app.main(words)
    return child, screen


def first(child, screen):
    said = b""
    # A line on the screen, or the end; the time that this may take says only that nothing ever came.
    while b"\\n" not in said and select.select([screen], [], [], 20)[0]:
        try:
            said += os.read(screen, 4096)
        except OSError:
            break
    os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(screen)
    return said.decode()


app._command()
assert "torch" not in sys.modules
all_of_them = [begun(command.split()) for command in json.loads(sys.argv[1])]
print(json.dumps([first(*one) for one in all_of_them]))
"""


def test_the_first_line_is_there_before_torch(tmp_path: Path) -> None:
    fact = {"prompt": "{} is in", "subject": "Paris", "target": "Rome", "target_true": "France"}
    (tmp_path / "facts.jsonl").write_text(json.dumps(fact), encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("Paris is in", encoding="utf-8")
    (tmp_path / "update.safetensors").write_bytes(b"")
    (tmp_path / "grid.yaml").write_text("name: grid\ndata: facts.jsonl\nn: 1\nmethods: [rome]\nmodel: demo\n")
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, json.dumps(COMMANDS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = dict(zip(COMMANDS, json.loads(done.stdout), strict=True))
    # Commands that have read facts by then say so instead; an error would be no sign of life.
    signs = ("starting …", "1 request(s) from")
    assert not {command: shown for command, shown in said.items() if not any(sign in shown for sign in signs)}
