"""Causal tracing: which states of a model carry a fact, exactly."""

from emendo.tracing.corrupt import embedding_deviation
from emendo.tracing.facts import CLASSES, TraceFact, packaged_subjects, position_classes
from emendo.tracing.file import read_trace, write_trace
from emendo.tracing.result import Average, FactTrace, KindTrace, Trace
from emendo.tracing.run import trace
from emendo.tracing.settings import KINDS, TraceSettings

__all__ = [
    "CLASSES",
    "KINDS",
    "Average",
    "FactTrace",
    "KindTrace",
    "Trace",
    "TraceFact",
    "TraceSettings",
    "embedding_deviation",
    "packaged_subjects",
    "position_classes",
    "read_trace",
    "trace",
    "write_trace",
]
