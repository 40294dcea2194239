"""An edit into a server that runs: load, ask, switch, forget the old one; whatever fails, the old one stays served.

1. The adapter is written, under a name of its content.
2. The server's base is asked canaries: a server of another model is told here, before anything is changed.
3. The server reads the adapter (llama.cpp has it from its start). Nobody is sent to it yet.
4. The edited facts and the canaries are asked through it and compared with Emendo's own numbers.
5. The switch: llama.cpp's scales, or the alias that clients use. Until here a failure takes back what was loaded.
6. The adapter that the alias stood for is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emendo.arguments import Measured, NotNegative, checked
from emendo.errors import InputError, ProbeError, ServerError
from emendo.export import write_adapter, write_gguf_adapter
from emendo.gate.canaries import PACKAGED
from emendo.models import EditableModel
from emendo.serving.aliases import holding
from emendo.serving.client import ServerClient
from emendo.serving.engines import OURS, LlamaCpp, ServerState, engine_named
from emendo.serving.probes import Compared, Probe, make_probes
from emendo.serving.switching import (
    KEEPS_PROMPTS,
    Target,
    check_alias,
    chosen_scales,
    forget,
    keeps_prompts,
    load,
    point_alias,
    set_scales,
    slots_cleared,
    stands_for,
    unused,
)
from emendo.updates.update import ModelUpdate

TOLERANCE = 0.05
"""Nats by which a server's log-probability of an answer may differ from Emendo's own."""


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        model: What clients get now, or would get: the adapter's name.
        path: The adapter, as the server reads it.
        before: What they got before: an adapter's name, the base's, or nothing.
        alias: The name that clients use.
        base: How the server's base answered.
        edited: How the edited model answered through the server.
        left: What could not be forgotten, and why; it does no harm.
        dry: Whether nothing was sent but GET.
    """

    model: str
    path: str
    before: str
    alias: str | None
    base: tuple[Compared, ...] = ()
    edited: tuple[Compared, ...] = ()
    left: str | None = None
    dry: bool = False
    _target: Target | None = field(default=None, repr=False)
    _scales: dict[str, float] = field(default_factory=dict, repr=False)

    def rollback(self) -> None:
        """Give clients what they had before this push; the adapter of before is loaded again where it was forgotten.

        Raises:
            ServerError: The server refused.
        """
        if self._target is None or self.dry:
            raise InputError("a dry run changed nothing, so there is nothing to take back")
        if isinstance(self._target.engine, LlamaCpp):
            set_scales(self._target, self._target.engine, self._target.state(), self._scales)
        else:
            _rolled_back(self._target)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = {name: [one.to_dict() for one in getattr(self, name)] for name in ("base", "edited")}
        plain = {name: getattr(self, name) for name in ("model", "path", "before", "alias", "left", "dry")}
        return {**plain, **rows}


@checked
def push(
    lm: EditableModel,
    updates: Sequence[ModelUpdate],
    server: str,
    engine: str,
    *,
    out: str | Path,
    alias: str | None = None,
    server_folder: str | None = None,
    fold: Measured | None = None,
    probes: Sequence[str] = (PACKAGED,),
    tolerance: NotNegative = TOLERANCE,
    timeout: NotNegative = 60.0,
    keep_old: bool = False,
    dry_run: bool = False,
    told: Callable[[str], None] | None = None,
) -> Pushed:
    """Put updates into a server that runs; clients get them when its answers are those that Emendo computes.

    Args:
        lm: The unedited model that the updates were made for.
        updates: In order, the first one planned on the unedited model; together they become one adapter.
        server: Its address.
        engine: ``"llamacpp"``, ``"vllm"`` or ``"sglang"``.
        out: Folder of adapters and aliases, which the server reads too.
        alias: Name under which clients find the newest adapter (`served_name`); not for llama.cpp.
        server_folder: How the server sees `out`; the same path where None.
        fold: Fold each layer to the smallest rank within this relative distance; None stacks exactly.
        probes: Files of canary prompts, as a gate takes them.
        tolerance: Nats that an answer's log-probability may differ, or that share of it where it is below −1.
        timeout: Seconds to wait for each answer.
        keep_old: Leave the adapter that the alias stood for in the server, for clients that still ask for it.
        dry_run: Write the adapter and send nothing but GET.
        told: Given every request that is sent, or would be.

    Raises:
        InputError: An argument is none; or llama.cpp was started without the adapter, and says how to start it.
        ServerError: The server was not reached or refused. Clients get what they got before.
        ProbeError: The server answers otherwise than Emendo computes. Likewise.
        ExportError: The updates cannot be written as an adapter.
    """
    kind = engine_named(engine)
    check_alias(kind, alias)
    client = ServerClient(server, timeout=timeout, dry=dry_run, told=told)
    folder = Path(out).expanduser()
    target = Target(client, kind, folder, alias)
    with holding(folder) if alias is not None and not dry_run else nullcontext():
        target.current()
        name, file = _written(lm, updates, kind.form, folder, fold)
        path = str(Path(server_folder or folder.absolute()) / file.name)
        state = target.state()
        if not kind.loads and name not in state.adapters:
            kind.load(name, path)  # says how to start the server
        if isinstance(kind, LlamaCpp) and keeps_prompts(target, kind):
            raise ServerError(f"{client.url}: {KEEPS_PROMPTS}. Clients get what they got before")
        asked = make_probes(lm, updates, probes)
        with slots_cleared(target):
            base = _ask(target, state, None, [probe for probe in asked if probe.kind == "canary"], tolerance)
        new = load(target, state, name, path)
        try:
            with slots_cleared(target):
                edited = _ask(target, state, name, asked, tolerance)
            before = _switched(target, state, name, path)
        except BaseException:
            if new and not stands_for(target, name):
                forget(target, name)
            raise
        gone = alias is not None and before in state.adapters and before != name and not keep_old
        left = forget(target, before) if gone and unused(target, before) else None
    scales = {row.name: row.scale for row in state.adapters.values()}
    return Pushed(name, path, before, alias, base, edited, left, dry_run, target, scales)


@checked
def withdraw(
    server: str,
    engine: str,
    *,
    out: str | Path = ".",
    alias: str | None = None,
    adapter: str | None = None,
    timeout: NotNegative = 60.0,
    dry_run: bool = False,
    told: Callable[[str], None] | None = None,
) -> str:
    """Give clients the unedited model, without loading one here; gives what they got before.

    llama.cpp: one request sets the scale of Emendo's adapters, or of the named one, to 0; then its slots forget the
    prompts that they keep. Others: the alias stands for
    the base from now on, and then its adapter is forgotten; without an alias, the named adapter is forgotten.

    Args:
        server: Its address.
        engine: ``"llamacpp"``, ``"vllm"`` or ``"sglang"``.
        out: Folder of the alias.
        alias: Name that clients use.
        adapter: The adapter to withdraw.
        timeout: Seconds to wait for each answer.
        dry_run: Send nothing but GET.
        told: Given every request that is sent, or would be.

    Raises:
        InputError: Nothing says what to withdraw, or it is not there.
        ServerError: The server was not reached or refused.
    """
    kind = engine_named(engine)
    check_alias(kind, alias)
    client = ServerClient(server, timeout=timeout, dry=dry_run, told=told)
    target = Target(client, kind, Path(out).expanduser(), alias)
    state = target.state()
    if adapter is not None and adapter not in state.adapters:
        raise InputError(
            f"{client.url} has no adapter {adapter!r}; found {', '.join(state.adapters) or 'none'} (--adapter)"
        )
    if isinstance(kind, LlamaCpp):
        active = [row.name for row in state.adapters.values() if row.scale and row.name.startswith(OURS)]
        names = [adapter] if adapter is not None else active
        set_scales(target, kind, state, dict.fromkeys(names, 0.0))
        if keeps_prompts(target, kind):
            raise ServerError(f"{client.url} has the scales, but {KEEPS_PROMPTS}, to be rid of its old answers")
        return ", ".join(names)
    if alias is None:
        if adapter is None:
            raise InputError(
                "expected what to withdraw: the name that clients use (--alias) or the adapter (--adapter)"
            )
        client.send(kind.unload(adapter))
        return adapter
    with holding(target.folder) if not dry_run else nullcontext():
        now = target.current()
        if now is None:
            raise InputError(
                f"no alias {alias!r} in {str(target.folder)!r}; expected one that was pushed (--alias, --out)"
            )
        point_alias(target, state.base, "")
        gone = now.model in state.adapters and unused(target, now.model)
        if gone and (problem := forget(target, now.model)):
            raise ServerError(f"clients get the base again, and {now.model} is still loaded: {problem}")
    return now.model


@checked
def go_back(
    server: str,
    engine: str,
    *,
    out: str | Path,
    alias: str | None,
    timeout: NotNegative = 60.0,
    dry_run: bool = False,
    told: Callable[[str], None] | None = None,
) -> str:
    """Let an alias stand for what it stood for before its last change; gives that model's name.

    Args:
        server: Address of the server.
        engine: ``"vllm"`` or ``"sglang"``.
        out: Folder of adapters and aliases.
        alias: Name that clients use.
        timeout: Seconds to wait for each answer.
        dry_run: Send nothing but GET.
        told: Given every request that is sent, or would be.

    Raises:
        InputError: There is no alias, or nothing before it.
        ServerError: The server refused; the alias is as it was.
    """
    kind = engine_named(engine)
    if alias is None or not kind.loads:
        raise InputError(
            "a rollback goes back by the name that clients use (--alias), with vllm or sglang. Of llama.cpp: push the "
            "update of before again, or --withdraw"
        )
    client = ServerClient(server, timeout=timeout, dry=dry_run, told=told)
    return _rolled_back(Target(client, kind, Path(out).expanduser(), alias))


def _rolled_back(target: Target) -> str:
    """Let an alias stand for what it stood for before; gives that model's name.

    Raises:
        InputError: There is nothing before.
        ServerError: The server refused; the alias is as it was.
    """
    with holding(target.folder) if not target.client.dry else nullcontext():
        now = target.current()
        if now is None or now.before is None:
            raise InputError(f"the alias {target.alias!r} stood for nothing before; expected a second push (--alias)")
        model, path = now.before
        state = target.state()
        if path:
            load(target, state, model, path)
        point_alias(target, model, path)
        if now.model in state.adapters and now.model != model and unused(target, now.model):
            forget(target, now.model)
    return model


def _written(
    lm: EditableModel, updates: Sequence[ModelUpdate], form: str, folder: Path, fold: float | None
) -> tuple[str, Path]:
    """Name and place of the adapter."""
    if form == "gguf":
        file = write_gguf_adapter(lm, updates, folder, tolerance=fold)
        return file.name, file.path
    written = write_adapter(lm, updates, folder, tolerance=fold)
    return written.name, written.path


def _ask(
    target: Target, state: ServerState, adapter: str | None, probes: Sequence[Probe], tolerance: float
) -> tuple[Compared, ...]:
    """Every probe through the server.

    Raises:
        ProbeError: Some answers differ; names the worst.
    """
    found = []
    for probe in probes:
        calls = target.engine.score(state, adapter, probe.question)
        answers = [target.client.send(call) for call in calls]
        if not target.client.dry:
            served = sum(target.engine.scores(answers, probe.question))
            own = probe.base if adapter is None else probe.edited
            found.append(Compared(probe.kind, probe.text, own, served))
    wrong = [one for one in found if not one.within(tolerance)]
    if wrong:
        worst = max(wrong, key=lambda one: one.difference)
        whose = "the unedited model" if adapter is None else f"the adapter {adapter}"
        raise ProbeError(
            f"{target.client.url} does not answer as Emendo computes: with {whose} {len(wrong)} of {len(found)} probes "
            f"differ by more than {tolerance:g} nats, worst {worst.text[:60]!r}: {worst.served:.3f} there and "
            f"{worst.own:.3f} here. Clients get what they got before. Expected a server of the very weights and type "
            "that were edited; a larger --tolerance where its type is coarser"
        )
    return tuple(found)


def _switched(target: Target, state: ServerState, name: str, path: str) -> str:
    """Send clients to the adapter; gives what they got before."""
    if isinstance(target.engine, LlamaCpp):
        before = ", ".join(row.name for row in state.adapters.values() if row.scale) or "the base"
        set_scales(target, target.engine, state, chosen_scales(state, name))
        return before
    if target.alias is None:
        return ""
    old = target.current()
    if old is None or old.model != name:
        point_alias(target, name, path)
    return state.base if old is None else old.model
