"""`emendo export`: updates as a LoRA adapter, a whole checkpoint, a GGUF file, or a repository on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emendo.cli import options
from emendo.cli.console import Terminal
from emendo.errors import ExportError

if TYPE_CHECKING:
    from emendo.updates.update import ModelUpdate

app = typer.Typer(
    help="Take edits to other programs: a PEFT adapter, a checkpoint, GGUF files, the Hugging Face Hub.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Update = Annotated[
    list[Path] | None,
    typer.Option("--update", help="Update file; may be repeated, in the order in which they were made."),
]
FromLedger = Annotated[Path | None, typer.Option("--ledger", help="Ledger, for all of its active edits.")]
Fold = Annotated[
    float | None,
    typer.Option(
        "--fold", min=0.0, max=1.0, help="Fold to the smallest rank within this relative distance; default: exact."
    ),
]
ModelDtype = Annotated[
    str, typer.Option("--model-dtype", help="Dtype in which the model was edited, if --dtype was given then.")
]
BaseName = Annotated[
    str | None,
    typer.Option("--base-name", help="How other programs find the base model, such as a hub id; default: --model."),
]


@app.command("peft")
def peft(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="Folder in which the adapter's own folder is made.")],
    update: Update = None,
    ledger: FromLedger = None,
    fold: Fold = None,
    base_name: BaseName = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write updates as one LoRA adapter that peft, transformers and vLLM load."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    updates = chosen_updates(update, ledger)
    from emendo.io.writable import check_writable

    check_writable(out)
    from emendo.export import write_adapter
    from emendo.models import load

    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    written = write_adapter(lm, updates, out, tolerance=fold, base_name=base_name)
    padded = "" if written.rank == written.exact_rank else f" (padded from {written.exact_rank})"
    lost = f", folded to within {written.lost:.1e}" if fold is not None else ""
    terminal.line(f"Adapter: {written.path}")
    terminal.line(f"Rank {written.rank}{padded}{lost}, {len(written.layers)} layer(s), {written.nbytes / 1024:.0f} KiB")
    terminal.result({"adapter": written.to_dict(), "updates": [one.id for one in updates]})


@app.command("checkpoint")
def checkpoint(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="Folder to make; it must be absent or empty.")],
    update: Update = None,
    ledger: FromLedger = None,
    base_name: BaseName = None,
    device: options.Device = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the files: auto (the model's), float32, bfloat16 or float16.")
    ] = "auto",
    model_dtype: ModelDtype = "auto",
    load_in: options.LoadIn = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the whole edited model as a Hugging Face folder, which needs no Emendo."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    updates = chosen_updates(update, ledger)
    from emendo.io.whole_folder import check_absent
    from emendo.io.writable import check_writable

    check_absent(out)
    check_writable(out)
    check_writable(out.parent)  # where the folder is drafted
    from emendo.export import write_checkpoint
    from emendo.models import load
    from emendo.models.loading import dtype_named

    dtype_named(dtype)

    lm = load(model, device=device, dtype=model_dtype, load_in=load_in, progress=terminal)
    path = write_checkpoint(lm, updates, out, dtype=dtype, base_name=base_name, progress=terminal)
    terminal.line(f"Checkpoint: {path}")
    terminal.result({"checkpoint": str(path), "updates": [one.id for one in updates]})


@app.command("hub")
def hub(
    folder: Annotated[Path, typer.Argument(help="Folder that `emendo export peft` or `checkpoint` wrote.")],
    repo: Annotated[str, typer.Option("--repo", help="owner/name on the hub.")],
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see the repository.")] = True,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Upload an exported folder to the Hugging Face Hub, with the token in HF_TOKEN."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.export.hub import push_folder

    done = push_folder(folder, repo, private=private, progress=terminal)
    terminal.line(f"Uploaded: {done.address}")
    if done.removed:
        terminal.line(f"Taken away, as the export has no such file: {', '.join(done.removed)}")
    terminal.result({"repo": repo, "private": private, "commit": done.address, "removed": list(done.removed)})


def chosen_updates(paths: list[Path] | None, ledger: Path | None, given_as: str = "--update FILE") -> list[ModelUpdate]:
    """The update files, or the active updates of a ledger, read before a model is.

    Args:
        paths: The files.
        ledger: The ledger.
        given_as: How the command takes files.

    Raises:
        ExportError: Both or none of them are given, or the ledger has no active update.
    """
    from emendo.updates.update import ModelUpdate

    if bool(paths) == (ledger is not None):
        found = "both" if paths else "neither"
        raise ExportError(f"expected update files ({given_as}) or a ledger (--ledger FOLDER), found {found}")
    if ledger is None:
        return [ModelUpdate.load(path) for path in paths or ()]
    from emendo.ledger import EditLedger

    updates = list(EditLedger(ledger).updates())
    if not updates:
        raise ExportError(
            f"the ledger {str(ledger)!r} has no active edit; expected at least one (emendo edit --ledger)"
        )
    return updates
