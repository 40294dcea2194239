"""A report of an edit in Markdown, from the same document that report.json holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from emendo.arguments import checked
from emendo.io.printable import printable
from emendo.report.look_inside import LOOKS
from emendo.report.tables import added_ridge_note, layer_table, score_table, target_table, training_table
from emendo.updates.rounding import LEAST_KEPT

NOT_JUDGED = "Nothing was judged: what this edit does to its facts, their neighbors and other text was not measured"
"""Said where a judgement would stand."""

_ROUNDED = (
    "**Rounding to the model's dtype loses part of this edit** (`kept by rounding`). Keep it as an adapter over the "
    "unedited base (`emendo export peft`), or load and write the model in float32 (`--dtype float32`)."
)


@checked
def markdown_report(document: dict[str, Any]) -> str:
    """The report as Markdown text.

    Args:
        document: As `emendo.report.folder.report_document` makes it.
    """
    method, base = document["method"], document["base"]
    lines = [
        f"# {printable(_what(document['requests']))} ({base.get('name', 'a model')}, method {method['name']})",
        "",
        *_verdict(document.get("verdict")),
        f"Base weights `{base.get('weights_sha256', '')[:16]}…`, update `{document['update']['id'][:16]}…` "
        f"({document['update']['bytes']:,} bytes, layers {document['update']['layers']}, "
        f"rank {document['update']['rank']}), seed {document['seed']}.",
        "",
    ]
    if (judgement := document["judgement"]) is not None:
        lines += _judgement(judgement)
    else:
        lines += [f"{NOT_JUDGED}.", ""]
    if (gate := document.get("gate")) is not None:
        lines += _gate(gate)
    lines += ["## What the edit does to each layer", ""]
    lines += _table(*layer_table(document)) if document["layers"] else _unwritten(document)
    if any(layer.get("kept") is not None and layer["kept"] < LEAST_KEPT for layer in document["layers"]):
        lines += [_ROUNDED, ""]
    if document["targets"]:
        lines += ["## Target search", "", *_table(*target_table(document))]
    if note := added_ridge_note(document):
        lines += [note, ""]
    lines += _training(document)
    lines += [line for warning in document["warnings"] for line in (f"**{printable(warning)}**", "")]
    if document["layers"]:
        lines += ["## Look inside", "", "Run in this folder, each command makes the page beside it:", ""]
        lines += _table(
            ("what", "command", "page"),
            ((look.what, f"`{look.command}`", f"[{look.link}]({look.link})") for look in LOOKS),
        )
    lines += ["## Settings and where they come from", ""]
    lines += _table(
        ("setting", "value", "origin"),
        (
            (f"`{name}`", "none" if value is None else value, method["origins"][name])
            for name, value in method["settings"].items()
        ),
    )
    lines += ["## Seconds by stage", ""]
    lines += _table(("stage", "seconds"), ((name, f"{s:.1f}") for name, s in document["seconds"].items()))
    return "\n".join(lines)


def _what(requests: Sequence[dict[str, Any]]) -> str:
    """What was edited, in a heading."""
    if len(requests) == 1:
        return f"{requests[0]['subject']} → {requests[0]['target'].strip()}"
    return f"{len(requests)} facts"


def _verdict(verdict: dict[str, Any] | None) -> list[str]:
    if verdict is None:
        return []
    missed = [
        f"* not said: {printable(m['prompt'])} → {printable(m['says'])}, not {printable(m['target'])}"
        for m in verdict["misses"]
    ]
    return [f"**Verdict:** {verdict['text']}", "", *missed, *([""] if missed else [])]


def _judgement(judgement: dict[str, Any]) -> list[str]:
    after = judgement["after"]["scores"]
    lines = [f"## Scores (percent, n = {after['n']}, scored right after the edit)", ""]
    lines += _table(*score_table(judgement))
    lines += [f"* {note}" for note in after["notes"]] + ([""] if after["notes"] else [])
    ppl = judgement["perplexity"]
    lines += [
        f"Perplexity on the packaged text: {ppl['before']:.2f} before, {ppl['after']:.2f} after, "
        f"ratio {ppl['ratio']:.4f}.",
        "",
        "## What the model says",
        "",
    ]
    lines += _table(
        ("", "prompt", "before", "after", ""),
        ((s["kind"], s["prompt"], s["before"], s["after"], s.get("mark", "")) for s in judgement["samples"]),
    )
    return lines


def _gate(gate: dict[str, Any]) -> list[str]:
    """Every check of the gate, and whether its verdict was overridden."""
    verdict = "passes" if gate["passed"] else "fails, and was overridden" if gate["forced"] else "fails"
    return [
        f"## Gate: the edit {verdict}",
        "",
        *_table(
            ("check", "outcome", "finding"),
            ((check["name"], check["outcome"], check["words"]) for check in gate["checks"]),
        ),
    ]


def _unwritten(document: dict[str, Any]) -> list[str]:
    """Of an edit that is no update: the facts that are put in front of prompts."""
    return [
        "No weights change. After the edit every prompt is asked with its fact in front of it:",
        "",
        *_table(("subject", "target"), ((r["subject"], r["target"]) for r in document["requests"])),
    ]


def _training(document: dict[str, Any]) -> list[str]:
    training = document["training"]
    if training is None or not training["losses"]:
        return []
    losses = training["losses"]
    return [
        "## Training",
        "",
        f"{training['passes']} pass(es), {training['updates']} step(s), stopped by {training['stopped']}; mean loss "
        f"{losses[0]:.3f} nats in the first pass, {losses[-1]:.3f} in the last.",
        "",
        *_table(*training_table(document)),
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(printable(" ".join(str(cell).replace("|", "\\|").split())) for cell in cells) + " |"

    return [line(header), line("---" for _ in header), *(line(row) for row in rows), ""]
