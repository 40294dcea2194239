"""Hold a model before an edit against the same model after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from emendo.arguments import checked
from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.evaluate import (
    METRICS,
    SAID_METRICS,
    Means,
    RecordScores,
    SaidRecord,
    SampledPrompt,
    Snapshot,
    begins_with,
    said_means,
    sampled_prompts,
)
from emendo.evaluate.remembered import RememberedAnswers
from emendo.evaluate.said_probes import SaidProbe, rows_of
from emendo.io.html_table import html_table
from emendo.progress import Watched
from emendo.report.tables import score_table
from emendo.requests import EditRecord

Mark: TypeAlias = Literal["said", "not said", "kept", "lost", "changed", ""]


@dataclass(frozen=True)
class Sample:
    """One prompt and what the model says to it, before and after.

    Attributes:
        kind: ``"edited"``, ``"paraphrase"``, ``"question"`` or ``"neighbor"``; a probe in chat says so.
        prompt: The prompt, in chat the message; in-context editing is asked it with the fact in front.
        wanted: What it should say after the edit; empty where unknown.
        before: Greedy continuation of the model without the update.
        after: Greedy continuation of the model with it.
        mark: ``"said"`` or ``"not said"``: whether `after` begins with the new target as whole words. Of a neighbor
            ``"kept"`` or ``"lost"`` where it was right before, ``"changed"`` where it was not and says something else,
            and empty where it says the same.
    """

    kind: str
    prompt: str
    wanted: str
    before: str
    after: str
    mark: Mark = ""


@dataclass(frozen=True)
class Judgement:
    """What an update does to the facts it writes, to their neighbors, and to plain text.

    Attributes:
        before: Scores without the update.
        after: Scores with it.
        perplexity_before: On the packaged text, without the update.
        perplexity_after: On the packaged text, with it.
        samples: Generations, before and after.
        said_before: What the model says to each fact without the update.
        said_after: What it says with it.
        probes_before: What it says to the questions and localities of each fact without the update.
        probes_after: What it says to them with it.
        guessed: Fields of each fact's record that Emendo proposed.
        seconds: Wall time of the whole judgement.
    """

    before: RecordScores
    after: RecordScores
    perplexity_before: float
    perplexity_after: float
    samples: tuple[Sample, ...]
    said_before: tuple[SaidRecord, ...]
    said_after: tuple[SaidRecord, ...]
    probes_before: tuple[tuple[SaidProbe, ...], ...]
    probes_after: tuple[tuple[SaidProbe, ...], ...]
    guessed: tuple[tuple[str, ...], ...]
    seconds: float

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity after over before."""
        return self.perplexity_after / self.perplexity_before

    @property
    def neighbors(self) -> tuple[int, int]:
        """Of the neighborhood prompts and localities that were right before, how many still are.

        A neighborhood prompt is right where its true target is the argmax, a locality where its answer is said.
        """
        known = [
            new.target_true is not None and new.target_true.argmax
            for was, now in zip(self.before.records, self.after.records, strict=True)
            for old, new in zip(was.neighborhood, now.neighborhood, strict=True)
            if old.target_true is not None and old.target_true.argmax
        ]
        known += [new.hit for old, new in self._probes("locality") if old.hit]
        return sum(known), len(known)

    @property
    def questions(self) -> tuple[int, int]:
        """Of the questions about the facts themselves, how many are answered with the new target."""
        hits = [new.hit for _, new in self._probes("question")]
        return sum(hits), len(hits)

    @property
    def lost(self) -> tuple[tuple[SaidProbe, SaidProbe], ...]:
        """Localities that were answered rightly before and no longer are, before and after."""
        return tuple((old, new) for old, new in self._probes("locality") if old.hit and not new.hit)

    @property
    def unanswered(self) -> tuple[SaidProbe, ...]:
        """Questions about the facts that are not answered with the new target."""
        return tuple(new for _, new in self._probes("question") if not new.hit)

    def _probes(self, kind: str) -> list[tuple[SaidProbe, SaidProbe]]:
        return [
            pair
            for was, now in zip(self.probes_before, self.probes_after, strict=True)
            for pair in zip(was, now, strict=True)
            if pair[0].kind == kind
        ]

    def said(self) -> dict[str, Means]:
        """Means of what is said, before and after."""
        return {"before": said_means(self.said_before), "after": said_means(self.said_after)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "said": {
                **{when: means.to_dict() for when, means in self.said().items()},
                "records": [record.to_dict() for record in self.said_after],
            },
            "perplexity": {
                "before": self.perplexity_before,
                "after": self.perplexity_after,
                "ratio": self.perplexity_ratio,
            },
            "probes": {"before": rows_of(self.probes_before), "after": rows_of(self.probes_after)},
            "samples": [asdict(sample) for sample in self.samples],
        }

    def _repr_html_(self) -> str:
        samples = ((s.kind, s.prompt, s.before, s.after, s.mark) for s in self.samples)
        return html_table("Scores in percent", *score_table(self.to_dict())) + html_table(
            "What is said", ("", "prompt", "before", "after", ""), samples
        )

    def recorded(self) -> dict[str, Any]:
        """What an update's own file keeps of it: scores, perplexity, and what was said to every fact."""
        after = self.after.scores.to_dict()
        return {
            "scores": {name: after[name] for name in METRICS} | {"n": after["n"]},
            "said": {name: self.said()["after"].values[name] for name in SAID_METRICS},
            "perplexity": {"before": self.perplexity_before, "after": self.perplexity_after},
            "neighbors": dict(zip(("kept", "of"), self.neighbors, strict=True)),
            "questions": dict(zip(("answered", "of"), self.questions, strict=True)),
            "answers": [{"says": record.edited.text, "said": record.edited.hit} for record in self.said_after],
        }


def with_judgement(plan: Plan, judgement: Judgement) -> Plan:
    """The plan with what was measured in its update's `info`, under ``"measured"``; its identity stays the same."""
    info = {**plan.update.info, "measured": judgement.recorded()}
    return replace(plan, update=replace(plan.update, info=info))


@checked
def judge(
    session: EditSession,
    plan: Plan,
    records: Sequence[EditRecord],
    *,
    shown: int = 12,
    new_tokens: int = 8,
    before: Snapshot | None = None,
    after: Snapshot | None = None,
    progress: Watched = None,
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
    sampled = sampled_prompts(records, shown)
    texts: list[tuple[str, ...]] = []
    for state in (before, after):  # one state after the other
        _ = state.scores, state.perplexity(), state.said, state.said_probes
        prompts = [one.asked for one in sampled_prompts(state.records, shown)]
        texts.append(state.continuations(prompts, new_tokens))
    return Judgement(
        before.scores,
        after.scores,
        before.perplexity().value,
        after.perplexity().value,
        _samples(sampled, texts[0], texts[1], after.said)
        + _probe_samples(before.said_probes, after.said_probes, shown),
        before.said,
        after.said,
        before.said_probes,
        after.said_probes,
        tuple(record.guessed for record in records),
        time.perf_counter() - begin,
    )


def _samples(
    prompts: Sequence[SampledPrompt], before: Sequence[str], after: Sequence[str], said: Sequence[SaidRecord]
) -> tuple[Sample, ...]:
    samples = []
    for one, old, new in zip(prompts, before, after, strict=True):
        record = said[one.position]
        mark: Mark
        if one.kind == "neighbor":
            mark = neighbor_mark(old, new, one.wanted)
        else:
            asked = record.edited if one.kind == "edited" else record.paraphrase[0]
            mark = "said" if asked.hit else "not said"
        samples.append(Sample(one.kind, one.prompt, one.wanted, old, new, mark))
    return tuple(samples)


def _probe_samples(
    before: Sequence[Sequence[SaidProbe]], after: Sequence[Sequence[SaidProbe]], shown: int
) -> tuple[Sample, ...]:
    """Of the first records a question and a locality, in chat where there are such; of all records what is lost."""
    samples = []
    for position, (was, now) in enumerate(zip(before, after, strict=True)):
        told = set()
        for old, new in sorted(zip(was, now, strict=True), key=lambda pair: not pair[0].chat):
            lost = old.kind == "locality" and old.hit and not new.hit
            if lost or (position < shown and old.kind not in told):
                told.add(old.kind)
                samples.append(_probe_sample(old, new))
    return tuple(samples)


def _probe_sample(old: SaidProbe, new: SaidProbe) -> Sample:
    mark: Mark
    if old.kind == "question":
        kind, mark = "question", "said" if new.hit else "not said"
    else:
        kind = "neighbor"
        mark = ("kept" if new.hit else "lost") if old.hit else "changed" if old.text != new.text else ""
    return Sample(f"{kind}, chat" if old.chat else kind, old.prompt, old.wanted, old.text, new.text, mark)


def neighbor_mark(before: str, after: str, wanted: str) -> Mark:
    """Whether a neighbor stays as it was; see `Sample.mark`.

    Args:
        before: Continuation without the edit.
        after: Continuation with it.
        wanted: What is true of it; empty where unknown.
    """
    if wanted and begins_with(before, wanted):
        return "kept" if begins_with(after, wanted) else "lost"
    return "changed" if before != after else ""


@checked
def edit_snapshots(
    session: EditSession,
    plan: Plan,
    records: Sequence[EditRecord],
    *,
    progress: Watched = None,
    remember: bool = False,
) -> tuple[Snapshot, Snapshot]:
    """The session's model without an edit and with it, each asked once by everybody who needs to know.

    Args:
        session: Holds the model; what it holds must not change as long as the snapshots are asked.
        plan: The edit.
        records: Its facts with their probes; with the edit they are asked as its method asks them.
        progress: Told about the stages.
        remember: Keep the answers under EMENDO_HOME and take those that are there.
    """
    asked = plan.method.config.evaluation_prompts(records)
    held = list(session.applied_ids)
    known = [RememberedAnswers(session.lm, ids) if remember else None for ids in (held, [*held, plan.update.id])]
    return (
        Snapshot(session.lm, records, progress=progress, remembered=known[0]),
        Snapshot(lambda: session.preview([plan.update]), asked, progress=progress, remembered=known[1]),
    )
