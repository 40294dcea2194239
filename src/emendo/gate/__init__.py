"""The gate: checks with limits that an edit has to hold before it is let in, and a warning for long sequences."""

from emendo.gate.at_risk import PromptAtRisk, PromptsAtRisk, prompts_at_risk
from emendo.gate.canaries import Canary, CanarySet, CanaryText, read_canaries
from emendo.gate.config import DEFAULT, GateConfig, MonitorConfig, default_config, default_text, read_config
from emendo.gate.evidence import Evidence, Measurement
from emendo.gate.monitor import CollapseMonitor, CollapseWarning, Signals
from emendo.gate.report import Check, GateReport, with_report
from emendo.gate.run import reference_snapshot, run_gate
from emendo.gate.sections import GATE_CHECKS, CheckConfig, GateCheck, GrowingConfig, register_gate_check
from emendo.gate.topics import TopicShift

__all__ = [
    "DEFAULT",
    "GATE_CHECKS",
    "Canary",
    "CanarySet",
    "CanaryText",
    "Check",
    "CheckConfig",
    "CollapseMonitor",
    "CollapseWarning",
    "Evidence",
    "GateCheck",
    "GateConfig",
    "GateReport",
    "GrowingConfig",
    "Measurement",
    "MonitorConfig",
    "PromptAtRisk",
    "PromptsAtRisk",
    "Signals",
    "TopicShift",
    "default_config",
    "default_text",
    "prompts_at_risk",
    "read_canaries",
    "read_config",
    "reference_snapshot",
    "register_gate_check",
    "run_gate",
    "with_report",
]
