"""Every tensor of a plan is where it belongs, shown without a GPU on a device that torch takes for a foreign one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emendo.methods.catalog import METHODS

pytestmark = [pytest.mark.slow, pytest.mark.device]

ROOT = Path(__file__).parent.parent.parent


def on_foreign_device(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_foreign_device_notices_mixed_operands() -> None:
    done = on_foreign_device(
        "-c",
        "import torch; from tests.gpu.foreign_device import *; register()\n"
        "with foreign_device(): torch.ones(2, 2, device='foreign') @ torch.ones(2, 2)",
    )
    assert done.returncode != 0
    assert "operands on foreign:0 and on cpu" in done.stderr


@pytest.mark.parametrize(("families", "methods"), [("llama", list(METHODS)), ("gpt2,gptj,gemma2", ["emmet", "emendo"])])
def test_edits_on_a_foreign_device(families: str, methods: list[str]) -> None:
    done = on_foreign_device("tests/gpu/foreign_device.py", families, ",".join(methods))
    assert done.returncode == 0, done.stderr[-4000:]
    expected = [f"{family} {method}" for family in families.split(",") for method in methods]
    assert [line for line in done.stdout.splitlines() if line in expected] == expected
