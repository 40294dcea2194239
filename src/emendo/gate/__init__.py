"""The gate: checks with limits that an edit has to hold before it is let in, and a warning for long sequences."""

from emendo.gate.canaries import Canary, CanarySet, CanaryText, read_canaries
from emendo.gate.config import DEFAULT, GateConfig, MonitorConfig, default_config, default_text, read_config
from emendo.gate.monitor import CollapseMonitor, CollapseWarning, Signals
from emendo.gate.report import Check, GateReport, with_report
from emendo.gate.run import reference_snapshot, run_gate
from emendo.gate.topics import TopicShift

__all__ = [
    "DEFAULT",
    "Canary",
    "CanarySet",
    "CanaryText",
    "Check",
    "CollapseMonitor",
    "CollapseWarning",
    "GateConfig",
    "GateReport",
    "MonitorConfig",
    "Signals",
    "TopicShift",
    "default_config",
    "default_text",
    "read_canaries",
    "read_config",
    "reference_snapshot",
    "run_gate",
    "with_report",
]
