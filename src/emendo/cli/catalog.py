"""`emendo methods` and `emendo models`: what there is, from the tables that the engine uses."""

from __future__ import annotations

from emendo.cli.console import Terminal
from emendo.cli.options import Json, Quiet


def methods(json_output: Json = False, quiet: Quiet = False) -> None:
    """List the editing methods: one row a method, one column an axis of the engine."""
    from emendo.methods import METHODS

    terminal = Terminal(json_output=json_output, quiet=quiet)
    terminal.table(
        "Methods (every setting with its origin: emendo edit ... --plan-only)",
        ("method", "solve", "layers", "requests", "contexts", "key", "target", "f(C)"),
        (
            (
                m.name,
                "equality" if m.memorization.s == 0 else f"least squares, s = {m.memorization.s:g}",
                f"{m.span}, {m.distribution}",
                m.batching.replace("_", " "),
                m.contexts.scheme,
                f"{m.keys.average.replace('_', ' ')}, at {m.keys.constraint}",
                m.target.site,
                f"{m.preservation.weight:g} C" + (f" + {m.preservation.ridge:g} I" if m.preservation.ridge else ""),
            )
            for m in METHODS.values()
        ),
    )
    for m in METHODS.values():
        terminal.line(f"{m.name}: {m.source}")
    terminal.result({"methods": {m.name: {"source": m.source, "settings": m.settings()} for m in METHODS.values()}})


def models(json_output: Json = False, quiet: Quiet = False) -> None:
    """List the model families that can be edited, and those that are refused with the reason."""
    from emendo.models import ARCHITECTURES, REFUSALS, WRAPPERS, ArchitectureSpec

    def edited_map(row: ArchitectureSpec) -> str:
        return f"{row.decoder}.{row.blocks}.N.{row.down_projection}"

    def block(row: ArchitectureSpec) -> str:
        facts = ["parallel" if row.parallel else "sequential"]
        facts += ["norm after the MLP"] if row.mlp_normed else []
        facts += [f"MLP times {row.mlp_scale}"] if row.mlp_scale else []
        return ", ".join(facts)

    terminal = Terminal(json_output=json_output, quiet=quiet)
    rows = list(ARCHITECTURES.values())
    terminal.table(
        "Supported families (config.model_type)",
        ("model_type", "edited map", "block", "examples"),
        ((row.model_type, edited_map(row), block(row), row.examples) for row in rows),
    )
    terminal.table(
        "Multimodal models around one of them (their text decoder is edited)",
        ("model_type", "decoder"),
        sorted(WRAPPERS.items()),
    )
    reasons = dict.fromkeys(REFUSALS.values())
    terminal.table(
        "Refused",
        ("reason", "model_type"),
        ((why, ", ".join(sorted(name for name, reason in REFUSALS.items() if reason == why))) for why in reasons),
    )
    terminal.result(
        {
            "supported": {
                row.model_type: {
                    "edited_map": edited_map(row),
                    "parallel": row.parallel,
                    "mlp_normed": row.mlp_normed,
                    "mlp_scale": row.mlp_scale,
                    "examples": row.examples,
                }
                for row in rows
            },
            "wrappers": WRAPPERS,
            "refused": REFUSALS,
        }
    )
