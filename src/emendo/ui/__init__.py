"""The page of `emendo ui`: ask a model, write a fact, decide, look inside, go back, take it away.

`desk` and what it calls know no browser: `Desk` is given plain values and gives plain values. `page` shows them with
Gradio, which is imported there and nowhere else; `guard` refuses requests that are not the page's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.lazy import lazy

if TYPE_CHECKING:
    from emendo.ui.desk import Desk
    from emendo.ui.fact import Fact
    from emendo.ui.settings import DeskSettings

__all__ = ["Desk", "DeskSettings", "Fact"]

__getattr__ = lazy(
    __name__,
    {"Desk": "emendo.ui.desk", "DeskSettings": "emendo.ui.settings", "Fact": "emendo.ui.fact"},
)
