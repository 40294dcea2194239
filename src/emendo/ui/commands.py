"""The command lines that do what the page does, ready to be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from emendo.io import strict_json
from emendo.methods import DEFAULT_METHOD
from emendo.ui.fact import Fact
from emendo.ui.settings import NO_GATE, DeskSettings


class Commands:
    """Writes commands for one model and one ledger.

    Args:
        settings: How the model was named and is loaded.
        ledger: Folder of the ledger.
    """

    def __init__(self, settings: DeskSettings, ledger: Path) -> None:
        self._model = ("--model", settings.model, *settings.options)
        self._ledger = ("--ledger", str(ledger))

    def ask(self, prompt: str, *, chat: bool) -> str:
        """Base and kept edits on a prompt."""
        return self.compare("base", "ledger:now", [prompt], chat=chat)

    def compare(self, first: str, second: str, prompts: Sequence[str], *, chat: bool) -> str:
        """Two states on prompts."""
        asked = ["--prompts", "prompts.txt", *(["--chat"] if chat else [])]
        diff = _line("diff", first, second, *self._model, *self._ledger, *asked)
        return f"{_printed(prompts)} > prompts.txt\n{diff}"

    def edit(self, fact: Fact, settings: DeskSettings, *, replace: bool, force: bool, message: str) -> str:
        """Write a fact into the ledger, under the gate."""
        record = fact.record()
        request = record.request
        before, named = "", ["--prompt", request.prompt, "--subject", request.subject, "--target", request.target]
        if record.paraphrase_prompts or record.neighborhood_prompts:
            row = strict_json.dumps(record.to_dict())
            before, named = f"{_printed([row])} > fact.jsonl\n", ["--requests", "fact.jsonl"]
        else:
            named += ["--target-true", record.target_true] if record.target_true else []
            named += ["--chat"] if fact.chat else []
            named += ["--system", fact.system] if fact.system else []
        if settings.method != DEFAULT_METHOD:
            named += ["--method", settings.method]
        if settings.layers:
            named += ["--layers", ",".join(map(str, settings.layers))]
        for name, value in settings.settings.items():
            named += ["--set", f"{name}={value}"]
        if settings.gate != NO_GATE:
            named += ["--gate", settings.gate, *(["--force"] if force else [])]
        named += ["--replace"] if replace else []
        named += ["--message", message] if message else []
        return before + _line("edit", *self._model, *named, *self._ledger)

    def revert(self, id: str, message: str) -> str:
        """Take an edit out."""
        return _line("ledger", "revert", id[:12], *self._ledger, *(["--message", message] if message else []))

    def checkout(self, id: str, message: str) -> str:
        """Go to the state after a record."""
        return _line("ledger", "checkout", id[:12], *self._ledger, *(["--message", message] if message else []))

    def verify(self) -> str:
        """Check every file of the ledger against its hash."""
        return _line("ledger", "verify", *self._ledger)

    def trace(self, prompt: str, subject: str, answer: str) -> str:
        """Where the model keeps a fact."""
        given = ["--answer", answer] if answer else []
        return _line("trace", *self._model, "--prompt", prompt, "--subject", subject, *given, "--any-answer")

    def carried(self, prompt: str, answer: str, *, chat: bool) -> str:
        """What carries an answer."""
        asked = ["--prompt", prompt, "--answer", answer, *(["--chat"] if chat else [])]
        return _line("see", *self._ledger, *self._model, *asked)

    def update(self) -> str:
        """All active edits as one update file."""
        return _line("ledger", "checkout", *self._ledger, "--out", "edits.safetensors")

    def adapter(self) -> str:
        """The same as an adapter."""
        export = _line("export", "peft", *self._model, "--update", "edits.safetensors", "--out", "adapter")
        return f"{self.update()}\n{export}"


def _line(*words: str) -> str:
    return shlex.join(["emendo", *words])


def _printed(lines: Sequence[str]) -> str:
    """Prints the lines as they are, whatever is in them."""
    return shlex.join(["printf", "%s\\n", *lines])
