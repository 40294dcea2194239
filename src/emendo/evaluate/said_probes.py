"""What is said to the probes of an edit: questions about the fact itself, and neighbors with answers of their own.

Neighborhood prompts share their record's true target. A neighbor with another answer ("The capital of France is", for
an edit of Kazakhstan's) is a probe of the kind `locality`, and is compared with its own answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emendo.arguments import checked
from emendo.evaluate.matching import contained_match
from emendo.evaluate.said import MORE_TOKENS, begins_with
from emendo.models import EditableModel
from emendo.models.generation import continue_rows
from emendo.progress import Watched, watching
from emendo.requests import EditRecord, Join, Probe, Prompt, keeps_joint

KINDS = ("question", "locality")
"""Kinds of probes that every edit is asked."""

ANSWER_TOKENS = 24
"""Most tokens of an answer in chat, which may be a sentence."""


@dataclass(frozen=True)
class SaidProbe:
    """What a model says to one probe.

    Attributes:
        kind: ``"question"`` or ``"locality"``.
        prompt: The prompt, in chat the message.
        chat: It was asked in the chat template.
        wanted: The usual spelling of the right answer.
        text: Greedy continuation, or the answer in chat.
        hit: A continuation begins with one of the answers as whole words; an answer in chat contains one.
    """

    kind: str
    prompt: str
    chat: bool
    wanted: str
    text: str
    hit: bool

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> SaidProbe:
        """What `dataclasses.asdict` gave."""
        return cls(**row)


def probe_is_said(text: str, probe: Probe, asked: Prompt, join: Join = "auto") -> bool:
    """Whether a text gives one of a probe's answers.

    Args:
        text: What the model said.
        probe: With its answers.
        asked: A text, which one of the answers has to follow as whole words; or a conversation, where it has to occur.
        join: How a target follows a prompt of the same record.
    """
    if not isinstance(asked, str):
        return any(contained_match(text, answer) for answer in probe.answers)
    return any(begins_with(text, answer) and keeps_joint(asked, text, answer, join) for answer in probe.answers)


@checked
def said_probes(
    lm: EditableModel, records: Sequence[EditRecord], *, progress: Watched = None
) -> tuple[tuple[SaidProbe, ...], ...]:
    """What a model says to the questions and to the localities of every record.

    Args:
        lm: The model as it stands.
        records: The facts; may be none.
        progress: Counts distinct prompts.

    Raises:
        InputError: A prompt has no token or is too long, or a probe is asked in chat and the model has no template.
    """
    probes = [[probe for probe in record.probes if probe.kind in KINDS] for record in records]
    asked = [[record.request.asking_probe(probe) for probe in own] for record, own in zip(records, probes, strict=True)]
    most: dict[Prompt, int] = {}
    for own, prompts in zip(probes, asked, strict=True):
        for probe, prompt in zip(own, prompts, strict=True):
            most[prompt] = max(most.get(prompt, 0), _length(lm, probe, prompt))
    progress = watching(progress)
    texts: dict[Prompt, str] = {}
    if most:
        rows = [lm.encode_prompt(prompt.rstrip(" ") if isinstance(prompt, str) else prompt) for prompt in most]
        progress.start("questions and neighbors", len(rows))
        found = continue_rows(lm, rows, list(most.values()), on_rows=progress.advance)
        progress.finish()
        decoded = (lm.decode_after(row, one.ids) for row, one in zip(rows, found, strict=True))
        texts = dict(zip(most, decoded, strict=True))

    def said(record: EditRecord, probe: Probe, prompt: Prompt) -> SaidProbe:
        hit = probe_is_said(texts[prompt], probe, prompt, record.request.join)
        return SaidProbe(
            probe.kind, probe.prompt, not isinstance(prompt, str), probe.answers[0], texts[prompt].strip(), hit
        )

    return tuple(
        tuple(said(record, probe, prompt) for probe, prompt in zip(own, prompts, strict=True))
        for record, own, prompts in zip(records, probes, asked, strict=True)
    )


def _length(lm: EditableModel, probe: Probe, prompt: Prompt) -> int:
    if not isinstance(prompt, str):
        return ANSWER_TOKENS
    return max(len(lm.encode_bare(f" {answer}")) for answer in probe.answers) + MORE_TOKENS


def rows_of(records: Sequence[Sequence[SaidProbe]]) -> list[list[dict[str, Any]]]:
    """Plain values for JSON."""
    return [[asdict(probe) for probe in record] for record in records]
