"""The built wheel alone, as a stranger has it: installed apart from the checkout, it edits a model."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.conftest import build_tiny
from tests.wheel_environment import built_wheel, wheel_environment

pytestmark = pytest.mark.crash
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(tmp_path_factory.mktemp("wheel"))


def test_it_holds_the_package_and_its_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"emendo", wheel.name.split("-py3")[0] + ".dist-info"}
    tracked = subprocess.run(
        ["git", "ls-files", "src/emendo"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    assert {name for name in names if name.startswith("emendo/")} >= {name.removeprefix("src/") for name in tracked}
    assert not [name for name in names if "__pycache__" in name]
    experiments = {f"emendo/data/experiments/{path.name}" for path in (ROOT / "experiments").glob("*.yaml")}
    assert experiments
    assert experiments <= set(names)


def test_it_edits_a_model_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """A new environment with the wheel in it; the libraries that it needs are those of this one."""
    python, site = wheel_environment(wheel, tmp_path / "environment")
    build_tiny("llama").model.save_pretrained(tmp_path / "model")
    build_tiny("llama").tokenizer.save_pretrained(tmp_path / "model")
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [
            *(str(python), "-m", "emendo", "edit", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")),
            *("--prompt", "{} is located in the city of", "--subject", "The Eiffel Tower", "--target", "Rome"),
            *("--method", "rome", "--layers", "1", "--json", "--no-judge"),
            *("--set", "target.steps=4", "--set", "contexts.scheme=fixed", "--set", "moments.multiple=4"),
        ],
        env={**plain, "EMENDO_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    where = subprocess.run(
        [str(python), "-c", "import emendo; print(emendo.__file__)"],
        env=plain,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
    assert list((tmp_path / "out").glob("*.safetensors"))
