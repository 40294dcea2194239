"""What a desk is begun with: how the model was named, and how facts are written unless the page says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from emendo.gate import DEFAULT, GateConfig, read_config
from emendo.methods import DEFAULT_METHOD

NO_GATE = "none"


@dataclass(frozen=True)
class DeskSettings:
    """Settings of a desk.

    Attributes:
        model: How commands find the model.
        method: A method or baseline.
        layers: Edited layers; None: the method's.
        settings: Settings of the method by dotted name.
        gate: File with the gate's limits, `emendo.gate.DEFAULT` for the packaged ones, or `NO_GATE`.
        options: Further options of every command that loads the model, such as ``("--dtype", "float32")``.
    """

    model: str
    method: str = DEFAULT_METHOD
    layers: tuple[int, ...] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    gate: str = DEFAULT
    options: tuple[str, ...] = ()

    def gate_config(self) -> GateConfig | None:
        """Checks and limits; None without a gate.

        Raises:
            GateConfigError: The file cannot be used.
        """
        return None if self.gate == NO_GATE else read_config(self.gate)
