"""The benchmark of large shapes: the shapes are the models' own, and it runs to its end on tiny ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.large_models import NAMES, SHAPES, invented, main
from tests.gpu.test_parity import DEVICES

pytestmark = pytest.mark.device


@pytest.mark.parametrize(("shape", "parameters"), [("gptj-6b", 6_050_882_784), ("llama3-8b", 8_030_261_248)])
def test_shapes_have_the_parameters_of_the_models(shape: str, parameters: int) -> None:
    model_type, settings = SHAPES[shape]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_invented_facts_are_about_different_people() -> None:
    for n in (1, 24, len(NAMES)):
        assert len({request.subject for request in invented(n)}) == n


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("shape", "dtype"), [("tiny", "bfloat16"), ("tiny-gptj", "float32")])
def test_every_stage_is_timed(
    shape: str, dtype: str, device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "large.json"
    arguments = f"--shape {shape} --device {device} --dtype {dtype} -n 3 --steps 3 --tokens 300 --batches 1 10"
    main([*arguments.split(), "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == found
    expected = ["build", "weights digest", "second moments", "targets", "keys", "prepare", "plan", "solve"]
    assert list(found["stages"]) == expected
    memory = "peak_cuda_mib" if device == "cuda" else "peak_rss_mib"
    assert all(stage["seconds"] > 0 and stage[memory] > 0 for stage in found["stages"].values())
    assert found["targets"]["evaluations"] == 3  # no stop rule held
    assert 0 < found["targets"]["of_floor"] < 1
    assert found["second_moments"]["tokens_per_second"] > 0
    assert "refused" not in found["plan"]
    assert set(found["plan"]["seconds"]) >= {"targets", "keys and solve", "measures"}
    assert [row["n"] for row in found["solve"]["solves"]] == [1, 1, 10, 10]
    assert found["machine"]["versions"]["torch"] == torch.__version__
