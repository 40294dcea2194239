"""Emendo edits facts inside the weights of a language model, and takes them back bit for bit.

::

    import emendo

    fact = {"prompt": "{} is located in the city of", "subject": "The Eiffel Tower", "target_new": "Rome"}
    session = emendo.edit("demo", fact)
    print(session.lm.generate("The Eiffel Tower is located in the city of"))
    session.applied_updates[-1].save("rome.safetensors")
    session.rollback()

`EditSession` has the steps one by one: `plan` works an edit out, `apply` writes it.

Names are imported when first used, so that `import emendo` alone is cheap and touches nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.io.renamed import keep_old_names
from emendo.lazy import lazy

if TYPE_CHECKING:
    from emendo.datasets import load_records, read_records, register_data_format
    from emendo.editing.one_line import edit
    from emendo.editing.plan import Plan
    from emendo.editing.session import EditSession
    from emendo.errors import EmendoError, InputError
    from emendo.evaluate import evaluate_records
    from emendo.evaluate.measures import register_measure
    from emendo.evaluate.perplexity import perplexity
    from emendo.expansion import expand_records
    from emendo.gate import register_gate_check, run_gate
    from emendo.io.versions import __version__
    from emendo.ledger import EditLedger
    from emendo.methods import BASELINES, METHODS, BaselineConfig, MethodConfig, register_method
    from emendo.models import EditableModel, load, register_model_family, wrap
    from emendo.requests import EditRecord, EditRequest
    from emendo.solve.distribution import register_distribution
    from emendo.updates.update import ModelUpdate

__all__ = [
    "BASELINES",
    "METHODS",
    "BaselineConfig",
    "EditLedger",
    "EditRecord",
    "EditRequest",
    "EditSession",
    "EditableModel",
    "EmendoError",
    "InputError",
    "MethodConfig",
    "ModelUpdate",
    "Plan",
    "__version__",
    "edit",
    "evaluate_records",
    "expand_records",
    "load",
    "load_records",
    "perplexity",
    "read_records",
    "register_data_format",
    "register_distribution",
    "register_gate_check",
    "register_measure",
    "register_method",
    "register_model_family",
    "run_gate",
    "wrap",
]

keep_old_names()

__getattr__ = lazy(
    __name__,
    {
        "BASELINES": "emendo.methods",
        "BaselineConfig": "emendo.methods",
        "EditLedger": "emendo.ledger",
        "EditRecord": "emendo.requests",
        "EditRequest": "emendo.requests",
        "EditSession": "emendo.editing.session",
        "EmendoError": "emendo.errors",
        "InputError": "emendo.errors",
        "METHODS": "emendo.methods",
        "MethodConfig": "emendo.methods",
        "EditableModel": "emendo.models",
        "ModelAdapter": "emendo.models.editable",
        "ModelUpdate": "emendo.updates",
        "Plan": "emendo.editing.plan",
        "edit": "emendo.editing.one_line",
        "evaluate_records": "emendo.evaluate",
        "expand_records": "emendo.expansion",
        "load": "emendo.models",
        "load_records": "emendo.datasets",
        "perplexity": "emendo.evaluate",
        "read_records": "emendo.datasets",
        "register_data_format": "emendo.datasets",
        "register_distribution": "emendo.solve.distribution",
        "register_gate_check": "emendo.gate",
        "register_measure": "emendo.evaluate.measures",
        "register_method": "emendo.methods",
        "register_model_family": "emendo.models",
        "run_gate": "emendo.gate",
        "wrap": "emendo.models",
        "__version__": "emendo.io.versions",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
