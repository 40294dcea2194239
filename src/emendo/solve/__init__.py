"""The algebra of an edit: tensors in, tensors out.

One formula serves every method. With keys ``K [n, d_in]``, residuals ``R [n, d_out]`` and the
preservation metric ``A = f(C) + H``, the update ``ΔW = RᵀQ`` has the dual keys

    Q = (K A⁻¹ Kᵀ + s I)⁻¹ K A⁻¹

``s = 0`` memorizes with equality (ROME for one request, EMMET for many), ``s > 0`` by least squares
(MEMIT: ``A = λC``, ``s = 1``). `Preservation` is f, `prepare` factorises A once per layer, `solve`
gives Q, and the cost functions measure ΔW without forming it. A null space (AlphaEdit) replaces A⁻¹ by
``U A_U⁻¹ Uᵀ``; `rect`, `prune` and `cap_norm` are post-steps on a finished ΔW.

Nothing here knows a model, a tokenizer or a config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.lazy import lazy

if TYPE_CHECKING:
    from emendo.solve.block_moment import (
        BlockMoment,
        KeySample,
    )
    from emendo.solve.costs import (
        drift_over_price,
        frobenius_norm,
        output_power,
        preservation_cost,
    )
    from emendo.solve.factorise import (
        prepare,
    )
    from emendo.solve.feasibility import (
        KEY_TOLERANCE,
        key_tolerance,
    )
    from emendo.solve.metric import (
        PreparedLayer,
    )
    from emendo.solve.null_space import (
        NullSpace,
    )
    from emendo.solve.postprocess import (
        cap_norm,
        prune,
        rect,
        retained,
        retained_in_all,
    )
    from emendo.solve.preservation import (
        extend_history,
    )
    from emendo.solve.settings import (
        NullSpaceRule,
        Preservation,
    )
    from emendo.solve.solver import (
        Form,
        Solution,
        SolveStats,
        check_keys,
        check_system,
        solve,
    )

__all__ = [
    "KEY_TOLERANCE",
    "BlockMoment",
    "Form",
    "KeySample",
    "NullSpace",
    "NullSpaceRule",
    "PreparedLayer",
    "Preservation",
    "Solution",
    "SolveStats",
    "cap_norm",
    "check_keys",
    "check_system",
    "drift_over_price",
    "extend_history",
    "frobenius_norm",
    "key_tolerance",
    "output_power",
    "prepare",
    "preservation_cost",
    "prune",
    "rect",
    "retained",
    "retained_in_all",
    "solve",
]

__getattr__ = lazy(
    __name__,
    {
        "BlockMoment": "emendo.solve.block_moment",
        "Form": "emendo.solve.solver",
        "KEY_TOLERANCE": "emendo.solve.feasibility",
        "KeySample": "emendo.solve.block_moment",
        "NullSpace": "emendo.solve.null_space",
        "NullSpaceRule": "emendo.solve.settings",
        "PreparedLayer": "emendo.solve.metric",
        "Preservation": "emendo.solve.settings",
        "Solution": "emendo.solve.solver",
        "SolveStats": "emendo.solve.solver",
        "cap_norm": "emendo.solve.postprocess",
        "check_keys": "emendo.solve.solver",
        "check_system": "emendo.solve.solver",
        "drift_over_price": "emendo.solve.costs",
        "extend_history": "emendo.solve.preservation",
        "frobenius_norm": "emendo.solve.costs",
        "key_tolerance": "emendo.solve.feasibility",
        "output_power": "emendo.solve.costs",
        "prepare": "emendo.solve.factorise",
        "preservation_cost": "emendo.solve.costs",
        "prune": "emendo.solve.postprocess",
        "rect": "emendo.solve.postprocess",
        "retained": "emendo.solve.postprocess",
        "retained_in_all": "emendo.solve.postprocess",
        "solve": "emendo.solve.solver",
    },
)
