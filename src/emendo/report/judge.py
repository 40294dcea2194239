"""Hold a model before an edit against the same model after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.evaluate import RecordScores, evaluate_records
from emendo.evaluate.held_out import packaged_perplexity
from emendo.methods.techniques import asked_after
from emendo.models import ModelAdapter
from emendo.progress import Progress, Silent
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
    progress: Progress | None = None,
) -> Judgement:
    """Score and generate without the edit and with it; nothing is written to the session's model.

    With the edit, records are asked as its method asks them (`emendo.methods.techniques.asked_after`).

    Args:
        session: Holds the model; the update is planned and not applied.
        plan: The edit to judge.
        records: The edited facts with their probes.
        shown: Records whose prompts are continued in words: the prompt, a paraphrase and a neighbour of each.
        new_tokens: Tokens of each continuation.
        progress: Told about the stages.
    """
    begin = time.perf_counter()
    progress = progress or Silent()
    asked = asked_after(plan.method.config, records)

    def look(lm: ModelAdapter, records: Sequence[EditRecord]) -> tuple[RecordScores, float, list[str]]:
        scores = evaluate_records(lm, records, progress=progress)
        ppl = packaged_perplexity(lm, progress=progress).value
        prompts = [prompt for _, prompt, _ in _prompts(records[:shown])]
        progress.start("generation", len(prompts))
        texts: list[str] = []
        for at in range(0, len(prompts), 32):
            texts += lm.generate_many(prompts[at : at + 32], new_tokens)
            progress.advance(len(prompts[at : at + 32]))
        progress.finish()
        return scores, ppl, texts

    before, ppl_before, texts_before = look(session.lm, records)
    with session.preview([plan.update]) as edited:
        after, ppl_after, texts_after = look(edited, asked)
    samples = tuple(
        Sample(kind, prompt, wanted, old.strip(), new.strip())
        for (kind, prompt, wanted), old, new in zip(_prompts(records[:shown]), texts_before, texts_after, strict=True)
    )
    return Judgement(before, after, ppl_before, ppl_after, samples, time.perf_counter() - begin)


def _prompts(records: Sequence[EditRecord]) -> list[tuple[str, str, str]]:
    """Kind, prompt and wanted answer of everything that is continued in words."""
    prompts = []
    for record in records:
        prompts.append(("edited", record.request.text, record.request.target))
        prompts += [("paraphrase", text, record.request.target) for text in record.paraphrase_prompts[:1]]
        prompts += [("neighbor", text, record.target_true or "") for text in record.neighborhood_prompts[:1]]
    return prompts
