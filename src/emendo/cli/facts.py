"""Facts that a command takes from a file or a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from emendo.errors import RequestError

if TYPE_CHECKING:
    from emendo.cli.console import Terminal
    from emendo.requests import EditRecord, Prompt

Requests = Annotated[
    str | None,
    typer.Option(
        "--requests", metavar="FILE", help="Facts in any form that `emendo data` reads: JSON, JSONL, CSV, hf:... ."
    ),
]
Chat = Annotated[bool, typer.Option("--chat", help="Prompts are questions, asked in the model's chat template.")]
System = Annotated[str | None, typer.Option("--system", help="System prompt of these questions (--chat).")]
Format = Annotated[str, typer.Option("--format", help="Format of the facts; see `emendo data --formats`.")]


def asked_in_chat(records: list[EditRecord], *, chat: bool, system: str | None, join: str) -> list[EditRecord]:
    """The records with their prompts as questions, under --chat.

    Raises:
        RequestError: --system without --chat, or no text; or --join with --chat.
    """
    from emendo.requests import in_chat

    _check_system(chat=chat, system=system)
    if not chat:
        return records
    if join != "auto":
        raise RequestError(
            f"--join {join} has no meaning with --chat, where the template joins the answer; leave it out"
        )
    return [in_chat(record, system=system) for record in records]


def prompts_in_chat(prompts: list[str], *, chat: bool, system: str | None) -> list[Prompt]:
    """Texts as they are, or under --chat as questions.

    Raises:
        RequestError: --system without --chat, or no text.
    """
    from emendo.requests import Conversation
    from emendo.requests.chat import asked_with

    _check_system(chat=chat, system=system)
    return [Conversation(asked_with(system).around(prompt)) for prompt in prompts] if chat else [*prompts]


def _check_system(*, chat: bool, system: str | None) -> None:
    if system is not None and not chat:
        raise RequestError("--system is the system prompt of questions that are asked in chat; expected --chat too")


def read_requests(terminal: Terminal, requests: str, format: str) -> list[EditRecord]:
    """The records of --requests, all or none, with a word on what they were read from.

    Raises:
        DatasetError: They cannot be read, or hold rows that are no records.
    """
    from emendo.datasets import load_records

    loaded = load_records(requests, format=format, strict=True)
    source = loaded.source
    left_out = f"; {len(loaded.dropped)} probe(s) left out, see emendo data" if loaded.dropped else ""
    terminal.message(
        f"{source['records']:,} request(s) from {source['rows']:,} row(s) of {requests} "
        f"({source['container']}, format {source['format']}){left_out}"
    )
    return list(loaded.records)
