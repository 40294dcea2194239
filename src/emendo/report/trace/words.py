"""What a trace says in words and in rows: how it was made, where the largest effects are."""

from __future__ import annotations

from collections.abc import Sequence

from emendo.report.heat import shown_token
from emendo.report.trace.heat import KIND_NAMES
from emendo.tracing import Average, FactTrace, Trace

_METRICS = {
    "probability": "probability of the answer's first token",
    "log-probability": "log-probability of the answer's first token (nats)",
    "logit-difference": "logit of the answer's first token less that of the token preferred when corrupted",
}


def explain(trace: Trace) -> list[tuple[str, str]]:
    """How the trace was made, as pairs of a name and a text."""
    made, settings = trace.made, trace.made["settings"]
    model = made["model"]
    samples = sorted({len(fact.low) for fact in trace.facts})
    count = str(samples[0]) if len(samples) == 1 else f"{samples[0]} to {samples[-1]}"
    if settings["corruption"] == "swap":
        corruption = f"other subjects of as many tokens in its place; {count} for each fact"
    else:
        corruption = (
            f"{'normal' if settings['corruption'] == 'noise' else 'uniform'} noise on the embeddings of the subject's "
            f"tokens, scale {settings['noise']:g} × {made['deviation']:.4f} (standard deviation of the embeddings of "
            f"{made['deviation_subjects']} subjects), {count} draws, seed {settings['seed']}"
        )
    window = f"{settings['window']} layers around the one that is named" if _windowed(trace) else "none"
    return [
        ("Model", f"{model['name']} ({model['model_type']}, {made['dtype']}, weights {model['weights_sha256'][:12]}…)"),
        ("Measured", _METRICS[settings["metric"]]),
        ("Effect", "score with one state restored less the mean score of the corrupted runs"),
        ("Corrupted by", corruption),
        ("Window of MLP and attention", window),
        ("Text in front of prompts", repr(settings["lead"]) if settings["lead"] else "none"),
        ("Cells", "all exact; largest difference from an ordinary forward pass on the cells that were checked "
         f"{max(fact.checked for fact in trace.facts):.1e}"),
        *_sink(trace),
    ]  # fmt: skip


def peaks(trace: Trace, averages: Sequence[Average]) -> list[str]:
    """The layer of the largest average effect at the subject's last token and at the text's last, for each kind."""
    lines = []
    for kind in trace.kinds:
        for position in ("last subject", "last"):
            for found in averages:
                if (found.kind, found.position) == (kind, position):
                    place = found.mean[found.peak]
                    interval = found.interval[found.peak]
                    around = "" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
                    lines.append(
                        f"{KIND_NAMES[kind]} at the {position} token: {place:+.3f}{around} at layer {found.peak} "
                        f"(n {found.n})"
                    )
    return lines


def fact_row(fact: FactTrace, kinds: Sequence[str]) -> dict[str, str]:
    """A fact as cells of a table."""
    row = {
        "fact": fact.text,
        "answer": fact.answer.strip(),
        "clean": f"{fact.high:.3f}",
        "corrupted": f"{float(fact.low.mean()):.3f}",
        "total effect": f"{fact.total_effect:+.3f}",
    }
    for kind in kinds:
        token, layer = fact.strongest(kind)
        effect, place = fact.effects(kind)[token, layer], shown_token(fact.tokens[token])
        row[f"largest, {kind}"] = f"{effect:+.3f} at {place}, layer {layer}"
    return row


def _windowed(trace: Trace) -> bool:
    return any(kind in ("mlp", "attention") for kind in trace.kinds)


def _sink(trace: Trace) -> list[tuple[str, str]]:
    """A warning where the noise hits the first token of texts, which attention uses as a sink."""
    opening = sum(fact.begin == 0 for fact in trace.facts)
    if not opening:
        return []
    text = (
        f"in {opening} of {len(trace.facts)} facts the subject opens the text and there is no BOS token: the noise "
        "then also hits the attention sink, which says little about the fact. Compare with text in front (--lead)"
    )
    return [("Mind", text)]
