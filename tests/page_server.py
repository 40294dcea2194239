"""`emendo ui` as a process, and a browser that looks at it and writes down what should not happen."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.quick_plans import QUICK

CHROMIUM = Path("/usr/bin/chromium")
SKIP = "EMENDO_SKIP_BROWSER"
GATE = 'reference = "base"\n[checks.efficacy]\nlimit = 0.0\n[checks.perplexity_ratio]\nlimit = 1000.0\n'
STRICT = 'reference = "base"\n[checks.perplexity_ratio]\nlimit = 0.5\n'
MILLISECONDS = 180_000
"""Patience of the browser: the machine may be busy."""


class Server:
    """A page and its process."""

    def __init__(self, model: str, folder: Path, *options: str, gate: str = GATE, settings: bool = True) -> None:
        self.ledger, self.model = folder / "ledger", model
        (folder / "gate.toml").write_text(gate, encoding="utf-8")
        quick = [word for name, value in QUICK.items() for word in ("--set", f"{name}={value}")]
        command = [sys.executable, "-m", "emendo", "ui", "--model", model, "--ledger", str(self.ledger), "--port", "0"]
        command += ["--gate", str(folder / "gate.toml")] if gate else []
        command += ["--method", "emmet", *quick] if settings else []
        self.errors = (folder / "stderr.txt").open("w+")
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=self.errors, text=True, env=_environment()
        )
        self.address = self._address()

    @property
    def port(self) -> int:
        return int(self.address.rstrip("/").rpartition(":")[2])

    def head(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.ledger / "HEAD").read_text())
        return found

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()

    def _address(self) -> str:
        """What the command says where the page is; within minutes, where the machine is busy."""
        assert self.process.stdout is not None
        until = time.monotonic() + 300
        while time.monotonic() < until and self.process.poll() is None:
            if select.select([self.process.stdout], [], [], 1)[0]:
                line = self.process.stdout.readline()
                if line.startswith("Page: "):
                    return line.removeprefix("Page: ").strip()
        self.process.kill()
        self.errors.seek(0)
        raise AssertionError(f"emendo ui did not begin: {self.errors.read()[-2000:]}")


def _environment() -> dict[str, str]:
    source = str(Path(__file__).parents[1] / "src")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}


@contextmanager
def serving(model: str, folder: Path, *options: str, **more: Any) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(model, folder, *options, **more)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def browsing() -> Iterator[Any]:
    """Debian's chromium; a machine without one has to say that it does not want these tests."""
    if not CHROMIUM.exists():
        if os.environ.get(SKIP):
            pytest.skip(f"{SKIP} is set")
        pytest.fail(f"no {CHROMIUM}: apt-get install chromium, or set {SKIP}=1 to leave the tests of the page out")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A tab of a browser, and everything in it that should not be: other hosts, errors."""

    def __init__(self, browser: Any, server: Server, *, width: int = 1100) -> None:
        self.wrong: list[str] = []
        self.server = server
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(MILLISECONDS)
        self.page.on("request", self._request)
        self.page.on("console", lambda said: self._console(said.type, said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.goto(server.address)
        self.page.get_by_role("heading", name="Emendo").wait_for()

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.server.address, "data:", "blob:")):
            self.wrong.append(f"request: {request.url}")

    def _console(self, kind: str, text: str) -> None:
        if kind == "error":
            self.wrong.append(f"console: {text}")

    def go(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab, exact=True).click()

    def click(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()

    def fill(self, label: str, text: str) -> None:
        self.page.get_by_label(label, exact=True).fill(text)

    def see(self, selector: str, text: str = "") -> Any:
        found = self.page.locator(selector)
        found = (found.filter(has_text=text) if text else found).first
        found.wait_for()
        return found

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())

    def ask(self, prompt: str) -> str:
        """What both sides say, as text."""
        self.go("Ask")
        before = self.newest_job()
        self.fill("Prompt", prompt)
        self.click("Ask")
        self.page.wait_for_function(
            "before => [...document.querySelectorAll('#em-job [data-state=done]')].some(e => +e.dataset.job > before)",
            arg=before,
        )
        self.see("#em-asked h2")
        return self.text("#em-asked")

    def newest_job(self) -> int:
        """Number of the newest job that the page shows."""
        shown = "[0, ...[...document.querySelectorAll('#em-job [data-job]')].map(e => +e.dataset.job)]"
        return int(self.page.evaluate(f"Math.max(...{shown})"))

    def write(self, prompt: str, subject: str, target: str, paraphrases: str = "", neighbors: str = "") -> None:
        self.go("Write")
        for label, text in (
            ("Sentence, up to the answer", prompt),
            ("What it is about", subject),
            ("New answer", target),
            ("Paraphrases, one a line: should give the new answer too", paraphrases),
            ("Neighbors, one a line: should stay as they are", neighbors),
        ):
            self.fill(label, text)
        self.see("#em-read mark")

    def serious(self) -> list[str]:
        """Serious findings of axe."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [
            f"{row['id']}: {[node['html'][:120] for node in row['nodes']]}"
            for row in found
            if row["impact"] in ("serious", "critical")
        ]

    def too_wide(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def same_answers(first: str, second: str) -> bool:
    return first.split() == second.split()
