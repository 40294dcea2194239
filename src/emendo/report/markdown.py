"""A report of an edit in Markdown, from the same document that report.json holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

SHOWN_SCORES = ("ES", "PS", "NS", "S", "EA", "PA", "NA")


def markdown_report(document: dict[str, Any]) -> str:
    """The report as Markdown text.

    Args:
        document: As `emendo.report.folder.report_document` makes it.
    """
    method, base = document["method"], document["base"]
    lines = [
        f"# {len(document['requests'])} edit(s) of {base.get('name', 'a model')} with {method['name']}",
        "",
        f"Base weights `{base.get('weights_sha256', '')[:16]}…`, update `{document['update']['id'][:16]}…` "
        f"({document['update']['bytes']:,} bytes, layers {document['update']['layers']}, "
        f"rank {document['update']['rank']}), seed {document['seed']}.",
        "",
    ]
    if (judgement := document["judgement"]) is not None:
        lines += _judgement(judgement)
    lines += ["## What the edit does to each layer", ""]
    lines += _table(
        ("layer", "‖ΔW‖", "‖ΔW‖/‖W‖", "tr(ΔCΔᵀ)/tr(WCWᵀ)", "constraint error", "effective λ"),
        (
            (
                layer["layer"],
                f"{layer['update_norm']:.3f}",
                f"{layer['relative_norm']:.4f}",
                f"{layer['relative_cost']:.2e}",
                f"{max(s['constraint_error'] for s in layer['solves']):.1e}",
                f"{layer['solves'][0]['effective_lambda']:g}",
            )
            for layer in document["layers"]
        ),
    )
    lines += ["## Target search", ""]
    lines += _table(
        ("subject", "target", "NLL (nats)", "KL (nats)", "evaluations", "stopped by"),
        (
            (r["subject"], r["target"], f"{t['nll']:.3f}", f"{t['kl']:.3f}", t["evaluations"], t["stopped"])
            for r, t in zip(document["requests"], document["targets"], strict=True)
        ),
    )
    lines += ["## Settings and where they come from", ""]
    lines += _table(
        ("setting", "value", "origin"),
        ((f"`{name}`", value, method["origins"][name]) for name, value in method["settings"].items()),
    )
    lines += ["## Seconds by stage", ""]
    lines += _table(("stage", "seconds"), ((name, f"{s:.1f}") for name, s in document["seconds"].items()))
    return "\n".join(lines)


def _judgement(judgement: dict[str, Any]) -> list[str]:
    before, after = judgement["before"]["scores"], judgement["after"]["scores"]
    n = after["n"]
    lines = [f"## Scores (percent, n = {n}, scored at once after one batch)", ""]
    lines += _table(
        ("metric", "before", "after", f"{after['bootstrap']['confidence']:.0%} interval after"),
        (
            (name, _percent(before[name]), _percent(after[name]), _interval(after["intervals"][name]))
            for name in SHOWN_SCORES
            if after[name] is not None
        ),
    )
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
        ("", "prompt", "before", "after"),
        ((s["kind"], s["prompt"], s["before"], s["after"]) for s in judgement["samples"]),
    )
    return lines


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "–" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(" ".join(str(cell).replace("|", "\\|").split()) for cell in cells) + " |"

    return [line(header), line("---" for _ in header), *(line(row) for row in rows), ""]
