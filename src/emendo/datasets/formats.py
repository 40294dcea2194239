"""The table of data set formats: what a row of each looks like, where the data comes from, and its reader.

A new format is a reader and one entry. Every page and message that lists formats is made from this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emendo.arguments import checked
from emendo.arguments.registry import Registry
from emendo.arguments.suggest import unknown_name
from emendo.datasets.counterfact import read_counterfact, read_flat
from emendo.datasets.fields import Fields
from emendo.datasets.knowedit import read_knowedit
from emendo.datasets.known_facts import read_known_fact
from emendo.datasets.mquake import read_mquake
from emendo.datasets.names import plain_names
from emendo.datasets.own import has_own, is_own, read_own
from emendo.datasets.zsre import read_zsre, read_zsre_alternative
from emendo.errors import DatasetError, RequestError
from emendo.requests import EditRecord

_TYPE_NAMES: Mapping[type, str] = {str: "text", dict: "object", list: "list"}
LOOKED_AT = 200
"""Rows by which a format is told."""


@dataclass(frozen=True)
class DataFormat:
    """One format of rows.

    Args:
        name: What ``--format`` calls it.
        title: What it is, in a few words.
        read: From the fields of a row and a label, to its records; raises `RequestError` for a row that is none.
        has: Fields by which a row is recognised, and their types.
        lacks: Fields that such a row does not have.
        reads: What becomes of the fields, as the data page tells it.
        source: Paper and release.
        licence: Of the data.
        by_name_only: Its rows look like another format's, so that it is never recognised, only named.
    """

    name: str
    title: str
    read: Callable[[Fields, str], list[EditRecord]]
    has: Mapping[str, type]
    reads: str
    source: str
    licence: str
    lacks: tuple[str, ...] = field(default=())
    by_name_only: bool = False

    def recognises(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the fields of this format."""
        return (
            not self.by_name_only
            and all(isinstance(row.get(name), kind) for name, kind in self.has.items())
            and all(row.get(name) is None for name in self.lacks)
        )

    @property
    def recognised_by(self) -> str:
        """The fields that tell this format, in words."""
        if self.by_name_only:
            return "only by `--format`"
        has = ", ".join(f"`{name}` ({_TYPE_NAMES[kind]})" for name, kind in self.has.items())
        return has + (f"; no {', '.join(f'`{name}`' for name in self.lacks)}" if self.lacks else "")


_MEND = "Levy et al. 2017 (arXiv 1706.04115); rows of the MEND release (arXiv 2110.11309)"
_MEND_LICENCE = "MIT (MEND release); loc questions: Natural Questions, CC BY-SA 3.0"

_ALL = (
    DataFormat(
        name="emendo",
        title="own rows",
        read=read_own,
        has={"prompt": str, "subject": str, "target": str},
        lacks=("target_new",),
        reads="the fields of a record; fields of other tools by the names below",
        source="you",
        licence="yours",
    ),
    DataFormat(
        name="counterfact",
        title="CounterFact and MultiCounterFact, original fields",
        read=read_counterfact,
        has={"requested_rewrite": dict},
        reads="`requested_rewrite` → request, `target_true`, `relation`; `case_id` → id; the lists of prompts keep "
        "their names; `rephrase_prompt` → paraphrase, or generation prompt where `rephrase_kind` says so",
        source="ROME, Meng et al. 2022 (arXiv 2202.05262); MultiCounterFact: MEMIT (arXiv 2210.07229)",
        licence="MIT",
    ),
    DataFormat(
        name="counterfact-easyedit",
        title="CounterFact, flat fields of EasyEdit",
        read=read_flat,
        has={"prompt": str, "subject": str, "target_new": str, "ground_truth": str},
        lacks=("locality", "portability"),
        reads="`prompt` with the subject cut out; `target_new`; `ground_truth` → `target_true`; `rephrase_prompt` → "
        "paraphrase; `locality_prompt` → neighborhood prompt if `locality_ground_truth` is `ground_truth`, else a "
        "locality probe",
        source="EasyEdit, Wang et al. 2023 (arXiv 2308.07269), from CounterFact",
        licence="MIT",
    ),
    DataFormat(
        name="zsre",
        title="zsRE as ROME and MEMIT use it: write the true answer",
        read=read_zsre,
        has={"src": str, "subject": str, "answers": list},
        reads="`src` with the subject cut out; first of `answers` → target; no `target_true`; `rephrase` → paraphrase; "
        "`loc` with a question mark, `loc_ans` → locality probe (group nq)",
        source=_MEND,
        licence=_MEND_LICENCE,
    ),
    DataFormat(
        name="zsre-easyedit",
        title="zsRE as EasyEdit uses it: write the alternative answer",
        read=read_zsre_alternative,
        has={"src": str, "subject": str, "answers": list, "alt": str},
        reads="as zsre, but `alt` → target and the first of `answers` → `target_true`; `portability` → "
        "portability probe",
        source=f"{_MEND}; task of EasyEdit (arXiv 2308.07269)",
        licence=_MEND_LICENCE,
        by_name_only=True,
    ),
    DataFormat(
        name="knowedit",
        title="KnowEdit: wiki_recent, wiki_counterfact, ZsRE",
        read=read_knowedit,
        has={"prompt": str, "subject": str, "target_new": str, "locality": dict},
        reads="`prompt` with the subject cut out; `target_new`; `ground_truth` → `target_true`; every group of "
        "`portability` and `locality` → probes of that kind and group",
        source="KnowEdit, Zhang et al. 2024 (arXiv 2401.01286); RippleEdits (arXiv 2307.12976)",
        licence="MIT; Wikidata CC0",
    ),
    DataFormat(
        name="mquake",
        title="MQuAKE: several facts a case, multi-hop questions",
        read=read_mquake,
        has={"requested_rewrite": list, "questions": list},
        reads="one record for each of `requested_rewrite`, with the same `case`; on the first, `questions` with "
        "`new_answer` and its aliases → multi_hop probes, `new_single_hops` → single_hop probes",
        source="MQuAKE, Zhong et al. 2023 (arXiv 2305.14795)",
        licence="MIT",
    ),
    DataFormat(
        name="known-facts",
        title="ROME's known facts, for causal tracing",
        read=read_known_fact,
        has={"prompt": str, "subject": str, "attribute": str},
        reads="`prompt` with the subject cut out; `attribute` → target and `target_true`; `relation_id`; "
        "`known_id` → id",
        source="ROME, Meng et al. 2022 (arXiv 2202.05262), known_1000",
        licence="MIT",
    ),
)

FORMATS: Registry[DataFormat] = Registry(
    "data format", _ALL, of=DataFormat, group="emendo.data_formats", option="--format", error=DatasetError
)
"""Every format by name."""


@checked
def register_data_format(data_format: DataFormat, *, replace: bool = False) -> DataFormat:
    """Add a data format: rows are recognised by its fields, and ``--format NAME`` takes it.

    Args:
        data_format: The entry.
        replace: Take the place of a registered one of the same name.

    Raises:
        PluginError: The name is taken, or it is no data format.
    """
    return FORMATS.register(data_format, replace=replace)


@checked
def format_named(name: str) -> DataFormat:
    """The format of a name.

    Raises:
        DatasetError: There is none.
    """
    if FORMATS.spelled(name) is None:
        raise DatasetError(unknown_name("data format", name, ["auto", *FORMATS], "--format"))
    return FORMATS.named(name)


@checked
def recognise(rows: Sequence[Mapping[str, Any]], source: str) -> DataFormat:
    """The format that most of the first rows have; the first of the table where two have as many.

    Rows that more of them are single facts under names of other tools than rows of any published format are own rows.

    Args:
        rows: Parsed rows, at least one; at most the first 200 are looked at.
        source: How errors name the data set.

    Raises:
        DatasetError: No row looks like any format.
    """
    if not rows:
        raise DatasetError(f"{source}: there is no row whose format could be told; expected at least one")
    looked = [_spelt(row) for row in rows[:LOOKED_AT]]
    count = {entry.name: sum(map(entry.recognises, looked)) for entry in FORMATS.values()}
    best = max(count, key=count.__getitem__)
    if sum(map(is_own, looked)) > count[best] or (not count[best] and any(map(has_own, looked))):
        return FORMATS["emendo"]  # single facts under other names
    if not count[best]:
        fields = ", ".join(f"{name:.40}" for name in list(looked[0])[:20]) or "none"
        raise DatasetError(
            f"{source}: its rows are of no known format; fields of the first: {fields}. Known formats, by the fields "
            "that they need (docs/reference/data.md; --format NAME reads the rows as that format):",
            [f"{entry.name}: {', '.join(entry.has)}{_lacking(entry, looked[0])}" for entry in FORMATS.values()],
        )
    return FORMATS[best]


def _lacking(entry: DataFormat, row: Mapping[str, Any]) -> str:
    """What a row lacks of a format that it has some of."""
    missing = [name for name in entry.has if name not in row]
    return f" ({', '.join(missing)} missing here)" if 0 < len(missing) < len(entry.has) else ""


def recognised(row: Mapping[str, Any]) -> bool:
    """Whether a row is one of any format."""
    row = _spelt(row)
    return (has_own(row) and isinstance(row.get("subject"), str)) or any(
        entry.recognises(row) for entry in FORMATS.values()
    )


def _spelt(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row in plain spelling; one whose fields cannot be told apart then stays as it is, and is refused later."""
    try:
        return plain_names(row)
    except RequestError:
        return row


def markdown_table() -> str:
    """The formats as docs/reference/data.md lists them."""
    lines = ["| format | recognised by | what becomes of the fields | source | licence |", "|---|---|---|---|---|"]
    lines += [
        f"| `{entry.name}`: {entry.title} | {entry.recognised_by} | {entry.reads} | {entry.source} | {entry.licence} |"
        for entry in FORMATS.values()
    ]
    return "\n".join(lines)
