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
    from emendo.models.architecture import ARCHITECTURES, REFUSALS

    terminal = Terminal(json_output=json_output, quiet=quiet)
    terminal.table(
        "Supported families (config.model_type)",
        ("model_type", "edited map", "examples"),
        (
            (row.model_type, f"{row.decoder}.{row.blocks}.N.{row.down_projection}", row.examples)
            for row in ARCHITECTURES.values()
        ),
    )
    terminal.table("Refused", ("model_type", "reason"), sorted(REFUSALS.items()))
    terminal.result(
        {
            "supported": {
                row.model_type: {
                    "edited_map": f"{row.decoder}.{row.blocks}.N.{row.down_projection}",
                    "examples": row.examples,
                }
                for row in ARCHITECTURES.values()
            },
            "refused": REFUSALS,
        }
    )
