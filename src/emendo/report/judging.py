"""Hold a model before an edit against the same model after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.evaluate import RecordScores, Snapshot, sampled_prompts
from emendo.progress import Progress
from emendo.requests import EditRecord


@dataclass(frozen=True)
class Sample:
    """One prompt and what the model says to it, before and after.

    Attributes:
        kind: ``"edited"``, ``"paraphrase"`` or ``"neighbor"``.
        prompt: The raw prompt; in-context editing is asked it with the fact in front.
        wanted: What it should say after the edit; empty where unknown.
        before: Greedy continuation of the model without the update.
        after: Greedy continuation of the model with it.
    """

    kind: str
    prompt: str
    wanted: str
    before: str
    after: str


@dataclass(frozen=True)
class Judgement:
    """What an update does to the facts it writes, to their neighbours, and to plain text.

    Attributes:
        before: Scores without the update.
        after: Scores with it.
        perplexity_before: On the packaged text, without the update.
        perplexity_after: On the packaged text, with it.
        samples: Generations, before and after.
        seconds: Wall time of the whole judgement.
    """

    before: RecordScores
    after: RecordScores
    perplexity_before: float
    perplexity_after: float
    samples: tuple[Sample, ...]
    seconds: float

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity after over before."""
        return self.perplexity_after / self.perplexity_before

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "perplexity": {
                "before": self.perplexity_before,
                "after": self.perplexity_after,
                "ratio": self.perplexity_ratio,
            },
            "samples": [asdict(sample) for sample in self.samples],
        }


def judge(
    session: EditSession,
    plan: Plan,
    records: Sequence[EditRecord],
    *,
    shown: int = 12,
    new_tokens: int = 8,
    before: Snapshot | None = None,
    after: Snapshot | None = None,
    progress: Progress | None = None,
) -> Judgement:
    """Score and generate without the edit and with it; nothing is written to the session's model.

    With the edit, records are asked as its method asks them (`Method.evaluation_prompts`).

    Args:
        session: Holds the model; the update is planned and not applied.
        plan: The edit to judge.
        records: The edited facts with their probes.
        shown: Records whose prompts are continued in words: the prompt, a paraphrase and a neighbor of each.
        new_tokens: Tokens of each continuation.
        before: The model without the edit, where others ask it too (`edit_snapshots`).
        after: The model with it, likewise.
        progress: Told about the stages.
    """
    begin = time.perf_counter()
    if before is None or after is None:
        before, after = edit_snapshots(session, plan, records, progress=progress)
    scores_before, ppl_before, texts_before = _asked(before, shown, new_tokens)
    scores_after, ppl_after, texts_after = _asked(after, shown, new_tokens)
    samples = tuple(
        Sample(one.kind, one.prompt, one.wanted, old, new)
        for one, old, new in zip(sampled_prompts(records, shown), texts_before, texts_after, strict=True)
    )
    seconds = time.perf_counter() - begin
    return Judgement(scores_before, scores_after, ppl_before, ppl_after, samples, seconds)


def edit_snapshots(
    session: EditSession, plan: Plan, records: Sequence[EditRecord], *, progress: Progress | None = None
) -> tuple[Snapshot, Snapshot]:
    """The session's model without an edit and with it, each asked once by everybody who needs to know.

    Args:
        session: Holds the model; what it holds must not change as long as the snapshots are asked.
        plan: The edit.
        records: Its facts with their probes; with the edit they are asked as its method asks them.
        progress: Told about the stages.
    """
    asked = plan.method.config.evaluation_prompts(records)
    return (
        Snapshot(session.lm, records, progress=progress),
        Snapshot(lambda: session.preview([plan.update]), asked, progress=progress),
    )


def _asked(snapshot: Snapshot, shown: int, new_tokens: int) -> tuple[RecordScores, float, tuple[str, ...]]:
    prompts = [sample.prompt for sample in sampled_prompts(snapshot.records, shown)]
    return snapshot.scores, snapshot.perplexity().value, snapshot.continuations(prompts, new_tokens)
