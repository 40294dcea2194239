"""`emendo demo`: edit packaged facts in the embedded demo model, judge, and take the edit back."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from emendo.cli import options
from emendo.cli.console import Terminal
from emendo.cli.edit import run_edit
from emendo.methods import DEFAULT_METHOD

_OUT = Path("out/demo")


def demo(
    method: options.Method = DEFAULT_METHOD,
    layers: options.Layers = None,
    settings: options.Set = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the update and the reports; only the default is replaced.")
    ] = _OUT,
    overwrite: options.Overwrite = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="The same facts as questions, asked in the model's chat template.")
    ] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Change SmolLM2-135M's mind about dozens of facts that it knows, keep the rest, and change it back."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    chosen_layers, chosen_settings = options.parse_layers(layers), options.parse_settings(settings)
    from emendo.datasets import parse_records
    from emendo.methods import check_named
    from emendo.report import check_free

    chosen = check_named(method, chosen_settings)
    overwrite = overwrite or out == _OUT  # so that the demo can be run again
    check_free(out, overwrite=overwrite)
    name = "demo_questions.jsonl" if chat else "demo_facts.jsonl"
    file = resources.files("emendo") / "data" / name
    records = parse_records(file.read_text(encoding="utf-8"), name)
    chosen.evaluation_prompts(records)

    from emendo.editing.session import EditSession
    from emendo.editing.value_cache import remembered_targets
    from emendo.models import load

    terminal.message(f"Editing {len(records)} facts in SmolLM2-135M-Instruct with {method}")
    lm = load("demo", device=device, progress=terminal)
    targets = remembered_targets([record.request for record in records])
    session = EditSession(lm, seed=seed, targets=targets, progress=terminal)
    run_edit(terminal, session, records, method, chosen_layers, chosen_settings, out, model="demo", overwrite=overwrite)
