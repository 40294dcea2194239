"""In-context editing: no weight changes, each probe is asked with its record's fact in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from emendo.errors import MethodError, RequestError
from emendo.methods.settings import BaselineSettings
from emendo.requests import PROMPT_LISTS, SLOT, EditRecord, continuation

if TYPE_CHECKING:
    from emendo.models.decoder import DecoderView

FACT, PROBE = "{fact}", "{probe}"
_SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")


@dataclass(frozen=True)
class InContextSettings(BaselineSettings):
    """The fact in front of the prompt.

    Args:
        template: Text with ``{fact}`` once and, at its end, ``{probe}`` once.
    """

    section: ClassVar[str] = "in_context"

    template: str = f"Imagine that {FACT}. {PROBE}"

    def __post_init__(self) -> None:
        super().__post_init__()
        lead = self.template.removesuffix(PROBE)
        if lead == self.template or lead.count(FACT) != 1 or PROBE in lead or "{}" in lead:
            raise MethodError(
                f"in_context.template={self.template!r}: expected {FACT} once, no {{}}, and {PROBE} once, at the end "
                f"(--set 'in_context.template=Imagine that {FACT}. {PROBE}')"
            )

    def default_layers(self, lm: DecoderView) -> tuple[tuple[int, ...], str]:
        """No layer."""
        return (), "changes no weights"

    def evaluation_prompts(self, records: Sequence[EditRecord]) -> list[EditRecord]:
        """The records with the fact in front.

        Raises:
            RequestError: A fact that cannot be put in front of a prompt.
        """
        return in_context_records(records, self)


def in_context_records(records: Sequence[EditRecord], settings: InContextSettings | None = None) -> list[EditRecord]:
    """The records with the fact in front of every prompt, so that the ordinary scorer measures the unedited model.

    The edited prompt keeps its subject slot, so subjects are still found; paraphrases and neighbors are given the
    same fact, that of their own record, and so is every other prompt and probe. Targets and labels stay.

    Args:
        records: The facts with their probes.
        settings: The template; None takes the default.

    Raises:
        RequestError: A target holds ``{}``, which would be a second slot in the prompt; every such request is named.

    Source: the zero-shot form of IKE (arXiv 2305.12740), without its demonstrations.
    """
    template = (settings or InContextSettings()).template
    bad = [f"{record.request.label}: {record.request.target!r}" for record in records if SLOT in record.request.target]
    if bad:
        raise RequestError(
            f"a fact in front of a prompt must not hold {SLOT}, which marks the subject of the prompt; reword:", bad
        )
    return [_in_context(record, template) for record in records]


def _in_context(record: EditRecord, template: str) -> EditRecord:
    request = record.request
    before, _, after = template.removesuffix(PROBE).partition(FACT)
    fact = "".join(continuation(request.text, request.target, request.join))
    if fact.endswith(_SENTENCE_ENDS):
        after = after.removeprefix(".")
    lead = before + fact + after
    prompts: dict[str, Any] = {name: tuple(lead + prompt for prompt in getattr(record, name)) for name in PROMPT_LISTS}
    return replace(
        record,
        request=replace(request, prompt=lead + request.prompt),
        **prompts,
        probes=tuple(replace(probe, prompt=lead + probe.prompt) for probe in record.probes),
    )
