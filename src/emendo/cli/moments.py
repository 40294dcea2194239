"""`emendo moments`: collect second moments ahead of editing, list what is cached, verify it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from emendo.cli import options
from emendo.cli.console import Terminal
from emendo.errors import MomentsError

app = typer.Typer(help="Second moments of preserved keys.", no_args_is_help=True, rich_markup_mode=None)


@app.command("collect")
def collect(
    model: options.Model,
    layers: options.Layers = None,
    corpus: Annotated[
        str,
        typer.Option("--corpus", help="'self' or 'kinds' (the model's own), a .txt or .jsonl file, or hf:ID[:CONFIG]."),
    ] = "self",
    tokens: Annotated[int | None, typer.Option("--tokens", help="Keys to count; default 10 for each of d_in.")] = None,
    length: Annotated[int, typer.Option("--length", help="Tokens of a packed sequence.")] = 128,
    field: Annotated[str, typer.Option("--field", help="Text field of a JSONL file or data set.")] = "text",
    split: Annotated[str, typer.Option("--split", help="Split of a data set.")] = "train",
    revision: Annotated[str | None, typer.Option("--revision", help="Revision of a data set.")] = None,
    exclude_first: Annotated[
        bool, typer.Option("--exclude-first", help="Leave out the first position of every sequence.")
    ] = False,
    accumulate: Annotated[str, typer.Option("--accumulate", help="float64 or float32 sums.")] = "float64",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    load_in: options.LoadIn = None,
    workers: options.Workers = None,
    ray: options.Ray = None,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Collect the second moment of every given layer in one pass; an interrupted collection is resumed."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    chosen = options.parse_layers(layers)
    options.check_workers(workers, ray, load_in=load_in)
    from emendo.methods import resolve_method
    from emendo.models import load
    from emendo.statistics import MomentSpec, MomentStore, obtain_moments, open_corpus

    spec = MomentSpec(
        corpus=open_corpus(corpus, field=field, split=split, revision=revision, seed=seed),
        tokens=tokens,
        length=length,
        exclude_first=exclude_first,
        accumulate=accumulate,  # type: ignore[arg-type]  # checked by the spec
    )
    lm = load(model, device=device, dtype=dtype, load_in=load_in, progress=terminal)
    if chosen is None:
        chosen = list(resolve_method("emendo", lm).config.layers)
        terminal.message(f"No --layers given: collecting for {chosen}, the layers of emmet")
    with options.chosen_workers(workers, ray) as crew:
        found = obtain_moments(lm, chosen, spec, MomentStore(), progress=terminal, workers=crew)
    rows: list[dict[str, Any]] = [
        {
            "layer": layer,
            "tokens": stored.moment.count,
            "cached": stored.cached,
            "path": str(stored.path),
        }
        for layer, stored in found.items()
    ]
    terminal.table(
        "Second moments",
        ("layer", "tokens", "", "file"),
        ((r["layer"], r["tokens"], "cached" if r["cached"] else "collected", r["path"]) for r in rows),
    )
    terminal.result({"moments": rows})


@app.command("list")
def list_moments(json_output: options.Json = False, quiet: options.Quiet = False) -> None:
    """List the cached second moments by their headers (fast; `verify` reads them in full)."""
    _show(verified=False, json_output=json_output, quiet=quiet)


@app.command("verify")
def verify(json_output: options.Json = False, quiet: options.Quiet = False) -> None:
    """Read every cached second moment in full and check its digest; exit code 2 where one is damaged."""
    _show(verified=True, json_output=json_output, quiet=quiet)


def _show(*, verified: bool, json_output: bool, quiet: bool) -> None:
    terminal = Terminal(json_output=json_output, quiet=quiet)
    from emendo.statistics import MomentStore

    store = MomentStore()
    entries = store.verify() if verified else store.entries()
    rows: list[dict[str, Any]] = []
    for entry in entries:
        row: dict[str, Any] = {"path": str(entry.path), "bytes": entry.size, "problem": entry.problem}
        if entry.header is not None:
            fingerprint = entry.header.fingerprint
            row |= {
                "model": entry.header.model,
                "layer": entry.header.layer,
                "tokens": fingerprint.tokens,
                "corpus": dict(fingerprint.corpus),
                "exclude_first": fingerprint.exclude_first,
                "fingerprint": fingerprint.digest,
                "created": entry.header.created,
            }
        rows.append(row)
    bad = [row for row in rows if row["problem"]]
    terminal.table(
        f"{len(rows)} second moment(s) under {store.root}",
        ("model", "layer", "tokens", "corpus", "MiB", "state"),
        (
            (
                row.get("model", "?"),
                row.get("layer", "?"),
                row.get("tokens", "?"),
                row.get("corpus", {}).get("kind", "?"),
                row["bytes"] / 2**20,
                row["problem"] or ("verified" if verified else "not read"),
            )
            for row in rows
        ),
    )
    terminal.result({"store": str(store.root), "verified": verified, "moments": rows})
    if verified and bad:
        message = f"{len(bad)} of {len(rows)} cached second moments are damaged: delete them and collect again"
        if not json_output:
            raise MomentsError(message)
        terminal.message(message)  # the document on standard output is already complete
        raise typer.Exit(2)
