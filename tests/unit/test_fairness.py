"""What cells that compare methods differ in beside the method, and one search for all of them."""

from __future__ import annotations

from typing import Any

from emendo.experiments import ExperimentConfig
from emendo.methods.fairness import SEARCHES, differences_between

CELL = {"model": "demo", "data": "f", "n": 5, "mode": "batch", "batch_size": 5, "seed": 0, "part": "all"}


def resolved(layers: list[int], **target: Any) -> dict[str, Any]:
    return {"settings": {"layers": layers, **{f"target.{name}": value for name, value in target.items()}}}


def test_stop_rule_precision_and_layers_are_named() -> None:
    found = differences_between(
        [
            ({**CELL, "method": "rome"}, resolved([5], steps=20, argmax_steps=None, precision="float32")),
            ({**CELL, "method": "emmet"}, resolved([1, 2, 3], steps=20, argmax_steps=2, precision="bfloat16")),
            ({**CELL, "method": "ft"}, {"settings": {"fine_tune.steps": 25}}),
        ]
    )
    assert found == [
        "layers: rome=5, emmet=1-3",
        "target.argmax_steps: rome=none, emmet=2",
        "target.precision: rome=float32, emmet=bfloat16",
    ]


def test_cells_that_compare_something_else_are_not_compared() -> None:
    one = resolved([5], steps=20)
    assert not differences_between([({**CELL, "method": "rome"}, one), ({**CELL, "method": "rome"}, one)])
    other = {**CELL, "method": "emmet", "n": 50}
    assert not differences_between([({**CELL, "method": "rome"}, one), (other, resolved([1], steps=25))])


def test_a_named_search_is_that_of_all_methods_that_search() -> None:
    config = {"name": "a", "data": "f", "n": 5, "methods": ["EMMET", "memit", "ft", {"method": "rome"}]}
    fast = ExperimentConfig(**config, search="fast")
    cells = {cell.method: cell.settings for cell in fast.expand()}
    assert cells["ft"] == {}
    assert cells["emmet"] == cells["memit"] == cells["rome"] == SEARCHES["fast"]
    own = {**config, "methods": [{"method": "rome", "settings": {"target.steps": 7}}]}
    (cell,) = ExperimentConfig(**own, search="exact").expand()
    assert cell.settings == {**SEARCHES["exact"], "target.steps": 7}
    # A folder that was begun without it goes on.
    assert "search" not in ExperimentConfig(**config).to_dict()
    assert fast.to_dict()["search"] == "fast"
