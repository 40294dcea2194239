"""Finished plans on the disk, so that a second try of an edit, under other limits of its gate say, finds its update.

A plan of the unedited model depends on its weights, on the requests, on every value of the method, on the seed, the
second moments and what computes, and on Emendo's own code; all of that names its file. Methods, distributions and model
families that others bring are code that no name covers: their plans are made again. So is a plan whose file cannot be
read; one that cannot be written is not kept. Neither is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from emendo.editing.plan import LayerReport, Plan
from emendo.editing.value_search import SearchTrace
from emendo.errors import InputError, NumericalError, OutputError
from emendo.io.home import emendo_home
from emendo.io.versions import code_sha256
from emendo.methods import MethodConfig, ResolvedMethod
from emendo.models import ARCHITECTURES, EditableModel
from emendo.models.identity import template_sha256
from emendo.requests import AnyContext, EditRequest
from emendo.solve import SolveStats
from emendo.solve.distribution import DISTRIBUTIONS
from emendo.updates.update import ModelUpdate

MOST_PLANS = 24
"""Plans that are kept; the oldest ones go."""

MOST_BYTES = 2**28
"""Of an update that is kept."""

_RECORD = "plan"
"""Of what the file's record holds beside that of the update."""


@dataclass(frozen=True)
class PlanMemory:
    """Plans of unedited models that are remembered.

    Attributes:
        folder: Where; None: ``plans`` under EMENDO_HOME.
    """

    folder: Path | None = None

    def read(
        self,
        asked: Mapping[str, Any],
        requests: Sequence[EditRequest],
        method: ResolvedMethod[MethodConfig],
        contexts: Callable[[], tuple[AnyContext, ...]],
    ) -> Plan | None:
        """The plan of an identity; None where it is not known.

        Args:
            asked: From `plan_identity`.
            requests: The facts.
            method: With every value fixed.
            contexts: Gives the prefix contexts.
        """
        path = self._path(asked)
        if not path.is_file():
            return None
        try:
            update = ModelUpdate.load(path)
            kept = update.info[_RECORD]
            info = {name: value for name, value in update.info.items() if name != _RECORD}
            if kept["id"] != update.id or kept["asked"] != _key(asked):
                return None
            return Plan(
                replace(update, info=info),
                tuple(requests),
                method,
                contexts(),
                tuple(SearchTrace(**{**row, "losses": tuple(row["losses"])}) for row in kept["targets"]),
                tuple(map(_layer_report, info["layers"])),
                {},
                tuple(kept["warnings"]),
            )
        except (InputError, OSError, KeyError, TypeError, ValueError):
            return None

    def keep(self, asked: Mapping[str, Any], plan: Plan) -> None:
        """Remember a plan that has just been made.

        Args:
            asked: From `plan_identity`.
            plan: As `plan_edit` gives it.
        """
        if plan.update.nbytes > MOST_BYTES:
            return
        record = {
            "asked": _key(asked),
            "id": plan.update.id,
            "targets": [asdict(trace) for trace in plan.targets],
            "warnings": list(plan.warnings),
        }
        path = self._path(asked)
        with suppress(OutputError, OSError, NumericalError):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(plan.update, info={**plan.update.info, _RECORD: record}).save(path)
            for old in sorted(path.parent.glob("*.safetensors"), key=lambda p: p.stat().st_mtime)[:-MOST_PLANS]:
                old.unlink(missing_ok=True)

    def _path(self, asked: Mapping[str, Any]) -> Path:
        return (self.folder or emendo_home() / "plans") / f"{_key(asked)[:32]}.safetensors"


def plan_identity(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    method: ResolvedMethod[MethodConfig],
    *,
    seed: int,
    moments: Mapping[str, Any],
    base: Mapping[str, str],
    made_by: Mapping[str, Any],
) -> dict[str, Any] | None:
    """All that a plan on the unedited model depends on, as JSON values; None where code of others takes part.

    Args:
        lm: The model, without edits.
        requests: The facts.
        method: With every value fixed.
        seed: Of the session.
        moments: Record of the second moments that the method asks for.
        base: Identity of the model.
        made_by: Versions and what computes.
    """
    config = method.config
    owners = (DISTRIBUTIONS.origin(config.distribution), ARCHITECTURES.origin(lm.spec.model_type))
    if type(config) is not MethodConfig or set(owners) != {"Emendo"}:
        return None
    return {
        "code": code_sha256(),
        "weights": lm.weights_digest(),
        "config": lm.config_digest(),
        "tokenizer": lm.tokenizer_digest(),
        "template": template_sha256(lm.tokenizer),
        "dtype": str(lm.dtype),
        "device": str(lm.device),
        "base": dict(base),
        "requests": [request.to_dict() for request in requests],
        "method": method.to_dict(),
        "seed": seed,
        "moments": dict(moments),
        **made_by,
    }


def _layer_report(row: Mapping[str, Any]) -> LayerReport:
    return LayerReport(**{**row, "solves": tuple(SolveStats(**solved) for solved in row["solves"])})


def _key(asked: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
