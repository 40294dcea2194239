"""The verdict on an edit in one line: what was written and said, what it cost, and what was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, TypeAlias

from emendo.evaluate.said_probes import SaidProbe
from emendo.report.judging import Judgement

Outcome: TypeAlias = Literal["good", "doubtful", "bad"]

SHOWN_MISSES = 5
"""Facts that are named because they are not said; likewise questions, and neighbors that are lost."""

_MOST_CHARACTERS = 60
"""Of an answer that is named."""

_IN_THE_LINE = 3
"""Of them, those that the line of the verdict itself names."""


class Checked(Protocol):
    """What a verdict reads of one check; `gate.Check` is one."""

    @property
    def name(self) -> str:
        """As in the configuration."""

    @property
    def measured(self) -> float | None:
        """The number; None where it could not be measured."""

    @property
    def passed(self) -> bool:
        """Whether the edit holds it."""


class Gated(Protocol):
    """What a verdict reads of a gate's finding; `gate.GateReport` is one. So reports do not need the gate."""

    @property
    def checks(self) -> Sequence[Checked]:
        """Every declared check."""

    @property
    def failures(self) -> Sequence[Checked]:
        """The checks that fail."""

    @property
    def forced(self) -> bool:
        """Whether somebody let a failing edit in."""

    @property
    def lost(self) -> Sequence[Mapping[str, Any]]:
        """Neighbors that are lost: prompt, target, what is said."""

    @property
    def misses(self) -> Sequence[Mapping[str, Any]]:
        """Requests that are not said: prompt, target, what is said."""

    @property
    def neighbors(self) -> tuple[int, int] | None:
        """Neighbors that keep their answer, and of how many; None where that was not measured."""

    @property
    def passed(self) -> bool:
        """Whether every declared check passes."""

    @property
    def said(self) -> tuple[int, int] | None:
        """Requests that are said, and of how many; None where that was not measured."""


@dataclass(frozen=True)
class Miss:
    """A prompt after which the wanted answer is not said.

    Attributes:
        prompt: The edited prompt, a question about the fact, or a neighbor.
        target: What it should say.
        says: What it says.
        chat: It was asked in chat, beside a fact that is a text.
    """

    prompt: str
    target: str
    says: str
    chat: bool = False

    def __str__(self) -> str:
        return f"{self.prompt!r}{' in chat' if self.chat else ''} → {_shortened(self.says)!r}, not {self.target!r}"


@dataclass(frozen=True)
class Verdict:
    """What is known of an edit.

    Attributes:
        facts: Facts of the edit.
        written: Of them, those whose every target token is the most likely one; None where nothing was judged.
        said: Of them, those that a greedy continuation says, as whole words; None where nothing was asked.
        said_in_chat: The same through the chat template; None where the model has none or nothing was judged.
        paraphrases: Paraphrases that say the new target, and of how many; None where none was asked.
        questions: Questions about the facts that are answered with the new target, and of how many; None without any.
        neighbors: Neighbors that keep their right answer, and of how many; None where none had it before.
        perplexity_ratio: Of the packaged text, after over before; None where it was not measured.
        gate: How the gate ended; None without one.
        failed: Checks of it that fail.
        not_measured: What nothing is known of: kinds of prompts, and checks of the gate.
        checks: Checks of the gate.
        unmeasured: Of them, those without a number.
        misses: The facts that are not said.
        unanswered: The questions about them that are not answered.
        lost: The neighbors that lost their right answer, where their answers were asked in words.
        guessed: Facts whose paraphrases, questions or neighbors Emendo proposed and nobody has read.
    """

    facts: int
    written: int | None = None
    said: int | None = None
    said_in_chat: int | None = None
    paraphrases: tuple[int, int] | None = None
    questions: tuple[int, int] | None = None
    neighbors: tuple[int, int] | None = None
    perplexity_ratio: float | None = None
    gate: Literal["passed", "failed", "overridden"] | None = None
    failed: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
    checks: int = 0
    unmeasured: int = 0
    misses: tuple[Miss, ...] = ()
    unanswered: tuple[Miss, ...] = ()
    lost: tuple[Miss, ...] = ()
    guessed: int = 0

    @property
    def outcome(self) -> Outcome:
        """``"good"`` only where everything was measured, said and kept, and no gate failed."""
        if self.gate in ("failed", "overridden") or self.said == 0:
            return "bad"
        partial = (
            part is not None and part[0] < part[1] for part in (self.paraphrases, self.questions, self.neighbors)
        )
        whole = self.said == self.facts and self.said_in_chat in (None, self.facts)
        return "good" if whole and not self.not_measured and not any(partial) else "doubtful"

    def __str__(self) -> str:
        parts = []
        if self.said is None:
            parts.append(f"{_facts(self.facts)} planned, nothing judged")
        else:
            chat = "" if self.said_in_chat is None else f", {self.said_in_chat} said in chat"
            written = "" if self.written is None else f"{self.written} of {_facts(self.facts)} written, "
            of = f" of {_facts(self.facts)}" if self.written is None else ""
            parts.append(f"{written}{self.said}{of} said{self._named()}{chat}")
        if self.paraphrases is not None:
            parts.append(f"paraphrases {self.paraphrases[0]} of {self.paraphrases[1]} said")
        if self.questions is not None:
            parts.append(f"questions {self.questions[0]} of {self.questions[1]} answered")
        if self.neighbors is not None:
            parts.append(f"neighbors {self.neighbors[0]} of {self.neighbors[1]} kept")
        if self.perplexity_ratio is not None:
            parts.append(f"perplexity × {self.perplexity_ratio:.4f}")
        if self.gate is not None:
            of = f"{self.checks - self.unmeasured} of " if self.unmeasured else ""
            measured = f", {of}{self.checks} checks{' measured' if of else ''}"
            named = f": {', '.join(self.failed)}" if self.failed else measured
            parts.append(f"gate {self.gate}{named}")
        if self.guessed:
            parts.append(f"prompts of {_facts(self.guessed)} guessed by Emendo")
        if self.not_measured:
            parts.append(f"NOT MEASURED: {', '.join(self.not_measured)}")
        return "; ".join(parts) + "."

    def _named(self) -> str:
        """The prompts that are not answered with their targets, where they are few."""
        if not self.misses or self.said is None:
            return ""
        named = ", ".join(repr(miss.prompt) for miss in self.misses[:_IN_THE_LINE])
        more = self.facts - self.said - min(len(self.misses), _IN_THE_LINE)
        return f" (not {named}{f' and {more} more' if more > 0 else ''})"

    def missed(self) -> str:
        """What is not said, not answered and lost, with what is said instead, a line each; empty where nothing is."""
        kinds = {"Not said": self.misses, "Not answered": self.unanswered, "Neighbors lost": self.lost}
        lines = []
        for name, misses in kinds.items():
            named = "; ".join(map(str, misses[:SHOWN_MISSES]))
            more = f" and {len(misses) - SHOWN_MISSES} more" if len(misses) > SHOWN_MISSES else ""
            lines += [f"{name}: {named}{more}."] if misses else []
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        pairs = {name: getattr(self, name) for name in ("paraphrases", "questions", "neighbors")}
        return {
            **asdict(self),
            **{name: None if pair is None else list(pair) for name, pair in pairs.items()},
            "failed": list(self.failed),
            "not_measured": list(self.not_measured),
            **{name: [asdict(miss) for miss in getattr(self, name)] for name in ("misses", "unanswered", "lost")},
            "outcome": self.outcome,
            "text": str(self),
        }


def verdict_of(facts: int, judgement: Judgement | None, gate: Gated | None) -> Verdict:
    """The verdict on an edit.

    Args:
        facts: Of the edit.
        judgement: What was measured of it; None where nothing was.
        gate: What its gate found; None without one.
    """
    found: dict[str, Any] = {}
    unknown: list[str] = []
    if judgement is not None:
        edited = [record.efficacy[0].target.argmax for record in judgement.after.records]
        said = judgement.said_after
        chat = [record.chat.hit for record in said if record.chat is not None]
        paraphrases = [prompt.hit for record in said for prompt in record.paraphrase]
        targets = [record.target for record in judgement.after.records]
        found = {
            "written": sum(edited),
            "said": sum(record.edited.hit for record in said),
            "said_in_chat": sum(chat) if chat else None,
            "paraphrases": (sum(paraphrases), len(paraphrases)) if paraphrases else None,
            "questions": judgement.questions if judgement.questions[1] else None,
            "neighbors": judgement.neighbors if judgement.neighbors[1] else None,
            "unanswered": _each_once(judgement.unanswered),
            "lost": _each_once(after for _, after in judgement.lost),
            "guessed": sum(bool(fields) for fields in judgement.guessed),
            "perplexity_ratio": judgement.perplexity_ratio,
            "misses": tuple(
                Miss(record.edited.prompt, target.strip(), record.edited.text.strip())
                for record, target in zip(said, targets, strict=True)
                if not record.edited.hit
            ),
        }
        unknown = [name for name in ("paraphrases", "neighbors") if found[name] is None]
    elif gate is not None and gate.said is not None:
        found = {"said": gate.said[0], "misses": tuple(map(_named, gate.misses))}
    if judgement is None and gate is not None and gate.neighbors is not None:
        found |= {"neighbors": gate.neighbors, "lost": tuple(map(_named, gate.lost))}
    if gate is not None:
        found["gate"] = "passed" if gate.passed else "overridden" if gate.forced else "failed"
        found["failed"] = tuple(check.name for check in gate.failures)
        found["checks"] = len(gate.checks)
        found["unmeasured"] = sum(check.measured is None for check in gate.checks)
        unknown += [
            check.name
            for check in gate.checks
            if check.measured is None and check.passed and _SAME.get(check.name) not in unknown
            if check.name != "questions"  # other wordings too: the gate's table says it, the verdict need not
        ]
    return Verdict(facts, **found, not_measured=tuple(unknown))


_SAME = {"paraphrase": "paraphrases", "neighborhood_lost": "neighbors"}
"""Checks of a gate about prompts that the judgement names already."""


def _each_once(probes: Iterable[SaidProbe]) -> tuple[Miss, ...]:
    """Several facts may have one neighbor."""
    return tuple(dict.fromkeys(Miss(probe.prompt, probe.wanted, probe.text, probe.chat) for probe in probes))


def _named(detail: Mapping[str, Any]) -> Miss:
    """A prompt that a check of the gate names."""
    return Miss(detail["prompt"], detail["target"].strip(), detail["says"].strip(), detail.get("chat", False))


def _shortened(text: str) -> str:
    """An answer in chat may be a paragraph."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 1]}…"


def _facts(n: int) -> str:
    return f"{n} fact{'' if n == 1 else 's'}"
