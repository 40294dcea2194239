"""The table of further measures: an entry for each, read by experiments, their reports and the command line.

A new one is its metric in a module of its own and its entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from emendo.arguments import checked
from emendo.arguments.registry import Registry
from emendo.errors import ExperimentError
from emendo.evaluate.drift import measure_drift
from emendo.evaluate.entropy import entropy_of_records
from emendo.evaluate.generated import GENERATED_METRICS, GeneratedAnswer, generation_scores
from emendo.evaluate.measure import SIDE_EFFECTS, Column, Curve, Given, Measure, Panel
from emendo.evaluate.probes import ProbeScore, probe_means, probe_scores
from emendo.evaluate.proportion import wilson_interval
from emendo.evaluate.said import SaidRecord, said_means
from emendo.evaluate.snapshot import Snapshot
from emendo.evaluate.table import mean_over_records
from emendo.evaluate.zsre import ZsreRecord, zsre_means, zsre_scores
from emendo.models import EditableModel

ANSWER_TOKENS = 32
"""Most tokens of a generated answer."""

ENTROPY_RECORDS = 24
"""Records of a cell of which one text each is continued freely to measure entropy."""

FREE_TEXT: Mapping[str, Any] = {"include_prompt": True, "total_tokens": 100, "top_k": 5, "seed": 0}
"""How these texts are made, as published; the seed is that of the sampling."""

_ONCE = 1
"""Bootstraps are made over all records of a cell, not of each batch."""


def _of_rows(
    means: Callable[[Sequence[Any]], dict[str, Any]],
) -> Callable[[Any, Sequence[Any]], dict[str, Any] | None]:
    """The summary of a measure with one row a record: means before and after."""

    def summarise(before: Any, parts: Sequence[Any]) -> dict[str, Any] | None:
        after = [row for part in parts for row in part]
        return {"before": means(before or []), "after": means(after)} if after else None

    return summarise


def _share_column(key: str, label: str, at: str, name: str, meaning: str) -> Column:
    """A mean over records in percent, of a summary that holds means before and after."""
    return Column(
        *(key, label, "%", f"{at}.{name}", ".1f", meaning),
        interval=f"{at}.intervals.{name}",
        count=f"{at}.counts.{name}",
        bounds=(-3, 103),
        counted="records",
        spread="bootstrap over records",
    )


# ---- generated answers -----------------------------------------------------------------------------------------


def _generated_rows(snapshot: Snapshot, given: Given) -> list[dict[str, Any]]:
    """Every record's generated answers with their shares of matches, raw and through the chat template.

    Returns:
        For each record ``raw`` and ``chat`` (null for a model without a template): the shares by name, and under
        ``answers`` every generation.
    """

    def rows(lm: EditableModel) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{"raw": None, "chat": None} for _ in snapshot.records]
        kinds = {"raw": False} | ({"chat": True} if lm.has_chat_template else {})
        for kind, chat in kinds.items():
            found = generation_scores(
                lm, snapshot.records, chat=chat, new_tokens=ANSWER_TOKENS, n_resamples=_ONCE
            ).records
            for row, record in zip(rows, found, strict=True):
                row[kind] = {**record.measures(), "answers": asdict(record)}
        return rows

    return snapshot.asked("generated", rows)


def _generated_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means in percent over records with intervals, for ``raw`` and ``chat``; null where it was not asked."""
    found: dict[str, Any] = {}
    for kind in ("raw", "chat"):
        known = [row[kind] for row in rows if row[kind] is not None]
        found[kind] = mean_over_records(known, GENERATED_METRICS, scale=100).to_dict() if known else None
    return found


def _generated_panel(kind: str, title: str, how: str) -> Panel:
    answers = {"efficacy": ("edited", "new"), "paraphrase": ("paraphrase", "new"), "neighborhood": ("neighbor", "true")}
    return Panel(
        f"generated-{kind}",
        f"Generated answers, {title}",
        tuple(
            _share_column(
                *(f"{kind}_{group}", f"{name}, {kind}", f"generated.{{when}}.{kind}", f"{group}_contained"),
                f"greedy text after the {name} prompt, {how}, contains the {target} target",
            )
            for group, (name, target) in answers.items()
        ),
    )


# ---- what is said ----------------------------------------------------------------------------------------------


_SAID = Panel(
    "said",
    "What is said",
    tuple(
        _share_column(name, label, "said.{when}", name, f"greedy text after {what} begins with the new target")
        for name, label, what in (
            ("said", "said", "the edited prompt"),
            ("said_paraphrase", "said, paraphrase", "paraphrases"),
            ("said_chat", "said, chat", "the edited prompt in chat"),
        )
    ),
)


# ---- distributions and entropy ---------------------------------------------------------------------------------

_PLACES = "next-token predictions"


def _shift(snapshot: Snapshot, given: Given) -> dict[str, Any] | None:
    """KL and flips of the next token on the neighborhood prompts, one a place."""
    assert given.before is not None
    reference, now = given.before.neighborhood, snapshot.neighborhood
    if reference is None or now is None:
        return None
    # In-context editing asks the same places with the fact in front of them.
    moved = measure_drift(reference, replace(now, places=reference.places), n_resamples=_ONCE)
    return {"kl": list(moved.kl), "flipped": list(moved.flipped)}


def _shift_summary(_: Any, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """KL(base ‖ edited) and flips of the most likely token over all places of a cell."""
    kl = [value for part in parts for value in part["kl"]]
    flipped = [value for part in parts for value in part["flipped"]]
    if not kl:
        return None
    interval = wilson_interval(sum(flipped), len(flipped))
    return {
        "kl_mean": float(np.mean(kl)),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "flips": sum(flipped) / len(flipped),
        "flips_interval": None if interval is None else list(interval),
        "n": len(kl),
    }


_SHIFT_COLUMNS = (
    Column(
        *("kl", "KL", "nats", "shift.kl_mean", ".4f", "mean KL(base ‖ edited) of the next token"),
        interval="shift.kl_interval",
        count="shift.n",
        counted=_PLACES,
        spread="bootstrap over predictions",
    ),
    Column(
        *("flips", "flips", "%", "shift.flips", ".2f", "next-token predictions whose most likely token changed"),
        interval="shift.flips_interval",
        count="shift.n",
        scale=100,
        counted=_PLACES,
        spread="Wilson over predictions",
    ),
)


def _entropies(snapshot: Snapshot, given: Given) -> list[float]:
    """GE in bits of one free text for each record that is among the first `ENTROPY_RECORDS` of its cell."""
    first = snapshot.first
    asked = [
        (*record.generation_prompts, record.request.text)[:1] if first + at < ENTROPY_RECORDS else ()
        for at, record in enumerate(snapshot.records)
    ]
    if not any(asked):
        return []
    # The place of a record in its cell names its stream of random numbers.
    prompts = [*[()] * first, *asked]
    scores = snapshot.asked("entropy", lambda model: entropy_of_records(model, prompts, **FREE_TEXT, n_resamples=_ONCE))
    return [text.entropy for texts in scores.records for text in texts]


def _mean(values: Sequence[float] | None) -> float | None:
    return float(np.mean(values)) if values else None


def _entropy_summary(before: Sequence[float] | None, parts: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    after = [value for part in parts for value in part]
    if not after or before is None:
        return None
    return {
        **{"before": _mean(before), "after": _mean(after)},
        **{"n": len(after), "unit": "bits", "texts": dict(FREE_TEXT)},
    }


# ---- a data set's own questions --------------------------------------------------------------------------------


def _zsre_rows(snapshot: Snapshot, given: Given) -> list[dict[str, Any]]:
    """Token accuracies of each record, as `ZsreRecord` has them."""
    found = snapshot.asked("zsre", lambda model: zsre_scores(model, snapshot.records, n_resamples=_ONCE))
    return [asdict(record) for record in found.records]


def _zsre_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return zsre_means([ZsreRecord(**row) for row in rows]).to_dict()


def _probe_rows(snapshot: Snapshot, given: Given) -> list[list[dict[str, Any]]]:
    """The answers to each record's probes, as `ProbeScore` has them; generated ones too where those are wanted."""
    if not any(record.probes for record in snapshot.records):
        return [[] for _ in snapshot.records]
    new_tokens = ANSWER_TOKENS if "generated" in given.wanted else None
    found = snapshot.asked(
        ("probes", new_tokens),
        lambda model: probe_scores(model, snapshot.records, new_tokens=new_tokens, n_resamples=_ONCE),
    )
    return [[asdict(probe) for probe in probes] for probes in found.records]


def _probe_means(rows: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Means in percent by kind and measure, with intervals."""
    return probe_means([[_probe(row) for row in probes] for probes in rows]).to_dict()


def _probe(row: Mapping[str, Any]) -> ProbeScore:
    said = row["generated"]
    return ProbeScore(**{**row, "generated": None if said is None else GeneratedAnswer(**said)})


# ---- the table -------------------------------------------------------------------------------------------------

MEASURES: Registry[Measure] = Registry(
    "measure",
    (
        Measure(
            name="generated",
            meaning="greedy generations contain the wanted answer, raw and through the chat template",
            stage="generated answers",
            ask=_generated_rows,
            summarise=_of_rows(_generated_means),
            rows=True,
            since=0,
            panels=(
                _generated_panel("raw", "raw prompt", "asked by the raw prompt"),
                _generated_panel("chat", "chat template", "asked through the chat template"),
            ),
            title="Generated answers",
            share="greedy text contains the answer",
        ),
        Measure(
            name="zsre",
            meaning="zsRE token accuracy",
            stage="zsRE token accuracy",
            ask=_zsre_rows,
            summarise=_of_rows(_zsre_means),
            rows=True,
            by_format=True,
            since=1,
            title="zsRE token accuracy",
        ),
        Measure(
            name="probes",
            meaning="further questions of the records, such as portability and multi-hop",
            stage="probes",
            ask=_probe_rows,
            summarise=_of_rows(_probe_means),
            rows=True,
            since=1,
            needs=lambda record: bool(record.probes),
            needed=("a probe", "a data set with probes (docs/reference/data.md)"),
            whole_cases=True,
            title="Probes",
        ),
        Measure(
            name="said",
            meaning="greedy text begins with the new target as whole words",
            stage="what is said",
            ask=lambda snapshot, given: [record.to_dict() for record in snapshot.said],
            summarise=_of_rows(lambda rows: said_means([SaidRecord.from_dict(row) for row in rows]).to_dict()),
            rows=True,
            panels=(_SAID,),
            title="What is said",
            share="greedy text begins with the new target",
        ),
        Measure(
            name="shift",
            meaning="divergence of next-token distributions from the base on neighborhood prompts",
            stage="distributions",
            ask=_shift,
            summarise=_shift_summary,
            of_base=False,
            prepare=lambda snapshot: snapshot.neighborhood,
            since=0,
            needs=lambda record: bool(record.neighborhood_prompts),
            needed=("neighborhood_prompts, on which the shift is measured", "a data set with such prompts"),
            panels=(Panel(SIDE_EFFECTS, "Side effects", _SHIFT_COLUMNS),),
            line=lambda found: (
                f"Next token on {found['n']} neighborhood prompts: KL(base ‖ edited) mean {found['kl_mean']:.3g}, "
                f"p99 {found['kl_p99']:.3g} nats; most likely token changed on {100 * found['flips']:.1f} %"
            ),
        ),
        Measure(
            name="entropy",
            meaning="n-gram entropy of free generations",
            stage="entropy",
            ask=_entropies,
            summarise=_entropy_summary,
            since=0,
            panels=(
                Panel(
                    SIDE_EFFECTS,
                    "Side effects",
                    (
                        Column(
                            *("entropy", "entropy", "bits", "entropy.after", ".2f"),
                            "n-gram entropy of generated text after the edit; it falls where a model repeats itself",
                            base="entropy.before",
                        ),
                    ),
                ),
            ),
            curve=Curve("entropy of generated text", "bits", ENTROPY_RECORDS, _mean),
            line=lambda found: (
                f"n-gram entropy of {found['n']} free texts: {found['before']:.2f} before, "
                f"{found['after']:.2f} after (bits)"
            ),
        ),
    ),
    of=Measure,
    group="emendo.measures",
    option="--measure",
    error=ExperimentError,
)
"""Every measure by its name, in the order of summaries."""


@checked
def register_measure(measure: Measure, *, replace: bool = False) -> Measure:
    """Add a measure: configurations, ``--measure``, summaries and reports then have it.

    Args:
        measure: The entry.
        replace: Take the place of a registered one of the same name.

    Raises:
        PluginError: The name is taken.
    """
    return MEASURES.register(measure, replace=replace)


def chosen() -> dict[str, Measure]:
    """Those that are asked for by name."""
    return {name: measure for name, measure in MEASURES.items() if not measure.by_format}
