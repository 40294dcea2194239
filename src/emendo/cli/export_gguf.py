"""`emendo export` in few bits and for llama.cpp: GGUF files, and updates on a quantised model's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emendo.cli import options
from emendo.cli.console import Terminal
from emendo.cli.export import BaseName, Fold, FromLedger, ModelDtype, Update, chosen_updates

if TYPE_CHECKING:
    from emendo.export.rounded import RoundedLayer
    from emendo.models import EditableModel
    from emendo.shapes import Moment
    from emendo.solve import BlockMoment
    from emendo.updates.update import ModelUpdate

Rounding = Annotated[str, typer.Option("--rounding", help="feedback, or nearest, which loses most of a small edit.")]


def gguf_lora(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="Folder of the file, which is named by its content.")],
    update: Update = None,
    ledger: FromLedger = None,
    fold: Fold = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="GGUF file that will be served, to be compared with the model.")
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
    model_dtype: ModelDtype = "auto",
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
    written = write_gguf_model(lm, updates, out, base=base, dtype=dtype, progress=terminal)
    changed = ", ".join(f"{layer}: {was} → {now}" for layer, (was, now) in written.types.items())
    terminal.line(
        f"Model: {written.path}, {written.nbytes / 2**20:.1f} MiB, of which {written.copied / 2**20:.1f} copied"
    )
    terminal.line(f"Edited tensors by layer: {changed}")
    terminal.line(f"The base's edited weights are at a relative distance of {written.distance:.1e} from the model's")
    terminal.result({"model": written.to_dict(), "updates": [one.id for one in updates]})


def gguf_in_place(
    base: Annotated[Path, typer.Option("--base", help="Quantised GGUF file that the updates were made on.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    update: Update = None,
    ledger: FromLedger = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model that was edited, if not --base; 'demo' for its own file.")
    ] = None,
    rounding: Rounding = "feedback",
    device: options.Device = "auto",
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the updates into a quantised GGUF file on its own grid: same size, same types, same scales."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    updates = chosen_updates(update, ledger)
    from emendo.io.writable import check_writable_file

    check_writable_file(out)
    from emendo.export import write_gguf_in_place
    from emendo.models import load

    lm = load(model or base, device=device, progress=terminal)
    moments = _second_moments(terminal, lm, updates)
    written = write_gguf_in_place(
        *(lm, updates, out),
        base=base,
        moments=moments,  # type: ignore[arg-type]
        rounding=rounding,  # type: ignore[arg-type]
        progress=terminal,
    )
    terminal.line(
        f"Model: {written.path}, {written.nbytes / 2**20:.1f} MiB, {written.changed:,} bytes of tensors changed"
    )
    _show_rounded(terminal, written.layers)
    terminal.result({"model": written.to_dict(), "updates": [one.id for one in updates]})


def in_place(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", help="Folder to make; it must be absent or empty.")],
    update: Update = None,
    ledger: FromLedger = None,
    rounding: Rounding = "feedback",
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
    from emendo.export import write_in_place
    from emendo.models import load

    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    moments = _second_moments(terminal, lm, updates)
    written = write_in_place(lm, updates, out, moments=moments, rounding=rounding, progress=terminal)  # type: ignore[arg-type]
    terminal.line(f"Model: {written.path}")
    _show_rounded(terminal, written.layers)
    terminal.result({"model": written.to_dict(), "updates": [one.id for one in updates]})


def _second_moments(
    terminal: Terminal, lm: EditableModel, updates: Sequence[ModelUpdate]
) -> dict[int, Moment | BlockMoment]:
    """Those that the updates were planned with, from the store or collected again."""
    from emendo.editing.session import EditSession
    from emendo.export.recorded_moments import recorded_moments

    layers, settings, seed = recorded_moments(updates)
    return EditSession(lm, seed=seed, progress=terminal).second_moments(layers, settings)[0]


def _show_rounded(terminal: Terminal, layers: Sequence[RoundedLayer]) -> None:
    """What rounding left of an edit, layer by layer."""
    terminal.table(
        "What rounding left of the edit",
        ("layer", "type", "kept of the edit", "levels moved", "drift added"),
        [(str(one.layer), one.kind, f"{one.kept:.1%}", f"{one.moved:.1%}", f"{one.drift:.1e}") for one in layers],
    )
