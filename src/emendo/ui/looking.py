"""Looking inside: where a model keeps a fact, what carries an answer, as heat maps and panels for a template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emendo.attribution import ask, attribute, edits_of, leave_out, lens
from emendo.editing.session import EditSession
from emendo.errors import InputError
from emendo.report.heat import group_of
from emendo.report.see.document import Answer, Seen, document
from emendo.report.see.page import answer_parts
from emendo.report.trace.heat import fact_heats
from emendo.report.trace.words import explain
from emendo.requests import Prompt, prompt_text
from emendo.tracing import Trace, TraceFact, TraceSettings, packaged_subjects, trace
from emendo.tracing.settings import Kind
from emendo.ui.jobs import Job
from emendo.updates.update import ModelUpdate

KINDS: tuple[Kind, ...] = ("hidden", "mlp", "attention")
LEFT_OUT, NODES = 8, 16


def traced(
    session: EditSession, fact: TraceFact, job: Job, shown: Callable[[dict[str, Any]], None], *, edited: bool
) -> dict[str, Any]:
    """Trace a fact, one kind of state after the other; what is known is shown as it comes.

    Args:
        session: Holds the model.
        fact: What to trace; without an answer, what the model says.
        job: Told about the progress.
        shown: Is given what is known so far.
        edited: Look at the model with the kept edits; otherwise at the model without any.
    """
    found: dict[str, Any] = {"fact": fact.text, "edited": edited, "heats": [], "complete": False}
    heats: list[Any] = []
    for number, kind in enumerate(KINDS):
        job.check()
        with session.preview(()) if edited else session.preview_base() as lm:
            one = trace(
                lm, [fact], TraceSettings(kinds=(kind,)), subjects=packaged_subjects(), any_answer=True, progress=job
            )
        heats += fact_heats(one.facts[0], one.kinds)
        found = {
            **found,
            **_words(one),
            "group": group_of(heats),
            "complete": number == len(KINDS) - 1,
            "waiting": len(KINDS) - 1 - number,
        }
        shown(found)
    return found


def _words(found: Trace) -> dict[str, Any]:
    fact = found.facts[0]
    return {
        "answer": fact.answer,
        "said": fact.said,
        "clean": fact.high,
        "corrupted": float(fact.low.mean()),
        "settings": explain(found),
    }


def carried(
    session: EditSession, updates: tuple[ModelUpdate, ...], prompt: Prompt, answer: str, job: Job
) -> dict[str, Any]:
    """What every edit contributes to an answer, and the logit lens without the edits and with them.

    Args:
        session: Holds the model.
        updates: The edits.
        prompt: Text or conversation.
        answer: Text that should follow it.
        job: Told about the progress.

    Raises:
        InputError: There is no edit.
        RequestError: The answer is empty, or the tokenizer cannot write it.
    """
    if not updates:
        raise InputError("no edit is kept, so there is nothing that could carry an answer; write a fact first")
    edits = edits_of(updates)
    with session.preview_base() as lm:
        asked = ask(lm, prompt, answer)
        job.start("contributions")
        found = attribute(lm, edits, asked, nodes=NODES)
        order = found.by_edit.abs().argsort(descending=True)[:LEFT_OUT].tolist()
        job.start("leaving edits out")
        left = leave_out(lm, edits, asked, [[edit] for edit in order])
        job.start("logit lens")
        seen_through = lens(lm, edits, asked)
        job.finish()
    shown = Answer(prompt_text(prompt), answer, found, tuple((left - found.after).tolist()), tuple(order), seen_through)
    seen = Seen(edits, ("the ledger",), dict(session.base), answers=(shown,))
    return answer_parts(seen, 0, document(seen))
