"""Records, gates of one check, and updates of a given size, for the tests of the gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from emendo.editing.session import EditSession
from emendo.gate import Check, GateConfig, default_text, run_gate
from emendo.gate.config import parse_config
from emendo.requests import EditRecord
from emendo.updates.predecessors import Predecessors
from emendo.updates.update import LayerUpdate, ModelUpdate
from tests.quick_plans import EIFFEL, JAPAN

EVERYTHING = parse_config(default_text(), "default")
RECORDS = [
    EditRecord(EIFFEL, "Paris", ("The Eiffel Tower stands in",), ("The capital of France is", "The weather was")),
    EditRecord(JAPAN, "Tokyo", (), ("The capital of Italy is",)),
]


def gate_of(checks: str, **top: str) -> GateConfig:
    lines = [f'{name} = "{value}"' for name, value in top.items()]
    return parse_config("\n".join([*lines, checks]), "test.toml")


def only(name: str, limit: float, more: str = "", **top: str) -> GateConfig:
    return gate_of(f"[checks.{name}]\nlimit = {limit}\n{more}", **top)


def found(session: EditSession, edit: Any, config: GateConfig, records: list[EditRecord] = RECORDS) -> Check:
    (check,) = run_gate(session, edit, records, config).checks
    return check


def heavy(session: EditSession, size: float, before: Sequence[str] | None = None, layer: int = 1) -> ModelUpdate:
    """A random rank-two update of a layer, `size` times as long as its weight, on some updates or what is held."""
    weight = session.lm.weight(layer)
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(2, size_of, generator=generator) for size_of in weight.shape)
    left *= size * float(weight.norm()) / float((left.T @ right).norm())
    part = LayerUpdate(layer, session.lm.module_name(layer), left, right)
    return ModelUpdate((part,), session.base, Predecessors.of(session.applied_ids if before is None else before))
