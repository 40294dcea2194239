"""The command as its users meet it: one document or one message, the right exit code, and no file that lies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from emendo.cli.interrupts import what_is_left
from emendo.models.architecture import ARCHITECTURES
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.tiny.conftest import Command

FACT = ["--prompt", "{} is located in the city of", "--subject", "The Eiffel Tower", "--target", "Rome"]
QUICK = ["--set", "target.steps=3", "--set", "contexts.scheme=fixed", "--set", "moments.multiple=4"]
RECORD: dict[str, Any] = {
    "id": "eiffel",
    "prompt": "{} is located in the city of",
    "subject": "The Eiffel Tower",
    "target": "Rome",
    "target_true": "Paris",
    "paraphrase_prompts": ["The Eiffel Tower stands in"],
    "neighborhood_prompts": ["The capital of France is", "The weather in Bordeaux was"],
}
OTHER = {"prompt": "The capital of {} is", "subject": "Japan", "target": "Bordeaux"}

pytestmark = pytest.mark.usefixtures("home")


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


# ---- editing -------------------------------------------------------------------------------------------------


def test_one_fact(emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "deep" / "out"
    code, text, err = emendo("edit", "--model", model, *FACT, *QUICK, "--target-true", "Paris", "--out", str(out))
    assert code == 0, err
    for words in (
        "Before and after",
        "Scores in percent",
        "Perplexity",
        "The model in memory is restored exactly (2 of 2 tensors)",
        "Verdict: ",
    ):
        assert words in text
    assert "targets:" in err
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "report.md", "update.safetensors"]
    update = ModelUpdate.load(out / "update.safetensors")
    report = json.loads((out / "report.json").read_text())
    assert report["update"]["id"] == update.id
    assert "# The Eiffel Tower → " in (out / "report.md").read_text()
    # What the report says of the pages about an edit is true: the command it names makes the page that it links.
    assert "`emendo see . --model MODEL --requests FACTS --out see`" in (out / "report.md").read_text()
    monkeypatch.chdir(out)
    assert emendo("see", ".", "--out", "see", "-q")[0] == 0
    assert "[see/see.html](see/see.html)" in Path("report.md").read_text()
    assert Path("see/see.html").is_file()


def test_every_option_reaches_the_engine(emendo: Command, model: str, tmp_path: Path) -> None:
    requests = jsonl(tmp_path / "requests.jsonl", RECORD, "", OTHER)
    code, text, err = emendo(
        *("edit", "--model", model, "--requests", requests, "--method", "memit", "--layers", "0,2-3", *QUICK),
        *("--set", "preservation.weight=7", "--seed", "3", "--device", "cpu", "--dtype", "bfloat16"),
        *("--out", str(tmp_path / "out"), "--json", "--quiet"),
    )
    assert (code, err) == (0, "")
    document = json.loads(text)
    assert document["update"]["layers"] == [0, 2, 3]
    assert document["method"]["name"] == "memit"
    assert document["method"]["settings"]["preservation.weight"] == 7
    assert document["method"]["origins"]["preservation.weight"] == "given (--set)"
    assert document["seed"] == 3
    assert document["moments"]["dtype"] == "bfloat16"
    assert [request["subject"] for request in document["requests"]] == ["The Eiffel Tower", "Japan"]
    assert set(document["rolled_back_bitwise"].values()) == {True}
    scores = document["judgement"]["after"]["scores"]
    assert scores["n"] == 2
    assert all(scores[name] is not None for name in ("ES", "PS", "NS"))
    assert {sample["kind"] for sample in document["judgement"]["samples"]} == {"edited", "paraphrase", "neighbor"}
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored == {name: value for name, value in document.items() if name != "files"}
    assert all(Path(path).is_file() for path in document["files"].values())


def test_the_same_command_twice_makes_the_same_update(emendo: Command, model: str, tmp_path: Path) -> None:
    arguments = ["edit", "--model", model, *FACT, "--set", "target.steps=3", "--set", "moments.multiple=4", "--json"]
    documents = []
    for name in ("a", "b"):
        code, text, err = emendo(*arguments, "--out", str(tmp_path / name))
        assert code == 0, err
        documents.append(json.loads(text))
    first, second = documents
    assert first["update"] == second["update"]
    assert first["contexts"] == second["contexts"]
    assert first["targets"] == second["targets"]
    for when in ("before", "after"):
        assert first["judgement"][when]["scores"] == second["judgement"][when]["scores"]
    assert first["judgement"]["samples"] == second["judgement"]["samples"]
    loaded = [ModelUpdate.load(tmp_path / name / "update.safetensors") for name in ("a", "b")]
    assert loaded[0].id == loaded[1].id


def test_plan_only_edits_nothing(emendo: Command, model: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = ["edit", "--model", model, *FACT, "--plan-only", "--out", str(tmp_path / "out")]
    code, text, _ = emendo(*arguments)
    assert code == 0
    assert "Nothing was edited" in text
    assert "[0, 1]" in text, "layers as they are typed"
    assert "\\[" not in text
    code, text, _ = emendo(*arguments, "--json")
    document = json.loads(text)
    assert document["plan_only"] is True
    assert document["requests"][0]["target_tokens"] == [" ", "Ro", "me"]
    assert document["method"]["origins"].keys() == document["method"]["settings"].keys()
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_only_names_deviations(emendo: Command, model: str) -> None:
    arguments = ["edit", "--model", model, *FACT, "--method", "rome", "--plan-only"]
    code, text, err = emendo(*arguments)
    assert code == 0, err
    assert "deviation: the paper has one key" in " ".join(text.split())
    assert "target.argmax_steps" in text
    deviations = json.loads(emendo(*arguments, "--json")[1])["method"]["deviations"]
    assert deviations[0].startswith("the paper has one key")


def test_what_goes_together_is_judged_for_the_model(emendo: Command, tmp_path: Path) -> None:
    """On Gemma-2 targets are MLP outputs, which makes of keys.residual=mean what emmet alone would not have."""
    lm = build_tiny("gemma2")
    lm.model.save_pretrained(tmp_path / "gemma")
    lm.tokenizer.save_pretrained(tmp_path / "gemma")
    code, text, err = emendo(
        *("edit", "--model", str(tmp_path / "gemma"), *FACT, "--method", "emmet", "--set", "keys.residual=mean"),
        *("--plan-only", "--json"),
    )
    assert code == 0, err
    settings = json.loads(text)["method"]["settings"]
    assert (settings["target.site"], settings["keys.residual"]) == ("mlp_out", "mean")


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_quiet_is_quiet(emendo: Command, model: str, arguments: list[str]) -> None:
    code, text, err = emendo("edit", "--model", model, *FACT, *QUICK, "--quiet", *arguments)
    assert (code, err) == (0, "")
    assert text


# ---- bad input -----------------------------------------------------------------------------------------------

ROWS: dict[str, tuple[list[Any], list[str]]] = {
    "not JSON": (["{", OTHER, "[1]"], ["line 1: not JSON", "line 3: expected a JSON object"]),
    "no slot": ([{**OTHER, "prompt": "The capital is"}], ["exactly one {}", "found 0"]),
    "two slots": ([{**OTHER, "prompt": "{} and {}"}], ["found 2"]),
    "empty subject": ([{**OTHER, "subject": ""}], ["line 1: subject is empty"]),
    "empty target": ([{**OTHER, "target": "  "}], ["line 1: target is empty"]),
    "subject a number": ([{**OTHER, "subject": 7.5}], ["subject must be a string", "float"]),
    "field missing": ([{"prompt": "{} is"}], ["no known format", "(subject, target missing here)"]),
    "repeated": ([OTHER, RECORD, OTHER], ["repeated", "#1", "#3"]),
    "contradicting": ([OTHER, {**OTHER, "target": "Rome"}], ["contradicting", "#2 → 'Rome'"]),
    "nothing": ([""], ["is empty"]),
}
OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "slot": (["--prompt", "The tower is in"], ["exactly one {}"]),
    "two slots": (["--prompt", "{} {}"], ["found 2"]),
    "subject": (["--subject", ""], ["subject is empty"]),
    "target": (["--target", " "], ["target is empty"]),
    "layer out of range": (["--layers", "4"], ["layers 0 to 3"]),
    "layers in words": (["--layers", "five"], ["'five'", "4-8"]),
    "layers backwards": (["--layers", "8-4"], ["'8-4'", "4-8"]),
    "layers half": (["--layers", "1-"], ["'1-'"]),
    "layers negative": (["--layers", "-1"], ["'-1'"]),
    "layers without end": (["--layers", "0-99999999999999"], ["--layers"]),
    "several layers": (["--method", "emmet", "--layers", "1,2"], ["distribution=even"]),
    "layer twice": (["--method", "memit", "--layers", "1,1"], ["repeated"]),
    "method": (["--method", "memmit"], ["did you mean 'memit'"]),
    "setting": (["--set", "target.step=3"], ["did you mean 'target.steps'"]),
    "setting without =": (["--set", "target.steps"], ["NAME=VALUE"]),
    "setting without name": (["--set", "=3"], ["NAME=VALUE"]),
    "setting of the wrong type": (["--set", "target.batch_size=few"], ["valid integer"]),
    "setting out of range": (["--set", "target.batch_size=0"], ["above 0"]),
    "setting twice": (["--set", "target.steps=4"], ["target.steps is given twice", "'3'", "'4'"]),
    "setting without effect": (["--set", "post.keep=0.5"], ["changes nothing", "--set post.kind=rect"]),
    "settings that exclude each other": (["--set", "keys.residual=mean"], ["--set target.site=mlp_out"]),
    "layers as a setting": (["--set", "layers=5"], ["--layers 5"]),
    "n_layers as a setting": (["--set", "n_layers=3"], ["--layers 4-8"]),
    "the former name of a setting": (["--set", "span=3"], ["--layers 4-8"]),
    "missing model": (["--model", "./no-such-folder"], ["./no-such-folder", "--model"]),
    "missing hub model": (["--model", "nobody/no-such-model"], ["nobody/no-such-model", "--model"]),
    "folder without a model": (["--model", "."], ["config.json"]),
    "missing gguf": (["--model", "no.gguf"], ["no GGUF file"]),
    "device": (["--device", "abacus"], ["--device"]),
    "dtype": (["--dtype", "float7"], ["--dtype"]),
    "seed": (["--seed", "x"], ["--seed"]),
    "unknown option": (["--colour", "red"], ["--colour"]),
    "out below a file": (["--out", "file/below/out"], ["'file/below/out'", "is a file"]),
    "out is a file": (["--out", "file"], ["is a file"]),
    "out too long": (["--out", "x" * 300], ["--out"]),
    "both forms": (["--requests", "file"], ["exclude each other"]),
    "moments of a missing file": (["--set", "moments.source=none.txt"], ["none.txt"]),
}


def check_refused(result: tuple[int, str, str], words: list[str], as_json: bool) -> None:
    code, out, err = result
    assert code == 2, err
    assert "Traceback" not in err
    message = " ".join(err.split())
    for word in words:
        assert word in message
    if as_json:
        document = json.loads(out)
        assert document["error"]["exit_code"] == 2
        assert document["error"]["type"]
        for word in words:
            assert word in " ".join(document["error"]["message"].split())
    else:
        assert out == ""


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("case", ROWS)
def test_bad_rows(case: str, as_json: bool, emendo: Command, model: str, tmp_path: Path) -> None:
    rows, words = ROWS[case]
    requests, out = jsonl(tmp_path / "requests.jsonl", *rows), tmp_path / "out"
    result = emendo(
        "edit", "--model", model, "--requests", requests, "--out", str(out), "--quiet", *(["--json"] * as_json)
    )
    check_refused(result, words, as_json)
    assert not out.exists()


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options(case: str, as_json: bool, emendo: Command, model: str, tmp_path: Path) -> None:
    arguments, words = OPTIONS[case]
    (tmp_path / "file").write_text("a regular file")
    defaults = ["--model", model, *FACT, *QUICK, "--out", str(tmp_path / "out"), "--quiet"]
    result = emendo("edit", *defaults, *arguments, *(["--json"] * as_json))  # the last of an option counts
    check_refused(result, words, as_json)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["edit", "--model", "x"], ["missing --prompt, --subject, --target"]),
        (["edit", "--model", "x", "--prompt", "{} is", "--target", "y"], ["missing --subject"]),
        (["edit", "--model", "x", "--requests", "nowhere.jsonl"], ["nowhere.jsonl", "--requests"]),
        (["edit", *FACT], ["--model"]),
        (["edits"], ["edits"]),
        (["moments", "gather"], ["gather"]),
        (["moments", "collect", "--model", "./nowhere"], ["./nowhere"]),
        (["demo", "--method", "memmit"], ["did you mean 'memit'"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_incomplete_commands(arguments: list[str], words: list[str], as_json: bool, emendo: Command) -> None:
    check_refused(emendo(*arguments, *(["--json"] * as_json)), words, as_json)


def test_a_conflict_of_keys_is_bad_input(emendo: Command, model: str, tmp_path: Path) -> None:
    twin = {**RECORD, "id": "twin", "prompt": "{} was built in", "target": "Tokyo"}
    requests = jsonl(tmp_path / "requests.jsonl", RECORD, twin)
    each = ["--set", "target.shared=request"]
    result = emendo(
        "edit", "--model", model, "--requests", requests, *QUICK, *each, "--out", "out", "--quiet", "--json"
    )
    check_refused(result, ["share a key: eiffel, twin", "--method memit"], as_json=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "stage", ["emendo.editing.value_cache.ValueCache.find", "emendo.report.judge", "emendo.models.load"]
)
def test_an_interrupt(stage: str, emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))  # where no earlier try has left its plan
    monkeypatch.setattr(stage, interrupted)
    code, out, err = emendo_call(emendo, model, tmp_path)
    assert code == 130
    assert json.loads(out)["error"] == {
        "type": "Interrupted",
        "message": "interrupted; no update was written; finished searches are kept for the next try",
        "exit_code": 130,
    }
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["experiment", "grid.yaml"], "what is finished is kept: run it again to go on"),
        (["-q", "trace"], "what is finished is kept: run it again to go on"),
        (["moments", "collect"], "what was collected is kept"),
        (["report", "runs"], "nothing was written"),
        ([], "nothing was written"),
    ],
)
def test_what_an_interrupt_leaves_is_said_by_command(arguments: list[str], told: str) -> None:
    assert what_is_left(arguments).startswith(f"interrupted; {told}")


def emendo_call(command: Command, model: str, tmp_path: Path) -> tuple[int, str, str]:
    return command("edit", "--model", model, *FACT, *QUICK, "--out", str(tmp_path / "out"), "--json")


def test_a_numerical_failure_is_exit_code_1(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emendo.editing.keys import EditActivations, EditKeys

    read = EditActivations.keys

    def spoilt(*args: Any, **kwargs: Any) -> dict[int, EditKeys]:
        found = read(*args, **kwargs)
        return {layer: EditKeys(keys.mean * float("nan"), keys.plain) for layer, keys in found.items()}

    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))  # where no earlier try has left its plan
    monkeypatch.setattr(EditActivations, "keys", spoilt)
    code, out, err = emendo_call(emendo, model, tmp_path)
    assert code == 1
    assert json.loads(out)["error"]["type"] == "NumericalError"
    assert "not finite" in err
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_leaves_no_update_and_no_litter(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(draft: str | Path, target: str | Path) -> None:
        raise OSError(28, "No space left on device")

    before = set(tmp_path.iterdir())
    for rename in ("rename", "replace"):
        monkeypatch.setattr(os, rename, full)
    code, out, err = emendo_call(emendo, model, tmp_path)
    assert code == 2
    assert "No space left" in err
    assert json.loads(out)["error"]["type"] == "OutputError"
    assert set(tmp_path.iterdir()) == before


# ---- moments -------------------------------------------------------------------------------------------------


def test_moments_from_collection_to_damage(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "own"))
    assert json.loads(emendo("moments", "list", "--json")[1])["moments"] == []
    collect = ["moments", "collect", "--model", model, "--layers", "1-2", "--tokens", "300", "--json", "--quiet"]
    code, text, err = emendo(*collect)
    assert (code, err) == (0, "")
    rows = json.loads(text)["moments"]
    assert [(row["layer"], row["tokens"], row["cached"]) for row in rows] == [(1, 300, False), (2, 300, False)]
    assert [row["cached"] for row in json.loads(emendo(*collect)[1])["moments"]] == [True, True]
    code, text, _ = emendo("moments", "verify")
    assert code == 0
    assert text.count("verified") == 2
    damaged = Path(rows[1]["path"])
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    assert emendo("moments", "list")[0] == 0, "headers only"
    code, _, err = emendo("moments", "verify")
    assert code == 2
    assert "1 of 2" in err
    code, text, _ = emendo("moments", "verify", "--json")
    assert code == 2
    assert [bool(row["problem"]) for row in json.loads(text)["moments"]] == [False, True]


def test_an_edit_refuses_a_damaged_moment(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "own"))
    assert emendo_call(emendo, model, tmp_path)[0] == 0
    file = next((tmp_path / "own").rglob("layer-01.safetensors"))
    file.write_bytes(file.read_bytes()[:-9])
    shutil.rmtree(tmp_path / "own" / "plans")  # a plan that is remembered needs no moment
    result = emendo("edit", "--model", model, *FACT, *QUICK, "--out", str(tmp_path / "again"), "--json", "--quiet")
    check_refused(result, [file.name, "damaged"], as_json=True)
    assert not (tmp_path / "again").exists()


# ---- catalogues ----------------------------------------------------------------------------------------------


def test_models(emendo: Command) -> None:
    code, text, err = emendo("models", "--json")
    assert (code, err) == (0, "")
    assert json.loads(text)["supported"].keys() == ARCHITECTURES.keys()
    code, text, err = emendo("models")
    assert (code, err) == (0, "")
    assert "gpt_neox" in text


def test_help(emendo: Command) -> None:
    code, text, _ = emendo("edit", "--help")
    assert code == 0
    assert "--plan-only" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["see", "LONG"],
        ["update", "show", "LONG"],
        ["data", "LONG"],
        ["ledger", "log", "--ledger", "LONG"],
        ["experiment", "LONG", "--plan-only"],
        ["report", "LONG"],
        ["edit", "--model", "LONG", *FACT],
        ["trace", "--model", "LONG", "--facts", "LONG"],
    ],
)
def test_a_name_that_no_file_system_takes_is_bad_input(arguments: list[str], emendo: Command) -> None:
    code, _, err = emendo(*["x" * 5000 if word == "LONG" else word for word in arguments])
    assert code == 2
    assert "Traceback" not in err
