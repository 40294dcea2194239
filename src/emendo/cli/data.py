"""`emendo data`: what a data set holds, row by row accounted for, and the formats that are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli import options
from emendo.cli.console import Terminal
from emendo.errors import InputError

if TYPE_CHECKING:
    from emendo.datasets import LoadedRecords

_SHOWN = 10


def data(
    file: Annotated[
        str | None,
        typer.Argument(help="JSON, JSONL or CSV file, or hf:OWNER/NAME@COMMIT[:CONFIG[:SPLIT]].", metavar="[FILE]"),
    ] = None,
    format: Annotated[str, typer.Option("--format", help="Name of the format; see --formats.")] = "auto",
    formats: Annotated[bool, typer.Option("--formats", help="List the formats.")] = False,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Records to show.")] = 3,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what a data set of facts holds: format, rows, hash, what was rejected and why."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    if formats:
        _list_formats(terminal)
        return
    if file is None:
        raise InputError("no data set is named; expected a file or hf:OWNER/NAME@COMMIT, or --formats")
    from emendo.datasets import load_records

    loaded = load_records(file, format=format)
    _show(terminal, loaded, examples)
    terminal.result(
        {
            **loaded.source,
            "contents": _contents(loaded),
            "rejected_rows": [{"line": row.line, "reason": row.reason} for row in loaded.rejected],
            "dropped_probes": [{"line": row.line, "reason": row.reason} for row in loaded.dropped],
            "examples": [record.to_dict() for record in loaded.records[:examples]],
        }
    )


def _list_formats(terminal: Terminal) -> None:
    from emendo.datasets import FORMATS

    terminal.table(
        "Formats of data sets, told from the rows or named with --format",
        ("format", "what", "recognised by", "source", "licence"),
        (
            (entry.name, entry.title, entry.recognised_by.replace("`", ""), entry.source, entry.licence)
            for entry in FORMATS.values()
        ),
    )
    terminal.line("What becomes of the fields of each: docs/reference/data.md")
    terminal.result(
        {
            "formats": {
                entry.name: {
                    "title": entry.title,
                    "has": sorted(entry.has),
                    "lacks": list(entry.lacks),
                    "recognised": not entry.by_name_only,
                    "reads": entry.reads,
                    "source": entry.source,
                    "licence": entry.licence,
                }
                for entry in FORMATS.values()
            }
        }
    )


def _show(terminal: Terminal, loaded: LoadedRecords, examples: int) -> None:
    """The account, the bad rows and a few records, for people."""
    source = loaded.source
    terminal.table(
        str(source["source"]),
        ("property", "value"),
        [
            *((name, source[name]) for name in ("format", "container", "sha256")),
            *((name, source[name]) for name in ("revision", "config", "split", "fingerprint") if name in source),
            ("rows", f"{source['rows']}, {source['kept']} kept, {source['rows'] - source['kept']} rejected"),
            *_contents(loaded).items(),
        ],
    )
    for title, entries, counts in (
        ("Rejected rows", loaded.rejected, source["rejected"]),
        ("Probes left out of records", loaded.dropped, source["dropped"]),
    ):
        if entries:
            terminal.table(f"{title}, by reason", ("rows", "reason"), ((n, reason) for reason, n in counts.items()))
            more = f", first {_SHOWN} of {len(entries)}" if len(entries) > _SHOWN else ""
            terminal.table(
                f"{title}{more}", ("line", "reason"), ((entry.line, entry.reason) for entry in entries[:_SHOWN])
            )
    for record in loaded.records[:examples]:
        terminal.line(f"{record.request.label}: {record.request.text} → {record.request.target}")
        terminal.line(f"    true before: {record.target_true or 'not given'}")


def _contents(loaded: LoadedRecords) -> dict[str, Any]:
    """How many records there are and what they carry, by field."""
    from emendo.requests import PROBE_KINDS, PROMPT_LISTS

    records = loaded.records
    counts: dict[str, Any] = {
        "records": len(records),
        "distinct subjects": len({record.request.subject for record in records}),
        "cases": len({record.case for record in records if record.case}),
        "with target_true": sum(record.target_true is not None for record in records),
        "with relation": sum(record.relation is not None for record in records),
    }
    counts |= {name: sum(len(getattr(record, name)) for record in records) for name in PROMPT_LISTS}
    counts |= {
        f"{kind} probes": sum(probe.kind == kind for record in records for probe in record.probes)
        for kind in PROBE_KINDS
    }
    return {name: count for name, count in counts.items() if count}
