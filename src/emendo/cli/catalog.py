"""`emendo methods` and `emendo models`: what there is, from the tables that the engine uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emendo.cli.console import Terminal
from emendo.cli.options import Json, Quiet, complete_method
from emendo.errors import MethodError

if TYPE_CHECKING:
    from emendo.methods import Method

_PLAIN = "·"


def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method or baseline, in full.", autocompletion=complete_method)
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="With one method: also show settings that it does not change.")
    ] = False,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the editing methods axis by axis, and the baselines; or show one of them in full."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    if name is not None:
        _show_one(terminal, name, show_all=show_all)
        return
    if show_all:
        raise MethodError("--all shows every setting of one method; name it (emendo methods NAME --all)")
    from emendo.methods import BASELINES, CATALOGUE, METHODS
    from emendo.methods.table import compose

    table = compose(METHODS)
    named = {"plain default": table.plain, **table.methods}
    terminal.wide_table(
        "Methods, one column an axis of the engine",
        ("method", *table.plain),
        [(name, *(_axis(axis, values) for axis, values in axes.items())) for name, axes in named.items()],
    )
    terminal.line(f"{_PLAIN} is the plain default. In all methods, {_alike(table.alike)}.")
    terminal.table(
        "Baselines, under the same requests and scores",
        ("baseline", "settings"),
        ((name, _pairs(_described(baseline)["settings"], "\n")) for name, baseline in BASELINES.items()),
    )
    for config in CATALOGUE.values():
        terminal.line(f"{config.name}: {config.source}")
    terminal.line("One in full: emendo methods NAME. Every value for a model: emendo edit ... --plan-only.")
    terminal.result(
        {
            "plain": table.plain,
            "alike": table.alike,
            "methods": {m.name: {**_described(m), "axes": table.methods[m.name]} for m in METHODS.values()},
            "baselines": {b.name: _described(b) for b in BASELINES.values()},
        }
    )


def show_method(terminal: Terminal, title: str, method: Mapping[str, Any]) -> None:
    """A resolved method or baseline: every value with its origin, and where it deviates from its source.

    Args:
        terminal: Where it is shown.
        title: What stands before the source.
        method: As `to_dict` of a resolved method or baseline gives it.
    """
    terminal.table(
        f"{title}: {method['source']}",
        ("setting", "value", "origin"),
        (
            (name, "none" if value is None else str(value), method["origins"][name])
            for name, value in method["settings"].items()
        ),
    )
    _show_deviations(terminal, method["deviations"])


def _show_deviations(terminal: Terminal, deviations: Sequence[str]) -> None:
    for deviation in deviations:
        terminal.line(f"  deviation: {deviation}")


def _show_one(terminal: Terminal, name: str, *, show_all: bool) -> None:
    """Source, deviations, settings with what they mean, and the presets by model."""
    from emendo.methods import method_named
    from emendo.methods.explained import explained
    from emendo.methods.presets import presets_of
    from emendo.methods.table import plain_settings

    config = method_named(name)
    described = _described(config)
    presets: dict[str, dict[str, Any]] = {
        model.name: {
            "shape": model.shape,
            "layers": preset.layers,
            "settings": dict(preset.settings),
            "source": preset.source,
        }
        for model, preset in presets_of(config).items()
    }
    terminal.line(f"{config.name}: {config.source}")
    _show_deviations(terminal, config.deviations)
    _show_settings(terminal, described["settings"], plain_settings(config.kind), show_all=show_all)
    if presets:
        terminal.wide_table(
            "Presets by model, for every model of its shape",
            ("model", "shape", "layers", "settings", "source"),
            [
                (name, p["shape"], _layers(p["layers"]), _pairs(p["settings"], "\n"), p["source"])
                for name, p in presets.items()
            ],
        )
    terminal.line("Layers and values for your model, each with its origin: emendo edit ... --plan-only")
    meanings = {name: asdict(explained(name)) for name in described["settings"]}
    terminal.result({**described, "kind": config.kind, "meanings": meanings, "presets": presets})


def _show_settings(
    terminal: Terminal, settings: Mapping[str, Any], plain: Mapping[str, Any], *, show_all: bool
) -> None:
    """Settings with what they mean; those that differ from the plain default first, or alone."""
    changed = [name for name in settings if not plain or settings[name] != plain[name]]
    kept = [name for name in settings if name not in changed]
    terminal.table(
        "Settings" if not plain or show_all else "Settings that differ from the plain default",
        ("setting", "meaning"),
        (
            (_assigned(name, settings[name], plain.get(name, settings[name])), _meaning(name))
            for name in [*changed, *(kept if show_all else [])]
        ),
    )
    if kept and not show_all:
        terminal.line(f"{len(kept)} more are at the plain default. All of them: --all")


def _assigned(name: str, value: Any, plain: Any) -> str:
    """A setting as --set takes it, and the plain default if that is another."""
    return f"{name}={_text(value)}" + ("" if value == plain else f"\n  plain default: {_text(plain)}")


def _meaning(name: str) -> str:
    """What a setting does, and what other code calls it."""
    from emendo.methods.explained import explained

    setting = explained(name)
    return f"{setting.meaning} [{setting.elsewhere}]" if setting.elsewhere else setting.meaning


def _described(config: Method) -> dict[str, Any]:
    """What is fixed without a model."""
    described = config.to_dict()
    del described["settings"]["layers"]
    return described


def _axis(axis: str, values: Mapping[str, Any]) -> str:
    """A cell: the value of an axis that is one, else a line for each setting."""
    from emendo.methods.table import single

    if single(axis, values):
        return _text(values[axis])
    return _pairs(values, "\n") or _PLAIN


def _alike(axes: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{axis} is {_pairs(values)}" for axis, values in axes.items())


def _pairs(values: Mapping[str, Any], between: str = ", ") -> str:
    return between.join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    """A value as --set reads it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _layers(layers: tuple[int, ...]) -> str:
    """Layers as --layers reads them."""
    if len(layers) > 1 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def models(
    model: Annotated[str | None, typer.Argument(help="One model: is it supported, and what is its shape?")] = None,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the model families that can be edited, and those that are refused with the reason; or look at one model."""
    terminal = Terminal(json_output=json_output, quiet=quiet)
    if model is not None:
        from emendo.cli.doctor import show_model

        terminal.result(show_model(terminal, model))
        return
    from emendo.models import ARCHITECTURES, REFUSALS, WRAPPERS, ArchitectureSpec

    def edited_map(row: ArchitectureSpec) -> str:
        return f"{row.decoder}.{row.blocks}.N.{row.experts or row.down_projection}"

    def block(row: ArchitectureSpec) -> str:
        facts = ["parallel" if row.parallel else "sequential"]
        facts += ["norm after the MLP"] if row.mlp_normed else []
        facts += ["experts, or a dense MLP"] if row.experts else []
        facts += [f"MLP times {row.mlp_scale}"] if row.mlp_scale else []
        return ", ".join(facts)

    rows = list(ARCHITECTURES.values())
    terminal.table(
        "Supported families (config.model_type)",
        ("model_type", "edited map", "block", "examples"),
        ((row.model_type, edited_map(row), block(row), row.examples) for row in rows),
    )
    terminal.table(
        "Multimodal models around one of them (their text decoder is edited)",
        ("model_type", "decoder"),
        sorted(WRAPPERS.items()),
    )
    reasons = dict.fromkeys(REFUSALS.values())
    terminal.table(
        "Refused",
        ("reason", "model_type"),
        ((why, ", ".join(sorted(name for name, reason in REFUSALS.items() if reason == why))) for why in reasons),
    )
    terminal.result(
        {
            "supported": {
                row.model_type: {
                    "edited_map": edited_map(row),
                    "parallel": row.parallel,
                    "mlp_normed": row.mlp_normed,
                    "mlp_scale": row.mlp_scale,
                    "experts": row.experts is not None,
                    "examples": row.examples,
                }
                for row in rows
            },
            "wrappers": WRAPPERS,
            "refused": REFUSALS,
        }
    )
