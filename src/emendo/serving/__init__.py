"""Edits into model servers that run: llama.cpp's, vLLM and SGLang."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emendo.lazy import lazy

if TYPE_CHECKING:
    from emendo.serving.aliases import served_name
    from emendo.serving.client import ServerClient
    from emendo.serving.engines import ENGINES
    from emendo.serving.probes import Compared, Probe, make_probes
    from emendo.serving.pushing import Pushed, push, withdraw

__all__ = ["ENGINES", "Compared", "Probe", "Pushed", "ServerClient", "make_probes", "push", "served_name", "withdraw"]

__getattr__ = lazy(
    __name__,
    {
        "Compared": "emendo.serving.probes",
        "ENGINES": "emendo.serving.engines",
        "Probe": "emendo.serving.probes",
        "Pushed": "emendo.serving.pushing",
        "ServerClient": "emendo.serving.client",
        "make_probes": "emendo.serving.probes",
        "push": "emendo.serving.pushing",
        "served_name": "emendo.serving.aliases",
        "withdraw": "emendo.serving.pushing",
    },
)
