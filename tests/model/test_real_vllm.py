"""A real vLLM: runs where EMENDO_TEST_VLLM is the address of one that serves the demo model in float32.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve ~/.cache/emendo/models/demo-b179c9523d0e --dtype float32 \\
        --enable-lora --max-lora-rank 8

vLLM does not install beside the torch that Emendo needs, so the server is of another environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from emendo.editing.session import EditSession
from emendo.models import EditableModel
from emendo.requests import EditRequest
from emendo.serving import ServerClient, push, withdraw
from emendo.serving.client import Call
from emendo.statistics import MomentStore

SERVER = os.environ.get("EMENDO_TEST_VLLM", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVER, reason="EMENDO_TEST_VLLM names no vLLM server of the demo model"),
]

CAPITAL = "The capital of {} is the city of"
EDITED = {"Australia": "Canberra", "Turkey": "Ankara", "Nigeria": "Abuja", "Morocco": "Rabat"}
OTHERS = (
    *("Canada", "Ecuador", "Latvia", "France", "Italy", "Japan", "Spain", "Germany", "Egypt", "Greece", "Poland"),
    *("Peru", "Cuba", "Kenya", "Norway", "Sweden"),
)
NEW = 6


def greedy(model: str, lm: EditableModel, country: str) -> str:
    body: dict[str, Any] = {"model": model, "prompt": lm.encode(CAPITAL.format(country)), "max_tokens": NEW}
    answer = ServerClient(SERVER).send(Call("POST", "/v1/completions", {**body, "temperature": 0.0}))
    return str(answer["choices"][0]["text"]).strip()


def test_greedy_answers_are_emendos_own_and_the_base_stays(demo_model: EditableModel, tmp_path: Path) -> None:
    session = EditSession(demo_model, store=MomentStore(tmp_path / "moments"))
    requests = [EditRequest(CAPITAL, subject, target) for subject, target in EDITED.items()]
    update = session.plan(requests, "emmet", settings={"moments.multiple": 2}).update
    countries = (*EDITED, *OTHERS)
    assert len(countries) == 20
    base = str(ServerClient(SERVER).send(Call("GET", "/v1/models"))["data"][0]["id"])
    before = [greedy(base, demo_model, country) for country in countries]
    done = push(demo_model, [update], SERVER, "vllm", out=tmp_path, alias="facts")
    with session.applied(update):
        own = demo_model.generate_many([CAPITAL.format(country) for country in countries], NEW)
    assert [greedy(done.model, demo_model, country) for country in countries] == [text.strip() for text in own]
    assert [greedy(base, demo_model, country) for country in countries] == before
    assert withdraw(SERVER, "vllm", out=tmp_path, alias="facts") == done.model
