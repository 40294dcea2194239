"""`emendo update`: look into update files, add them, fold them into fewer numbers, scale them. No model is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli import options
from emendo.cli.console import Terminal
from emendo.errors import OutputError, UpdateFileError

if TYPE_CHECKING:
    from emendo.updates.fold import Folded
    from emendo.updates.update import ModelUpdate

app = typer.Typer(
    help="Update files: show, merge, fold, scale.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)

_File = Annotated[Path, typer.Argument(metavar="FILE", help="An update, or the folder that `emendo edit --out` wrote.")]
_Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Updates, or folders that `emendo edit --out` wrote.")
]
_Out = Annotated[Path, typer.Option("--out", help="File for the result; it appears whole or not at all.")]
_Force = Annotated[bool, typer.Option("--force", help="Replace the file at --out if there is one.")]


@app.command("show")
def show(file: _File, json_output: options.Json = False) -> None:
    """What an update holds: its base, what it was planned on, its facts, and its layers."""
    terminal = Terminal(json_output=json_output)
    update = _load(file)
    document = _described(update) | {"file": str(file)}
    base = document["base"]
    terminal.line(f"Update {document['id']} ({document['bytes'] / 1024:.0f} KiB)")
    terminal.line(f"Base: {base.get('name')} with weights {str(base.get('weights_sha256'))[:12]}…")
    if "config" not in base:
        terminal.line(
            "Its base's configuration is not recorded: only weights and tokenizer can be compared with a model"
        )
    terminal.line(f"Planned on: {update.preceding}")
    terminal.line(f"Made by: {document['origin']}")
    terminal.table(
        f"Facts ({len(document['requests'])})",
        ("prompt", "subject", "target"),
        ((row.get("prompt"), row.get("subject"), row.get("target")) for row in document["requests"]),
    )
    _show_layers(terminal, document["layers"])
    terminal.result(document)


@app.command("merge")
def merge(files: _Files, out: _Out, force: _Force = False, json_output: options.Json = False) -> None:
    """Add updates of one base. Planned apart, they disturb each other: what is left of each is measured and shown."""
    terminal = Terminal(json_output=json_output)
    _check_out(out, force)
    from emendo.updates.merge import merge as merge_updates

    merged = merge_updates([_load(file) for file in files])
    parts = merged.info.get("merged", [])
    merged.save(out)
    terminal.table(
        "What each update still writes at its own keys (1 is all of it)",
        ("update", "layer", "mean", "least", "most"),
        (
            (f"{part['id'][:12]}…", row["layer"], *(_share(row[name]) for name in ("mean", "least", "most")))
            for part in parts
            for row in part["survives"]
        ),
    )
    terminal.line(f"Update: {out} ({merged.nbytes / 1024:.0f} KiB, {merged.id[:12]}…)")
    terminal.result({"file": str(out), "update": _described(merged), "merged": parts})


@app.command("fold")
def fold(
    files: _Files,
    out: _Out,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance", help="Largest relative error of a layer's ΔW; 1e-6 unless --max-rank alone is given."
        ),
    ] = None,
    max_rank: Annotated[int | None, typer.Option("--max-rank", help="Most rows of a layer's factors.")] = None,
    drop_keys: Annotated[
        bool,
        typer.Option(
            "--drop-keys",
            help="Leave the written keys out: smaller, but methods with a history cannot plan on top of it any more.",
        ),
    ] = False,
    force: _Force = False,
    json_output: options.Json = False,
) -> None:
    """One update of the smallest rank in place of one or many, within a tolerance and never bit for bit."""
    terminal = Terminal(json_output=json_output)
    _check_out(out, force)
    from emendo.updates.fold import fold as fold_updates

    if tolerance is None and max_rank is None:
        tolerance = 1e-6
    updates = [_load(file) for file in files]
    folded = fold_updates(updates, tolerance=tolerance, max_rank=max_rank, keep_keys=not drop_keys)
    folded.update.save(out)
    _show_folded(terminal, folded)
    terminal.line(f"Update: {out} ({folded.update.id[:12]}…)")
    record = folded.update.info["folded"] | {"error": folded.error, "sizes": vars(folded.sizes)}
    terminal.result({"file": str(out), "update": _described(folded.update), "folded": record})


@app.command("scale")
def scale(
    file: _File,
    factor: Annotated[float, typer.Option("--factor", help="Factor, such as 0.5, or -1 for the opposite edit.")],
    out: _Out,
    force: _Force = False,
    json_output: options.Json = False,
) -> None:
    """An update times a number."""
    terminal = Terminal(json_output=json_output)
    _check_out(out, force)
    from emendo.updates.merge import scale as scale_update

    scaled = scale_update(_load(file), factor)
    scaled.save(out)
    terminal.line(f"Update: {out} ({factor:g} times {file}, {scaled.id[:12]}…)")
    terminal.result({"file": str(out), "update": _described(scaled), "scaled": scaled.info["scaled"]})


def _show_layers(terminal: Terminal, layers: list[dict[str, Any]]) -> None:
    """The factors of each layer; modules that are named alike but for the layer are named once."""
    pattern = _common_name(layers)
    names = () if pattern else ("module",)
    terminal.table(
        "Layers (ΔW as factors of that rank; past break-even a dense matrix would be smaller)",
        ("layer", *names, "d_out x d_in", "rank", "break-even", "keys", "norm of ΔW"),
        (
            (
                row["layer"],
                *(row[name] for name in names),
                f"{row['d_out']} x {row['d_in']}",
                row["rank"],
                row["break_even"],
                row["keys"],
                f"{row['norm']:.4g}",
            )
            for row in layers
        ),
    )
    if pattern:
        terminal.line(f"Layer N is {pattern}")


def _common_name(layers: list[dict[str, Any]]) -> str | None:
    """The one name of all modules with N for the layer; None where there is none."""
    names = {
        ".".join("N" if part == str(row["layer"]) else part for part in row["module"].split(".")) for row in layers
    }
    return names.pop() if len(names) == 1 else None


def _load(path: Path) -> ModelUpdate:
    from emendo.report.folder import UPDATE_NAME
    from emendo.updates.update import ModelUpdate

    folder = os.path.isdir(path)  # of os.path: False, not an error, for a path that no file can have
    file = path / UPDATE_NAME if folder else path
    if not os.path.isfile(file):
        found = f"the folder {str(path)!r} holds no {UPDATE_NAME}" if folder else f"there is no file at {str(path)!r}"
        raise UpdateFileError(f"{found}; expected an update, or the folder that `emendo edit --out` wrote")
    return ModelUpdate.load(file)


def _check_out(out: Path, force: bool) -> None:
    """Refuse a path before any work is done.

    Raises:
        OutputError: There is something, or the folder cannot be written.
    """
    from emendo.io.writable import check_writable_file

    check_writable_file(out)
    if out.exists() and not force:
        raise OutputError(f"there is a file at {str(out)!r} already; choose another (--out), or replace it (--force)")


def _described(update: ModelUpdate) -> dict[str, Any]:
    """An update as JSON values, without its tensors."""
    from emendo.solve import frobenius_norm
    from emendo.updates.fold import break_even_rank

    info = update.info
    requests = info.get("requests", [])
    layers = []
    for part in update.layers:
        d_out, d_in = part.residuals.shape[1], part.dual_keys.shape[1]
        layers.append(
            {
                "layer": part.layer,
                "module": part.module,
                "d_out": d_out,
                "d_in": d_in,
                "rank": part.rank,
                "break_even": break_even_rank(d_out, d_in),
                "keys": None if part.keys is None else len(part.keys),
                "norm": frobenius_norm(part.residuals, part.dual_keys),
                "bytes": sum(tensor.nbytes for tensor in part.tensors.values()),
            }
        )
    return {
        "id": update.id,
        "base": update.base,
        "preceding": update.preceding.to_dict(),
        "bytes": update.nbytes,
        "origin": _origin(info),
        "requests": [row for row in requests if isinstance(row, dict)] if isinstance(requests, list) else [],
        "layers": layers,
    }


def _origin(info: dict[str, Any]) -> str:
    """How it came about, in words, from what its record says."""
    method = info.get("method")
    steps = [f"method {method.get('name')}" if isinstance(method, dict) else "an unknown method"]
    if isinstance(info.get("merged"), list):
        steps = [f"a sum of {len(info['merged'])} updates"]
    if "algebraic" in info:
        steps.append("worked out anew after an earlier update was removed")
    steps += [mark for mark in ("scaled", "folded") if mark in info]
    return ", ".join(steps)


def _show_folded(terminal: Terminal, folded: Folded) -> None:
    terminal.table(
        "Folded layers",
        ("layer", "rank before", "rank", "break-even", "relative error", "KiB before", "KiB"),
        (
            (
                row.layer,
                row.rank_before,
                row.rank,
                row.break_even,
                f"{row.error:.1e}",
                row.bytes_before / 1024,
                row.bytes / 1024,
            )
            for row in folded.layers
        ),
    )
    if past := [str(row.layer) for row in folded.layers if row.past_break_even]:
        terminal.line(f"Past break-even, where the weights themselves are smaller: layers {', '.join(past)}")
    sizes = folded.sizes
    keys = sum(row.keys_bytes for row in folded.layers)
    terminal.line(f"{sizes.before / 1024:.0f} KiB before with keys, {sizes.after / 1024:.0f} KiB after")
    terminal.line(f"of which {keys / 1024:.0f} KiB are keys; as dense matrices {sizes.dense / 1024:.0f} KiB")


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
