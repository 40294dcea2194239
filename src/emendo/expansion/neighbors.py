"""Neighbors of requests: the same relation with other subjects, as far as the model answers them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from emendo.evaluate.said_probes import said_probes
from emendo.expansion.relations import Relation
from emendo.expansion.wording import bare_name, filled
from emendo.models import EditableModel
from emendo.progress import Watched
from emendo.requests import EditRecord, EditRequest, Probe, is_message, same_text

GROUP = "neighbor"
"""Group of the probes that are neighbors."""


@dataclass(frozen=True)
class Candidate:
    """A fact about another subject, as it would be asked.

    Attributes:
        subject: Its subject, as running text has it.
        probe: The question with its answers.
    """

    subject: str
    probe: Probe


def candidates(record: EditRecord, relation: Relation, edited: Iterable[str], *, chat: bool) -> list[Candidate]:
    """Every known fact of a relation about a subject that is not edited, and that does not have the new target.

    Args:
        record: The request whose neighbors they are.
        relation: What it is about.
        edited: Subjects of all requests.
        chat: As questions in chat, instead of in the request's own words.
    """
    request = record.request
    template = relation.questions[0] if chat else request.prompt
    if chat and request.chat is not None:
        template = request.prompt
    left_out = {bare_name(name) for name in edited}
    wanted = same_text(request.target).casefold()
    found = []
    for subject, answers in relation.facts.items():
        if bare_name(subject) not in left_out and wanted not in {answer.casefold() for answer in answers}:
            probe = Probe("locality", filled(template, subject), answers, GROUP, chat=chat and _needs_mark(request))
            found.append(Candidate(subject, probe))
    return found


def _needs_mark(request: EditRequest) -> bool:
    """Whether a message beside this request has to say that it is asked in chat."""
    return request.chat is None or not is_message(request.prompt)


def in_order(known: Sequence[Candidate], record: EditRecord, begin: int) -> list[Candidate]:
    """Candidates as they are asked: first those with the request's own true target, which an edit moves most easily.

    Args:
        known: All of them.
        record: The request.
        begin: Where to begin among the others, so that requests of one relation get different ones.
    """
    same = [one for one in known if shares_answer(one.probe, record)]
    others = [one for one in known if one not in same]
    return same + (others[begin % len(others) :] + others[: begin % len(others)] if others else [])


@dataclass
class Search:
    """The neighbors of one request, as far as they are known.

    Attributes:
        record: The request.
        waiting: Candidates that have not been asked, the next one first.
        found: Those that the model answers.
        asked: How many were asked.
    """

    record: EditRecord
    waiting: list[Candidate]
    found: list[Candidate]
    asked: int = 0


def search_answered(lm: EditableModel, searches: Sequence[Search], most: int, progress: Watched = None) -> None:
    """Ask candidates in rounds, in each as many as a request still lacks, until it has enough or none is left.

    Args:
        lm: The unedited model.
        searches: Of all requests; they are filled.
        most: Neighbors of a request.
        progress: Counts distinct prompts of each round.
    """
    while open_ones := [one for one in searches if one.waiting and len(one.found) < most]:
        rounds = []
        for one in open_ones:
            lacking = most - len(one.found)
            rounds.append(one.waiting[:lacking])
            del one.waiting[:lacking]
        asked = [
            EditRecord(one.record.request, probes=tuple(candidate.probe for candidate in candidates))
            for one, candidates in zip(open_ones, rounds, strict=True)
        ]
        said = said_probes(lm, asked, progress=progress)
        for one, candidates, answers in zip(open_ones, rounds, said, strict=True):
            one.asked += len(candidates)
            one.found += [candidate for candidate, answer in zip(candidates, answers, strict=True) if answer.hit]


def shares_answer(probe: Probe, record: EditRecord) -> bool:
    """Whether a neighbor's usual answer is the request's true target."""
    true = record.target_true
    return true is not None and same_text(true).casefold() == probe.answers[0].casefold()


def as_fields(record: EditRecord, neighbors: Sequence[Candidate]) -> Mapping[str, tuple[object, ...]]:
    """The neighborhood prompts and the probes that a record gets for its neighbors.

    A neighbor with the record's own true target is a neighborhood prompt; one with another answer brings it along.
    """
    prompts = [one.probe.prompt for one in neighbors if _is_prompt(one.probe, record)]
    probes = [one.probe for one in neighbors if not _is_prompt(one.probe, record)]
    return {"neighborhood_prompts": tuple(prompts), "probes": tuple(probes)}


def _is_prompt(probe: Probe, record: EditRecord) -> bool:
    return not probe.chat and shares_answer(probe, record)
