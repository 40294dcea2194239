"""The last steps of a push: what clients get is switched, and switched back.

llama.cpp has scales, which are set for all requests at once. vLLM and SGLang have names, of which an alias outside of
the server is one (`aliases.py`). Either way the edit before stays served until the switch, and can be had back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from emendo.errors import InputError, ServerError
from emendo.serving.aliases import Alias, read_aliases, set_alias
from emendo.serving.client import ServerClient
from emendo.serving.engines import OURS, Engine, LlamaCpp, ServerState


@dataclass(frozen=True)
class Target:
    """What clients of a server use.

    Attributes:
        client: Of the server.
        engine: Its kind.
        folder: Where adapters and aliases are kept.
        alias: The name that clients use; None: llama.cpp, or clients that name the adapter itself.
    """

    client: ServerClient
    engine: Engine
    folder: Path
    alias: str | None = None

    def state(self) -> ServerState:
        """What the server has now."""
        return self.engine.state(self.client.send(self.engine.look()))

    def current(self) -> Alias | None:
        """What the alias stands for.

        Raises:
            InputError: It is of another server.
        """
        found = None if self.alias is None else read_aliases(self.folder).get(self.alias)
        if found is not None and (found.server, found.engine) != (self.client.url, self.engine.name):
            raise InputError(
                f"the alias {self.alias!r} is of {found.engine} at {found.server}, and found {self.engine.name} at "
                f"{self.client.url}; choose another --alias, or that --server and --engine"
            )
        return found


def check_alias(engine: Engine, alias: str | None) -> None:
    """Refuse an alias where a server has scales.

    Raises:
        InputError: See above.
    """
    if alias is not None and not engine.loads:
        raise InputError(
            f"{engine.name} has no names of adapters in requests: one scale is set for all clients. Leave out --alias"
        )


def set_scales(target: Target, engine: LlamaCpp, before: ServerState, scales: dict[str, float]) -> None:
    """Set scales, see that they are set, and clear what was computed with others; on failure put back those of before.

    Raises:
        ServerError: They are not; says what the server is left with.
    """
    wanted = {row.name: scales.get(row.name, row.scale) for row in before.adapters.values()}
    try:
        target.client.send(engine.set_scales(before, scales))
        if not target.client.dry:
            found = {row.name: row.scale for row in target.state().adapters.values()}
            if found != wanted:
                raise ServerError(f"the server was told the scales {wanted} and has {found}")
        clear_slots(target, engine)
    except ServerError as error:
        old = {row.name: row.scale for row in before.adapters.values()}
        try:
            target.client.send(engine.set_scales(before, old))
            clear_slots(target, engine)
        except ServerError as second:
            raise ServerError(f"{error}. Putting back {old} failed as well ({second}); set them by hand") from error
        raise ServerError(f"{error}. The scales of before were put back: {old}") from error


def clear_slots(target: Target, engine: LlamaCpp) -> None:
    """Let every slot forget the prompt that it keeps."""
    for call in engine.clear(target.client.send(engine.slots())):
        target.client.send(call)


@contextmanager
def slots_cleared(target: Target) -> Iterator[None]:
    """After questions with scales of their own, no slot of llama.cpp keeps what was computed with them."""
    try:
        yield
    except BaseException:
        if isinstance(target.engine, LlamaCpp):
            with suppress(ServerError):  # the first error is the one to tell
                clear_slots(target, target.engine)
        raise
    if isinstance(target.engine, LlamaCpp):
        clear_slots(target, target.engine)


def keeps_prompts(target: Target, engine: LlamaCpp) -> bool:
    """Whether a prompt is remembered although every slot was cleared, so that old answers would outlast a switch."""
    target.client.send(engine.ask_as_clients())
    clear_slots(target, engine)
    answer = target.client.send(engine.ask_as_clients())
    return not target.client.dry and engine.remembered(answer) > 1  # one: of the token that slots are cleared with


KEEPS_PROMPTS = (
    "this server keeps prompts in memory beside its slots, with what was computed for them, and would go on answering "
    "from those after scales are set (llama.cpp's issue 26207). Start it with --cache-ram 0"
)
"""What is told of such a server."""


def chosen_scales(state: ServerState, name: str | None) -> dict[str, float]:
    """Scale 1 for one adapter of Emendo and 0 for its others; adapters of other people keep theirs."""
    return {row.name: float(row.name == name) for row in state.adapters.values() if row.name.startswith(OURS)}


def point_alias(target: Target, model: str, path: str) -> None:
    """Let the alias stand for a model from now on; a dry run only tells of it."""
    before = target.current()
    assert target.alias is not None
    old = None if before is None else (before.model, before.path)
    target.client.tell(f"alias {target.alias}: {'nothing' if old is None else old[0]} → {model}")
    if not target.client.dry:
        set_alias(target.folder, target.alias, Alias(target.client.url, target.engine.name, model, path, old))


def stands_for(target: Target, name: str) -> bool:
    """Whether clients are sent to an adapter by the alias."""
    found = None if target.alias is None else target.current()
    return found is not None and found.model == name


def unused(target: Target, name: str) -> bool:
    """Whether no other alias stands for an adapter of this server."""
    others = [found for alias, found in read_aliases(target.folder).items() if alias != target.alias]
    return not any((found.server, found.model) == (target.client.url, name) for found in others)


def forget(target: Target, name: str) -> str | None:
    """Unload an adapter that nobody is sent to; gives what went wrong, which leaves it loaded and does no harm."""
    try:
        target.client.send(target.engine.unload(name))
    except ServerError as error:
        return str(error)
    return None


def load(target: Target, state: ServerState, name: str, path: str) -> bool:
    """Make the server read an adapter, unless it has it; gives whether it did so now.

    Raises:
        ServerError: It refused.
        InputError: It takes none while it runs; says how to start it.
    """
    if name in state.adapters:
        return False
    try:
        target.client.send(target.engine.load(name, path))
    except ServerError as error:
        if "already" not in str(error):  # a server that does not list its adapters
            raise _with_hint(target, error, path) from error
        return False
    return True


def _with_hint(target: Target, error: ServerError, path: str) -> ServerError:
    start = {
        "vllm": "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank RANK",
        "sglang": "python -m sglang.launch_server --model-path MODEL --enable-lora --max-lora-rank RANK "
        "--lora-target-modules down_proj",
    }[target.engine.name]
    return ServerError(
        f"{error}. Expected a server that was started as `{start}`, with RANK at least the adapter's, and that can "
        f"read {path!r} (--server-folder says where it sees --out)",
        error.status,
    )
