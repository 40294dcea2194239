"""The demo model in 4 bits: an edit beside the base, through peft, and inside its own GGUF file in llama.cpp."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import emendo
from emendo.editing.session import EditSession
from emendo.export import write_adapter, write_gguf_in_place
from emendo.export.recorded_moments import recorded_moments
from emendo.models import EditableModel
from emendo.models.demo import demo_gguf
from emendo.models.packed_weights import weight_parts
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from tests.llama_server import llama_server

pytestmark = pytest.mark.slow

EIFFEL = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
SETTINGS = {"moments.multiple": 3}


def _next(lm: EditableModel, model: object) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([lm.encode(EIFFEL.text)])).logits[0, -1].float()  # type: ignore[operator]


def test_an_edit_of_the_model_in_nf4_holds_and_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    lm = emendo.load("demo", device="cpu", load_in="nf4")
    session = EditSession(lm, store=MomentStore(tmp_path / "moments"))
    before = {name: part.detach().clone() for name, part in weight_parts(lm.model)}
    update = session.plan([EIFFEL], "emmet", settings=SETTINGS).update
    adapter = write_adapter(lm, [update], tmp_path)
    session.apply(update)
    edited = _next(lm, lm.model)
    assert lm.decode([int(edited.argmax())]).strip() == "Rome"
    session.rollback()
    assert all(torch.equal(part, before[name]) for name, part in weight_parts(lm.model))
    assert lm.decode([int(_next(lm, lm.model).argmax())]).strip() == "Paris"
    served = PeftModel.from_pretrained(lm.model, str(adapter.path)).eval()
    assert float((_next(lm, served) - edited).abs().max()) <= 1e-4


def test_llama_cpp_says_what_was_written_into_the_levels_of_its_file(demo_model: EditableModel, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    base = demo_gguf()
    assert base is not None
    session = EditSession(demo_model, store=MomentStore(tmp_path / "moments"))
    update = session.plan([EIFFEL], "emmet", settings=SETTINGS).update
    layers, settings, _ = recorded_moments([update])
    moments, _ = session.second_moments(layers, settings)
    said = {"base": _served(base)}
    for rounding in ("feedback", "nearest"):
        done = write_gguf_in_place(
            *(demo_model, [update], tmp_path / f"{rounding}.gguf"), base=base, moments=moments, rounding=rounding
        )
        said[rounding] = _served(done.path)
        if rounding == "feedback":
            assert min(layer.kept for layer in done.layers) > 0.9
    assert said["base"].startswith("Paris")
    assert said["feedback"].startswith("Rome"), said


def _served(file: Path) -> str:
    """What plain llama.cpp continues the prompt with."""
    with llama_server(file) as address:
        asked = json.dumps({"prompt": EIFFEL.text, "n_predict": 3, "temperature": 0}).encode()
        request = urllib.request.Request(f"{address}/completion", asked, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return str(json.loads(answer.read())["content"]).strip()
