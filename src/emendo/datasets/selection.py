"""Choosing records: subjects once, no conflicts, a development or a report part, and a repeatable order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias

from emendo.arguments import Count, Seed, checked
from emendo.errors import DatasetError
from emendo.requests import EditRecord, same_text

Part: TypeAlias = Literal["all", "dev", "report"]

PARTS: tuple[Part, ...] = ("all", "dev", "report")


@checked
def part_of(subject: str) -> Literal["dev", "report"]:
    """The part that a subject belongs to: one third are ``"dev"``, by the SHA-256 of the normalised subject.

    It depends on nothing else, so the parts share no subject across data sets, selections and versions.
    """
    digest = hashlib.sha256(same_text(subject).encode()).hexdigest()
    return "dev" if int(digest, 16) % 3 == 0 else "report"


@checked
def select(
    records: Sequence[EditRecord],
    *,
    n: Count | None = None,
    seed: Seed | None = 0,
    unique_subjects: bool = True,
    part: Part = "all",
    multi_counterfact: bool = False,
) -> tuple[EditRecord, ...]:
    """Choose records that can be written together.

    In this order: the MultiCounterFact filter, the part, conflicts and repeated subjects, the order, the first `n`.
    Records of one `case` are chosen or left together and count as one. Of several that ask the same prompt or have
    the same subject the first in file order stays, whatever the seed.

    The order sorts by a hash of seed and prompt. So a smaller `n` is the beginning of a larger one, and what remains
    after other facts are taken out keeps its order, on every machine and version.

    Args:
        records: From `load_records`.
        n: How many; None for all.
        seed: Of the order; None keeps that of the file.
        unique_subjects: Keep only the first record of each subject, compared without case, spacing and the
            composition of accents.
        part: ``"dev"`` for choosing hyper-parameters, ``"report"`` for the numbers, ``"all"`` for both. A case is in
            a part if all of its subjects are.
        multi_counterfact: Keep only records whose subject and relation occur once in `records`, the rule by which
            MultiCounterFact was made from CounterFact.

    Raises:
        DatasetError: Nothing is left, `n` is more than is left, or the filter needs relations that records lack.

    Source: the filter, MEMIT (arXiv 2210.07229), section 5.
    """
    groups = _cases(records)
    left: Counter[str] = Counter()
    if multi_counterfact:
        once = _once(records)
        single = [group for group in groups if all(id(record) in once for record in group)]
        left["whose subject and relation occur again"] = len(groups) - len(single)
        groups = single
    if part != "all":
        inside = [group for group in groups if all(part_of(record.request.subject) == part for record in group)]
        left[f"outside the part {part!r}"] = len(groups) - len(inside)
        groups = inside
    groups = _without_conflicts(groups, unique_subjects, left)
    if not groups or (n is not None and n > len(groups)):
        raise _too_few(n, len(groups), left)
    if seed is not None:
        groups.sort(key=lambda group: _place(seed, group[0]))
    return tuple(record for group in groups[:n] for record in group)


def _cases(records: Sequence[EditRecord]) -> list[list[EditRecord]]:
    """Records that stay together, in file order; a record without `case` is alone."""
    groups: dict[tuple[str, int], list[EditRecord]] = {}
    for place, record in enumerate(records):
        groups.setdefault((record.case, -1) if record.case else ("", place), []).append(record)
    return list(groups.values())


def _once(records: Sequence[EditRecord]) -> set[int]:
    """Identities of the records whose subject and relation occur once."""
    lacking = [record.request.label for record in records if record.relation is None]
    if lacking:
        raise DatasetError(
            f"{len(lacking)} of {len(records)} records have no relation, which the MultiCounterFact filter compares; "
            f"the first is {lacking[0]!r}. Leave the filter out (multi_counterfact=False)"
        )
    count = Counter((record.request.subject, record.relation) for record in records)
    return {id(record) for record in records if count[record.request.subject, record.relation] == 1}


def _without_conflicts(
    groups: list[list[EditRecord]], unique_subjects: bool, left: Counter[str]
) -> list[list[EditRecord]]:
    """Groups whose facts, and if asked subjects, no earlier group has, nor the group itself twice."""
    facts: set[str] = set()
    subjects: set[str] = set()
    kept = []
    for group in groups:
        texts = [record.request.fact for record in group]
        names = [same_text(record.request.subject).casefold() for record in group] if unique_subjects else []
        if len(set(texts)) < len(texts) or facts.intersection(texts):
            left["that ask a prompt again"] += 1
        elif len(set(names)) < len(names) or subjects.intersection(names):
            left["that have a subject again (unique_subjects=False keeps them)"] += 1
        else:
            facts.update(texts)
            subjects.update(names)
            kept.append(group)
    return kept


def _place(seed: int, record: EditRecord) -> bytes:
    return hashlib.sha256(f"{seed}\n{record.request.fact}".encode()).digest()


def _too_few(n: int | None, found: int, left: Counter[str]) -> DatasetError:
    total = found + sum(left.values())
    if n is not None and found == total:
        return DatasetError(f"n={n} asks for more than the {total} record(s) or case(s) there are; expected n={total}")
    wanted = "no record is left" if n is None else f"n={n} asks for more than the {found} record(s) or case(s) left"
    return DatasetError(
        f"{wanted} of {total}; left out:",
        [f"{count} {reason}" for reason, count in left.items() if count],
    )
