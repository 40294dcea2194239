"""The demo model's own 4-bit file in a real llama.cpp server: its answers with our adapter against Emendo's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from emendo.editing.session import EditSession
from emendo.export import write_gguf_adapter
from emendo.models import EditableModel
from emendo.models.demo import demo_gguf
from emendo.requests import EditRequest
from emendo.serving import ServerClient, push, withdraw
from emendo.serving.client import Call
from emendo.serving.pushing import TOLERANCE
from emendo.statistics import MomentStore
from tests.llama_server import llama_server

pytestmark = pytest.mark.slow

CAPITAL = "The capital of {} is the city of"
NEIGHBOURS = ("France", "Italy", "Japan", "Germany", "Greece", "Cuba", "Kenya", "Norway", "Sweden", "Canada")
FACTS = {"Australia": "Canberra", "Turkey": "Ankara", "Nigeria": "Abuja", "Morocco": "Rabat"}


def test_twenty_answers_are_emendos_own_and_are_taken_back_by_one_call(
    demo_model: EditableModel, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    base = demo_gguf()
    assert base is not None
    session = EditSession(demo_model, store=MomentStore(tmp_path / "moments"))
    requests = [EditRequest(CAPITAL, subject, target) for subject, target in FACTS.items()]
    update = session.plan(requests, "emmet", settings={"moments.multiple": 2}).update
    adapter = write_gguf_adapter(demo_model, [update], tmp_path, base=base)
    assert adapter.distance == 0
    neighbours = tmp_path / "neighbours.jsonl"
    neighbours.write_text("".join(f'{{"prompt": "{CAPITAL.format(country)}"}}\n' for country in NEIGHBOURS))
    with llama_server(base, [adapter.path], threads=2) as address:
        before = ask(address)
        done = push(demo_model, [update], address, "llamacpp", out=tmp_path, probes=[str(neighbours), "packaged"])
        assert len(done.edited) == 20
        assert sum(one.text.startswith("The capital of") for one in done.edited) >= len(FACTS) + 3, "neighbours too"
        for one in done.edited:
            assert one.difference < TOLERANCE, one
        assert max(one.difference for one in done.edited if one.kind == "fact") < 0.02
        assert {country: said.startswith(FACTS[country]) for country, said in ask(address).items()} == dict.fromkeys(
            FACTS, True
        )
        assert withdraw(address, "llamacpp") == done.model
        assert ask(address) == before


def ask(address: str) -> dict[str, str]:
    """What clients get."""
    client, body = ServerClient(address), {"n_predict": 4, "temperature": 0.0}
    calls = {country: Call("POST", "/completion", {"prompt": CAPITAL.format(country), **body}) for country in FACTS}
    return {country: str(client.send(call)["content"]).strip() for country, call in calls.items()}
