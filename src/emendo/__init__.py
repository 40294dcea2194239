"""Emendo edits facts inside the weights of a language model, and takes them back bit for bit.

::

    import emendo

    lm = emendo.load("demo")
    session = emendo.EditSession(lm)
    plan = session.plan([emendo.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")])
    session.apply(plan.update)
    print(lm.generate("The Eiffel Tower is located in the city of"))
    plan.update.save("rome.safetensors")
    session.rollback()

Names are imported when first used, so that `import emendo` alone is cheap and touches nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.lazy import lazy

if TYPE_CHECKING:
    from emendo.datasets import read_records
    from emendo.editing.plan import Plan
    from emendo.editing.session import EditSession
    from emendo.errors import EmendoError, InputError
    from emendo.evaluate import evaluate_records
    from emendo.evaluate.perplexity import perplexity
    from emendo.methods import BASELINES, METHODS, BaselineConfig, MethodConfig, register_method
    from emendo.models import ModelAdapter, load, wrap
    from emendo.requests import EditRecord, EditRequest
    from emendo.solve.distribution import register_distribution
    from emendo.updates.update import ModelUpdate

__version__ = "0.1.0"

__all__ = [
    "BASELINES",
    "METHODS",
    "BaselineConfig",
    "EditRecord",
    "EditRequest",
    "EditSession",
    "EmendoError",
    "InputError",
    "MethodConfig",
    "ModelAdapter",
    "ModelUpdate",
    "Plan",
    "__version__",
    "evaluate_records",
    "load",
    "perplexity",
    "read_records",
    "register_distribution",
    "register_method",
    "wrap",
]

__getattr__ = lazy(
    __name__,
    {
        "BASELINES": "emendo.methods",
        "BaselineConfig": "emendo.methods",
        "EditRecord": "emendo.requests",
        "EditRequest": "emendo.requests",
        "EditSession": "emendo.editing.session",
        "EmendoError": "emendo.errors",
        "InputError": "emendo.errors",
        "METHODS": "emendo.methods",
        "MethodConfig": "emendo.methods",
        "ModelAdapter": "emendo.models",
        "ModelUpdate": "emendo.updates",
        "Plan": "emendo.editing.plan",
        "evaluate_records": "emendo.evaluate",
        "load": "emendo.models",
        "perplexity": "emendo.evaluate",
        "read_records": "emendo.datasets",
        "register_distribution": "emendo.solve.distribution",
        "register_method": "emendo.methods",
        "wrap": "emendo.models",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
