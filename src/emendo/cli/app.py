"""The command `emendo`: a client of the library, and the one place that turns errors into exit codes.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Annotated, Any

import typer

from emendo.cli import (
    catalog,
    data,
    demo,
    diff,
    doctor,
    edit,
    evaluate,
    experiment,
    export,
    export_gguf,
    gate,
    harness,
    layers,
    ledger,
    moments,
    push,
    report,
    requests,
    see,
    trace,
    ui,
    updates,
    worlds,
)
from emendo.cli.console import print_json
from emendo.cli.interrupts import what_is_left
from emendo.cli.sections import SectionedGroup
from emendo.errors import EmendoError, EmendoWarning, InterruptError
from emendo.io.printable import printable
from emendo.io.versions import __version__

app = typer.Typer(
    name="emendo",
    cls=SectionedGroup,
    epilog="`emendo COMMAND --help` shows a command's options. A first look: `emendo demo`.",
    help="Edit facts inside the weights of a language model, and take them back bit for bit.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("ui")(ui.ui)
app.command("edit")(edit.edit)
app.add_typer(requests.app, name="requests")
app.add_typer(ledger.app, name="ledger")
for verb in ledger.VERBS:
    app.command(verb.__name__, hidden=True)(ledger.renamed(verb))
app.command("eval")(evaluate.evaluate)
app.command("experiment")(experiment.experiment)
app.command("gate")(gate.gate)
app.add_typer(moments.app, name="moments")
app.command("harness")(harness.harness)
app.command("report")(report.report)
app.command("data")(data.data)
app.add_typer(updates.app, name="update")
app.add_typer(export.app, name="export")
export.app.command("gguf-lora")(export_gguf.gguf_lora)
export.app.command("gguf")(export_gguf.gguf)
export.app.command("gguf-in-place")(export_gguf.gguf_in_place)
export.app.command("in-place")(export_gguf.in_place)
app.command("push")(push.push)
app.command("trace")(trace.trace)
app.command("layers")(layers.layers)
app.command("see")(see.see)
app.command("diff")(diff.diff)
app.command("methods")(catalog.methods)
app.command("models")(catalog.models)
app.command("doctor")(doctor.doctor)
app.add_typer(worlds.app, name="worlds")

_INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"emendo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of the command itself; what it is about stands where it is made."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # transformers imports torchao wherever it is installed, and what torchao has to say is not about the command.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").addFilter(lambda record: record.levelno >= logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: no terminal's alphabet ends a command
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run a command; every expected failure is one readable message on standard error and an exit code.

    With ``--json`` a failure is also one JSON document on standard output.
    """
    try:
        code = _run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where what goes wrong still has a message and a code
        return code
    except SystemExit as error:  # rich and typer end the program where the reader of standard output went away
        with suppress(OSError):
            sys.stdout.flush()
        _drop_output()
        return error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:
        # The reader of standard output went away (`emendo methods | head`); nothing is wrong on our side.
        _drop_output()
        return 1
    except OSError as error:
        if not _output_fails():
            raise
        _drop_output()
        with suppress(OSError):
            print(f"emendo: cannot write to standard output: {error.strerror}; send it elsewhere", file=sys.stderr)
        return 1


@cache
def _command() -> Any:
    """The commands and all their options, read off the functions: a tenth of a second, once a process."""
    return typer.main.get_command(app)


def _run(arguments: list[str]) -> int:
    try:
        with _notes():
            result = _command().main(args=arguments, prog_name="emendo", standalone_mode=False)
        if result == _INTERRUPTED:  # typer has turned Ctrl-C into this code, without a word
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except InterruptError as error:
        return _fail(arguments, "Interrupted", str(error), error.exit_code)
    except EmendoError as error:
        return _fail(arguments, type(error).__name__, str(error), error.exit_code)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        # Whatever looks at a path first finds it; no file of that name can be meant.
        name = f"{str(error.filename)[:60]}…"
        return _fail(arguments, "InputError", f"no file system takes a name as long as {name!r}; expected a path", 2)
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail(arguments, "Interrupted", what_is_left(arguments), _INTERRUPTED)
    except typer.TyperException as error:
        # A usage error; its text is made on demand.
        return _fail(arguments, type(error).__name__, getattr(error, "format_message", error.__str__)(), 2)


def _output_fails() -> bool:
    """Whether it is standard output that cannot be written: it is tried."""
    try:
        if sys.stdout is not None:
            print(flush=True)
        return False
    except OSError:
        return True


def _drop_output() -> None:
    """Standard output to nowhere, so that the interpreter's own last flush of it succeeds."""
    with suppress(OSError):  # of an output that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _notes() -> Iterator[None]:
    """Emendo's own warnings as lines on standard error, each text once; those of others as Python shows them."""
    told: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, EmendoWarning):
            shown(message, category, *where, **more)
        elif (text := str(message)) not in told:
            told.add(text)
            print("emendo: note:", printable(text, keep="\n"), file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", EmendoWarning)
        shown = warnings.showwarning
        warnings.showwarning = show
        yield


def _fail(arguments: list[str], kind: str, message: str, code: int) -> int:
    print("emendo:", printable(message, keep="\n"), file=sys.stderr)
    if "--json" in arguments:
        print_json({"error": {"type": kind, "message": message, "exit_code": code}})
    return code
