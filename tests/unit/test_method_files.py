"""A method of one's own from a YAML file: one validator, presets under it, its own name, kept by experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emendo.errors import MethodError
from emendo.experiments.config import ExperimentConfig
from emendo.methods import (
    BASELINES,
    METHODS,
    check_named,
    read_method_file,
    resolve_method,
    spelled_out,
    stored_method,
)
from emendo.models.known import GPT2_XL, GPT_J
from tests.unit.test_methods import Shape


def written(folder: Path, text: str, name: str = "my-emmet.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


OWN = """
base: EMMET
settings:
  target.steps: 40
  target: {learning_rate: 1e-1, argmax_steps: null}
"""


def test_a_file_starts_from_a_method_and_its_preset(tmp_path: Path) -> None:
    shape: Any = Shape(GPT2_XL)
    path = written(tmp_path, OWN)
    resolved = resolve_method(path, shape)
    config, origins = resolved.config, resolved.origins
    assert (config.name, config.presets) == ("my-emmet", "")
    assert config.source.startswith("emmet with settings of my-emmet.yaml: EMMET, arXiv")
    values = config.settings()
    assert (values["target.steps"], values["target.learning_rate"], values["target.argmax_steps"]) == (40, 0.1, None)
    assert values["target.max_norm_ratio"] == 0.75, "the preset's"
    assert origins["target.steps"] == "given (my-emmet.yaml)"
    assert origins["target.max_norm_ratio"].startswith("preset for models shaped like GPT2-XL")
    assert (config.layers, origins["layers"]) == ((17,), origins["target.max_norm_ratio"])
    assert origins["keys.average"] == "method emmet"
    given = resolve_method(path, shape, layers=[3], settings={"target.steps": "9"})
    assert (given.config.layers, given.config.settings()["target.steps"]) == ((3,), 9)
    assert (given.origins["layers"], given.origins["target.steps"]) == ("given (--layers)", "given (--set)")


def test_a_file_may_name_itself_its_layers_and_a_baseline(tmp_path: Path) -> None:
    text = "base: ft-l\nname: gentle\nsource: a test\nlayers: [2, 1]\nsettings: {fine_tune: {max_change: none}}\n"
    path = written(tmp_path, text)
    resolved = resolve_method(path, Shape(GPT_J))  # type: ignore[arg-type]
    config = resolved.config
    assert (config.name, config.source, config.layers, config.kind) == ("gentle", "a test", (1, 2), "baseline")
    assert config.settings()["fine_tune.max_change"] is None
    assert resolved.origins["layers"] == "given (my-emmet.yaml)"
    assert check_named(path, {"fine_tune.steps": "3"}).settings()["fine_tune.steps"] == 3
    again = stored_method("gentle", "a test", {k: v for k, v in config.settings().items() if k != "layers"})
    assert again.settings() == {**config.settings(), "layers": []}
    assert (again.name, again.source, again.deviations) == ("gentle", "a test", ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("settings: {}\n", r"base is missing; expected the method that it starts from \(base: emmet\)"),
        ("base: emet\n", r"unknown method 'emet'; did you mean 'emmet'"),
        ("base: emmet\nsetings: {}\n", r"unknown field 'setings'; did you mean 'settings'"),
        ("base: emmet\nsettings: {target.step: 1}\n", r"my-emmet\.yaml': unknown setting 'target\.step'; did you mean"),
        ("base: emmet\nsettings: {target.steps: 0}\n", r"target\.steps=0: expected a finite number above 0"),
        ("base: emmet\nsettings: {target.steps: [1, 2]}\n", r"target\.steps=\[1, 2\]: .*valid integer"),
        ("base: emmet\nsettings: {target.steps: 3, target: {steps: 4}}\n", r"target\.steps is given twice"),
        ("base: emmet\nsettings: {v_lr: 0.1}\n", r"v_lr is called target\.learning_rate here"),
        ("base: emmet\nname: Memit\n", r"'Memit' is a method of the catalogue.*name: my-emmet"),
        ("base: emmet\nlayers: 5\n", r"layers: .*valid list, found 5"),
        ("base: emmet\nbase: memit\n", r"cannot read.*base"),
        ("- emmet\n", r"expected fields such as base: and settings:, found \['emmet'\]"),
        ("", r"expected fields such as base:"),
    ],
)
def test_a_file_that_cannot_be_used(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=words) as caught:
        read_method_file(written(tmp_path, text))
    assert "my-emmet.yaml" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"cannot read .*nowhere\.yaml.*YAML file with base: and settings: \(--meth"):
        check_named(str(tmp_path / "nowhere.yaml"), {})


def test_a_file_of_a_taken_name_is_told_to_take_another(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"'emmet' is a method of the catalogue"):
        read_method_file(written(tmp_path, "base: emmet\n", "emmet.yaml"))


def test_settings_of_a_file_that_change_nothing_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "base: emmet\nsettings: {post.keep: 0.5}\n")
    with pytest.raises(MethodError, match=r"post\.keep changes nothing because post\.kind is not rect"):
        resolve_method(path, Shape(GPT2_XL))  # type: ignore[arg-type]


def test_an_experiment_keeps_what_the_file_says_and_not_where_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, OWN)
    base: dict[str, Any] = {"name": "x", "data": "d", "n": 2, "settings": {"moments.multiple": 4}}
    (cell,) = ExperimentConfig(**base, methods=[path]).expand()
    assert cell.method == "emmet"
    assert cell.settings == {
        "target.steps": 40,
        "target.learning_rate": 0.1,
        "target.argmax_steps": "none",
        "moments.multiple": 4,
    }
    assert cell.layers is None
    spelled = {**cell.settings}
    (same,) = ExperimentConfig(**{**base, "methods": ["EMMET"], "settings": spelled}).expand()
    assert same.id == cell.id
    assert spelled_out(path, {"target.steps": 7}, [1])[1:] == ({**cell_settings(cell), "target.steps": 7}, (1,))


def cell_settings(cell: Any) -> dict[str, Any]:
    return {name: value for name, value in cell.settings.items() if name != "moments.multiple"}


def test_stored_values_stand_whatever_the_name(tmp_path: Path) -> None:
    settings = {name: value for name, value in METHODS["rome"].settings().items() if name not in ("layers", "n_layers")}
    assert stored_method("rome", "x", settings) == METHODS["rome"]
    unknown = stored_method("gone", "a paper", settings)
    assert unknown.settings() == METHODS["rome"].settings() | {"n_layers": METHODS["emendo"].n_layers}
    assert (unknown.name, unknown.source) == ("gone", "a paper")
    own = BASELINES["lora"].settings()
    del own["layers"]
    assert stored_method("mine", "x", own).kind == "baseline"
    with pytest.raises(MethodError, match="unknown method 'gone'"):
        stored_method("gone", "a paper", {"no.such": 1})
