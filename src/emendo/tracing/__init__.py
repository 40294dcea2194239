"""Causal tracing: which states of a model carry a fact, exactly."""

from emendo.tracing.corrupt import embedding_deviation
from emendo.tracing.facts import CLASSES, TraceFact, packaged_subjects, position_classes
from emendo.tracing.file import read_trace, write_trace
from emendo.tracing.result import Average, FactTrace, KindTrace, Trace
from emendo.tracing.run import PARTS, forget_parts, trace
from emendo.tracing.settings import KINDS, TraceSettings

__all__ = [
    "CLASSES",
    "KINDS",
    "PARTS",
    "Average",
    "FactTrace",
    "KindTrace",
    "Trace",
    "TraceFact",
    "TraceSettings",
    "embedding_deviation",
    "forget_parts",
    "packaged_subjects",
    "position_classes",
    "read_trace",
    "trace",
    "write_trace",
]
