"""The gate: checks with limits that an edit has to hold before it is let in, and a warning for long sequences."""

from emendo.gate.canaries import Canary, CanarySet, read_canaries
from emendo.gate.config import DEFAULT, GateConfig, MonitorConfig, default_config, default_text, read_config
from emendo.gate.monitor import CollapseMonitor, CollapseWarning, Signals
from emendo.gate.report import Check, GateReport, with_report
from emendo.gate.run import run_gate

__all__ = [
    "DEFAULT",
    "Canary",
    "CanarySet",
    "Check",
    "CollapseMonitor",
    "CollapseWarning",
    "GateConfig",
    "GateReport",
    "MonitorConfig",
    "Signals",
    "default_config",
    "default_text",
    "read_canaries",
    "read_config",
    "run_gate",
    "with_report",
]
