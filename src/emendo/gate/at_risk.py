"""Which of many prompts an edit may change: the ones where it fires most, and those asked.

Firing needs one pass to the highest edited layer, whatever the number of edits, so thousands of prompts can be looked
through. It says where an edit acts and not what comes of it, so the first of the ranking are asked with the edit and
without it. What is further down may change as well: the rank is a hint. How good a hint is measured in
docs/guides/attribution.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emendo.arguments import Count, checked
from emendo.attribution import EditSet, edits_of, strongest_firing
from emendo.editing.session import EditSession
from emendo.errors import InputError
from emendo.evaluate import Snapshot, measure_drift
from emendo.requests import Prompt, prompt_text
from emendo.updates.update import ModelUpdate


@dataclass(frozen=True)
class PromptAtRisk:
    """A prompt at which edits fire, asked with them and without.

    Attributes:
        prompt: Its text, or the message that is answered.
        firing: Of the edit that fires most there, largest over the prompt's tokens; 1 is as at its own key.
        edit: That edit: subject and target.
        kl: KL(without ‖ with) of the next token, in nats.
        before: Most likely next token without the edits.
        after: With them.
    """

    prompt: str
    firing: float
    edit: str
    kl: float
    before: str
    after: str

    @property
    def changed(self) -> bool:
        """Whether another next token is most likely."""
        return self.before != self.after


@dataclass(frozen=True)
class PromptsAtRisk:
    """The prompts at which edits fire most.

    Attributes:
        looked_at: Prompts that were ranked.
        prompts: Those that were asked, the largest firing first.
    """

    looked_at: int
    prompts: tuple[PromptAtRisk, ...]

    @property
    def changed(self) -> tuple[PromptAtRisk, ...]:
        """The prompts after which another token is most likely, the one that moved most first."""
        return tuple(sorted((row for row in self.prompts if row.changed), key=lambda row: -row.kl))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows: list[Mapping[str, Any]] = [asdict(row) | {"changed": row.changed} for row in self.prompts]
        return {"looked_at": self.looked_at, "prompts": rows}


@checked
def edits_apart(updates: Sequence[ModelUpdate]) -> EditSet:
    """The single edits of updates.

    Raises:
        InputError: An update does not keep its facts apart (baselines, folded ones, RECT, PRUNE).
    """
    edits = edits_of(updates)
    if whole := [edit.label for edit in edits.edits if edit.whole]:
        raise InputError(
            f"{whole[0]} does not keep its facts apart, so there is no firing to rank prompts by (--at-risk); compare "
            "both states on all prompts: emendo diff base UPDATE --prompts FILE"
        )
    return edits


@checked
def prompts_at_risk(
    session: EditSession,
    updates: Sequence[ModelUpdate],
    prompts: Sequence[Prompt],
    *,
    most: Count = 20,
    before: Snapshot | None = None,
    after: Snapshot | None = None,
) -> PromptsAtRisk:
    """Rank prompts by how far edits fire at them, and ask the first of them with and without the edits.

    Args:
        session: Holds the unedited model; left as it was.
        updates: The edits, in the order in which they are applied; not written.
        prompts: Any number of texts or conversations.
        most: How many are asked.
        before: The model without the edits, where others ask it too.
        after: The model with the edits, likewise.

    Raises:
        InputError: There is no prompt; the session's model holds edits; or an update does not keep its facts apart
            (baselines, folded ones), so that there is no firing to rank by.
    """
    if not prompts:
        raise InputError("no prompts to look through; expected at least one (--at-risk FILE)")
    edits = edits_apart(updates)
    fired = strongest_firing(session.lm, edits, prompts).abs()
    size, which = fired.max(dim=1)
    chosen = size.argsort(descending=True, stable=True)[:most].tolist()
    asked = [prompts[place] for place in chosen]
    said = (before or Snapshot(session.lm, [])).next_tokens(asked)
    says = (after or Snapshot(lambda: session.preview(updates), [])).next_tokens(asked)
    assert said is not None
    assert says is not None
    kl, lm = measure_drift(said, says, n_resamples=1).kl, session.lm
    return PromptsAtRisk(
        len(prompts),
        tuple(
            PromptAtRisk(
                prompt=prompt_text(prompts[place]),
                firing=float(size[place]),
                edit=edits.edits[int(which[place])].label,
                kl=kl[row],
                before=lm.decode([int(said.top[row])]),
                after=lm.decode([int(says.top[row])]),
            )
            for row, place in enumerate(chosen)
        ),
    )
