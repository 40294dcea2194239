"""`emendo requests expand`: neighbors, paraphrases and questions for requests, to read, edit and judge by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli import facts, options
from emendo.cli.console import Terminal, shortened
from emendo.errors import OutputError
from emendo.io.printable import quoted

if TYPE_CHECKING:
    from emendo.expansion import Expansion, Found
    from emendo.requests import EditRecord

app = typer.Typer(help="Files of facts.", no_args_is_help=True, rich_markup_mode=None)

_MOST_SHOWN, _MOST_CHARACTERS = 20, 60

_HEAD = (
    "Neighbors, paraphrases and questions were GUESSED by `emendo requests expand` from the words of each prompt.",
    "Read them, change what is wrong, and take a field out of `guessed` when you have read it; verdicts name the rest.",
    "Neighbors (neighborhood_prompts, and probes of the kind locality) were asked: {model} answers each of them.",
    "Paraphrases and questions (probes of the kind question) were not asked. chat: true means the chat template.",
)


@app.callback()
def _requests() -> None:
    """Makes `expand` a command of its own rather than the only one."""


@app.command("expand")
def expand(
    file: Annotated[
        str,
        typer.Argument(help="Facts in any form that `emendo data` reads: JSON, JSONL, CSV, hf:... .", metavar="FILE"),
    ],
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="File for the requests: .yaml with notes, or .jsonl.")],
    format: facts.Format = "auto",
    neighbors: Annotated[
        int, typer.Option("--neighbors", min=1, help="Most neighbors of a fact, and as many in chat.")
    ] = 5,
    paraphrases: Annotated[int, typer.Option("--paraphrases", min=1, help="Most of a fact.")] = 2,
    questions: Annotated[
        int, typer.Option("--questions", min=1, help="Most of a fact, plain and as many in chat.")
    ] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that --out names.")] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Propose neighbors that the model answers, paraphrases and questions for facts; written to a file to edit."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.datasets.writing import check_suffix
    from emendo.io.writable import check_writable_file

    check_suffix(out)
    if out.exists() and not overwrite:
        raise OutputError(f"{str(out)!r} is there already; give another --out, or --overwrite")
    check_writable_file(out)
    records = facts.read_requests(terminal, file, format)

    from emendo.datasets import write_records
    from emendo.expansion import expand_records
    from emendo.models import load

    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    expansion = expand_records(
        lm, records, neighbors=neighbors, paraphrases=paraphrases, questions=questions, progress=terminal
    )
    head = [line.format(model=model) for line in _HEAD]
    write_records(out, expansion.records, head=head, notes=[_note(found) for found in expansion.found])
    _show(terminal, records, expansion)
    terminal.line(f"Requests: {out}")
    terminal.line(
        "All of it is guessed from the words of the prompts; read the file before you trust it.", style="yellow"
    )
    terminal.line(
        f"Next: emendo edit --model {quoted(model)} --requests {quoted(out)} --gate default --out DIR",
        unbroken=True,
    )
    terminal.result(_document(expansion) | {"file": str(out)})


def _note(found: Found) -> str:
    """The line above a record: what it was taken for, and how many neighbors were answered."""
    relation = found.recognition.relation
    if relation is None:
        return f"Nothing was proposed: {found.recognition.why}. Write paraphrases and neighbors of your own."
    kept = f"; left as they were: {', '.join(found.kept)}" if found.kept else ""
    return (
        f"Taken for: {relation.name} ({found.recognition.why}). Neighbors answered: {_of(found.neighbors)} asked in "
        f"its own words, {_of(found.neighbors_in_chat)} in chat{kept}."
    )


def _of(counts: tuple[int, int]) -> str:
    return f"{counts[1]} of {counts[0]}"


def _show(terminal: Terminal, records: list[EditRecord], expansion: Expansion) -> None:
    """A line for each of the first requests, sums over all, and what nothing was proposed for."""
    pairs = list(zip(records, expansion.records, expansion.found, strict=True))
    known = [(old, new, found) for old, new, found in pairs if found.recognition.relation is not None]
    if known:
        terminal.table(
            "Guessed from the prompts; neighbors that the model answers, of those that were asked",
            ("subject", "taken for", "neighbors", "in chat", "paraphrases", "questions"),
            [
                (
                    shortened(old.request.subject, _MOST_CHARACTERS),
                    found.recognition.relation.name if found.recognition.relation else "",
                    _of(found.neighbors),
                    _of(found.neighbors_in_chat),
                    str(len(new.paraphrase_prompts)),
                    str(sum(probe.kind == "question" for probe in new.probes)),
                )
                for old, new, found in known[:_MOST_SHOWN]
            ],
        )
    if len(known) > _MOST_SHOWN:
        terminal.line(f"and {len(known) - _MOST_SHOWN} more (the file has all)")
    asked = [sum(found.neighbors[at] for _, _, found in known) for at in (0, 1)]
    in_chat = [sum(found.neighbors_in_chat[at] for _, _, found in known) for at in (0, 1)]
    terminal.line(
        f"{len(known)} of {len(records)} facts recognized; the model answers {asked[1]} of {asked[0]} neighbors, and "
        f"in chat {in_chat[1]} of {in_chat[0]}."
    )
    unknown = [(old, found) for old, _, found in pairs if found.recognition.relation is None]
    for old, found in unknown[:_MOST_SHOWN]:
        text = shortened(old.request.text, _MOST_CHARACTERS)
        terminal.line(f"Not recognized: {text!r}: {found.recognition.why}", style="yellow")
    if len(unknown) > _MOST_SHOWN:
        terminal.line(f"and {len(unknown) - _MOST_SHOWN} more that are not recognized", style="yellow")
    if unknown:
        terminal.line("Give their relation (a name of `relation:` in the file) or write neighbors of your own.")


def _document(expansion: Expansion) -> dict[str, Any]:
    return {
        "requests": [
            {
                "id": record.request.label,
                "relation": found.recognition.relation.name if found.recognition.relation else None,
                "why": found.recognition.why,
                "neighbors": {"asked": found.neighbors[0], "answered": found.neighbors[1]},
                "neighbors_in_chat": {"asked": found.neighbors_in_chat[0], "answered": found.neighbors_in_chat[1]},
                "kept": list(found.kept),
                "guessed": list(record.guessed),
            }
            for record, found in zip(expansion.records, expansion.found, strict=True)
        ]
    }
