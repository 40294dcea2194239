"""`emendo export`: updates as a LoRA adapter, a whole checkpoint, a GGUF file, or a repository on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emendo.cli import options
from emendo.cli.console import Terminal
from emendo.errors import ExportError

if TYPE_CHECKING:
    from emendo.export.rounded import RoundedLayer
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
BaseName = Annotated[
    str | None,
    typer.Option("--base-name", help="How other programs find the base model, a hub id say; default: --model."),
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
    model_dtype: Annotated[
        str, typer.Option("--model-dtype", help="In which the model was edited, if --dtype was given then.")
    ] = "auto",
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
    terminal.start("writing")
    try:
        path = write_checkpoint(lm, updates, out, dtype=dtype, base_name=base_name)
    finally:
        terminal.finish()
    terminal.line(f"Checkpoint: {path}")
    terminal.result({"checkpoint": str(path), "updates": [one.id for one in updates]})


@app.command("gguf-lora")
def gguf_lora(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="Folder of the file, which is named by its content.")],
    update: Update = None,
    ledger: FromLedger = None,
    fold: Fold = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="GGUF file that will be served, to be held against the model.")
    ] = None,
    base_name: BaseName = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write updates as one LoRA adapter for llama.cpp, a GGUF file."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    updates = chosen_updates(update, ledger)
    from emendo.io.writable import check_writable

    check_writable(out)
    from emendo.export import write_gguf_adapter
    from emendo.models import load

    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    written = write_gguf_adapter(lm, updates, out, tolerance=fold, base=base, base_name=base_name)
    lost = f", folded to within {written.lost:.1e}" if fold is not None else ""
    terminal.line(f"Adapter: {written.path}")
    terminal.line(f"Rank {written.rank}{lost}, {len(written.layers)} layer(s), {written.nbytes / 1024:.0f} KiB")
    if written.distance is not None:
        terminal.line(
            f"The base's edited weights are at a relative distance of {written.distance:.1e} from the model's"
        )
    terminal.line(f"Start the server with: llama-server -m BASE.gguf --lora-scaled {written.path}:0")
    terminal.result({"adapter": written.to_dict(), "updates": [one.id for one in updates]})


@app.command("gguf")
def gguf(
    model: options.Model,
    base: Annotated[Path, typer.Option("--base", help="GGUF file of the unedited model.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    update: Update = None,
    ledger: FromLedger = None,
    device: options.Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", help="Of the edited tensors: auto (the base's, float32 if quantised), or as elsewhere."
        ),
    ] = "auto",
    model_dtype: Annotated[
        str, typer.Option("--model-dtype", help="In which the model was edited, if --dtype was given then.")
    ] = "auto",
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a base's GGUF file with the updates in it: the edited tensors dense, every other byte copied."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    updates = chosen_updates(update, ledger)
    from emendo.io.writable import check_writable_file

    check_writable_file(out)
    from emendo.export import write_gguf_model
    from emendo.models import load
    from emendo.models.loading import dtype_named

    dtype_named(dtype)
    lm = load(model, device=device, dtype=model_dtype, progress=terminal)
    written = write_gguf_model(lm, updates, out, base=base, dtype=dtype)
    changed = ", ".join(f"{layer}: {was} → {now}" for layer, (was, now) in written.types.items())
    terminal.line(
        f"Model: {written.path}, {written.nbytes / 2**20:.1f} MiB, of which {written.copied / 2**20:.1f} copied"
    )
    terminal.line(f"Edited tensors by layer: {changed}")
    terminal.line(f"The base's edited weights are at a relative distance of {written.distance:.1e} from the model's")
    terminal.result({"model": written.to_dict(), "updates": [one.id for one in updates]})


@app.command("gguf-in-place")
def gguf_in_place(
    base: Annotated[Path, typer.Option("--base", help="Quantised GGUF file that the updates were made on.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    update: Update = None,
    ledger: FromLedger = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model that was edited, if not --base; 'demo' for its own file.")
    ] = None,
    rounding: Annotated[
        str, typer.Option("--rounding", help="feedback, or nearest, which loses most of a small edit.")
    ] = "feedback",
    device: options.Device = "auto",
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the updates into a quantised GGUF file on its own grid: same size, same types, same scales."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    updates = chosen_updates(update, ledger)
    from emendo.io.writable import check_writable_file

    check_writable_file(out)
    from emendo.editing.session import EditSession
    from emendo.export import write_gguf_in_place
    from emendo.export.recorded_moments import recorded_moments
    from emendo.models import load

    layers, settings, seed = recorded_moments(updates)
    lm = load(model or base, device=device, progress=terminal)
    moments, _ = EditSession(lm, seed=seed, progress=terminal).second_moments(layers, settings)
    written = write_gguf_in_place(lm, updates, out, base=base, moments=moments, rounding=rounding)  # type: ignore[arg-type]
    terminal.line(
        f"Model: {written.path}, {written.nbytes / 2**20:.1f} MiB, {written.changed:,} bytes of tensors changed"
    )
    _show_rounded(terminal, written.layers)
    terminal.result({"model": written.to_dict(), "updates": [one.id for one in updates]})


@app.command("in-place")
def in_place(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="Folder to make; it must be absent or empty.")],
    update: Update = None,
    ledger: FromLedger = None,
    rounding: Annotated[
        str, typer.Option("--rounding", help="feedback, or nearest, which loses most of a small edit.")
    ] = "feedback",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a model in few bits (nf4, fp4, int8) with the updates on its own grid, as a Hugging Face folder."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    updates = chosen_updates(update, ledger)
    from emendo.io.whole_folder import check_absent
    from emendo.io.writable import check_writable

    check_absent(out)
    check_writable(out)
    from emendo.editing.session import EditSession
    from emendo.export import write_in_place
    from emendo.export.recorded_moments import recorded_moments
    from emendo.models import load

    layers, settings, seed = recorded_moments(updates)
    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    moments, _ = EditSession(lm, seed=seed, progress=terminal).second_moments(layers, settings)
    written = write_in_place(lm, updates, out, moments=moments, rounding=rounding)  # type: ignore[arg-type]
    terminal.line(f"Model: {written.path}")
    _show_rounded(terminal, written.layers)
    terminal.result({"model": written.to_dict(), "updates": [one.id for one in updates]})


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

    terminal.start("uploading")
    try:
        done = push_folder(folder, repo, private=private)
    finally:
        terminal.finish()
    terminal.line(f"Uploaded: {done.address}")
    if done.removed:
        terminal.line(f"Taken away, as the export has no such file: {', '.join(done.removed)}")
    terminal.result({"repo": repo, "private": private, "commit": done.address, "removed": list(done.removed)})


def _show_rounded(terminal: Terminal, layers: Sequence[RoundedLayer]) -> None:
    """What rounding left of an edit, layer by layer."""
    terminal.table(
        "What rounding left of the edit",
        ("layer", "type", "kept of the edit", "levels moved", "drift added"),
        [(str(one.layer), one.kind, f"{one.kept:.1%}", f"{one.moved:.1%}", f"{one.drift:.1e}") for one in layers],
    )


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
