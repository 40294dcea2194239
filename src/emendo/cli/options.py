"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from emendo.errors import InputError, LayerError, MethodError

if TYPE_CHECKING:
    from emendo import parallel


def complete_method(incomplete: str) -> list[str]:
    """Names of methods and baselines that begin so, for the shell."""
    from emendo.methods import CATALOGUE

    return [name for name in CATALOGUE if name.startswith(incomplete.lower())]


Model = Annotated[str, typer.Option("--model", help="Hub id, folder, .gguf file, 'demo' or 'world:FAMILY'.")]
Method = Annotated[
    str,
    typer.Option("--method", help="Editing method or baseline; see `emendo methods`.", autocompletion=complete_method),
]
Layers = Annotated[str | None, typer.Option("--layers", help="Edited layers, such as 5 or 4,5,6 or 4-8.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="One setting of the method; may be repeated.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of sampled contexts and self-sampled second moments.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a result that --out already holds.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
LoadIn = Annotated[
    str | None,
    typer.Option("--load-in", help="Quantise while loading: nf4, fp4, int8, torchao-int8 or torchao-fp8."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress or messages on standard error.")]

Workers = Annotated[int | None, typer.Option("--workers", help="Processes on this machine, each with its own model.")]
Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Workers of Ray: 'local', 'auto' or the address of a cluster."),
]

_MOST_LAYERS = 10_000
"""More than any model has; a longer range is a slip, and would only fill memory."""


def given(context: typer.Context) -> list[str]:
    """Options that the command line or the environment gives, as `--name`, in the order of the help."""
    found = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT"):
            found.append(max(parameter.opts, key=len))
    return found


def parse_layers(text: str | None) -> list[int] | None:
    """Layers from ``5``, ``4,5,6`` or ``4-8``; None stays None.

    Raises:
        LayerError: The text is not such a list.
    """
    if text is None:
        return None
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            named = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            named = range(0)
        if not 0 < len(named) <= _MOST_LAYERS:
            raise LayerError(f"cannot read layers {text!r}; expected 5 or 4,5,6 or 4-8 (--layers)")
        layers += named
    return layers


def parse_settings(pairs: list[str] | None) -> dict[str, str]:
    """Settings from ``NAME=VALUE`` texts.

    Raises:
        MethodError: A text without ``=``, or a name that is given twice.
    """
    settings: dict[str, str] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise MethodError(f"cannot read {pair!r}; expected NAME=VALUE, such as --set target.steps=20")
        name, value = name.strip(), value.strip()
        if name in settings:
            raise MethodError(
                f"{name} is given twice, as {settings[name]!r} and as {value!r}; expected each setting once "
                f"(--set {name}=VALUE)"
            )
        settings[name] = value
    return settings


def check_workers(workers: int | None, ray: str | None, *, join: bool = False, load_in: str | None = None) -> None:
    """Refuse options that exclude each other.

    Raises:
        InputError: More than one of them, fewer than one worker, or workers for a model that is quantised here.
    """
    if load_in is not None and (workers is not None or ray is not None):
        raise InputError(
            f"found --load-in {load_in} with workers, which load a model by its name alone; save it in few bits first "
            "(model.save_pretrained) and give that folder (--model), or leave the workers out"
        )
    given = {"--workers": workers is not None, "--ray": ray is not None, "--join": join}
    if len(named := [name for name, there in given.items() if there]) > 1:
        raise InputError(f"{' and '.join(named)} exclude each other; give one")
    if workers is not None and workers < 1:
        raise InputError(f"found --workers {workers}; expected at least 1")


@contextmanager
def chosen_workers(workers: int | None, ray: str | None, *, join: bool = False) -> Iterator[parallel.Workers | None]:
    """The workers that the options name, ended afterwards; None where none do."""
    from emendo import parallel

    if workers is not None:
        with parallel.Processes(workers) as processes:
            yield processes
    elif ray is not None:
        from emendo.parallel.ray_workers import RayWorkers

        with RayWorkers(ray) as crew:
            yield crew
    else:
        yield parallel.Joined() if join else None
