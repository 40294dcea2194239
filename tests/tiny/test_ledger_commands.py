"""The commands of a ledger: a fix from beginning to end, what people see, and old spellings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emendo.ledger import History, LedgerStore
from emendo.updates.update import ModelUpdate
from tests.tiny.conftest import Command

SET = ["--set", "target.steps=3", "--set", "contexts.scheme=fixed", "--set", "moments.multiple=4"]


def fact(subject: str, target: str) -> list[str]:
    return ["--prompt", "The capital of {} is", "--subject", subject, "--target", target, *SET]


@pytest.mark.usefixtures("home")
def test_a_fix_from_beginning_to_end(emendo: Command, model: str, tmp_path: Path) -> None:
    def call(*arguments: str) -> dict[str, Any]:
        code, text, err = emendo(*arguments, "--json")
        assert code == 0, err
        document: dict[str, Any] = json.loads(text)
        return document

    folder = str(tmp_path / "ledger")
    where = ["--ledger", folder]
    call("init", folder, "--model", model)
    ids = []
    for subject, target in (("Japan", "Rome"), ("Italy", "Paris"), ("France", "Tokyo")):
        document = call("edit", "--model", model, *fact(subject, target), *where, "-m", f"about {subject}")
        ids.append(document["ledger"]["id"])
        assert all(document["rolled_back_bitwise"].values())
        metrics = document["ledger"]["details"]["metrics"]
        assert metrics["after"]["n"] == 1
        assert metrics["perplexity"]["ratio"] > 0
    log = call("log", *where)["records"]
    assert [(record["operation"], record["message"], record["active"]) for record in log] == [
        ("init", "", False),
        *(("edit", f"about {subject}", True) for subject in ("Japan", "Italy", "France")),
    ]
    assert call("show", ids[1][:8], *where)["details"]["requests"][0]["subject"] == "Italy"
    # The model need not be named: the ledger knows it.
    reverted = call("revert", ids[1][:8], *where)
    assert reverted["record"]["details"]["reverts"] == [ids[1]]
    assert [entry["edit"] for entry in call("checkout", *where)["active"]] == [ids[0], ids[2]]
    replaced = call("edit", "--model", model, *fact("Japan", "Bordeaux"), *where, "--replace", "--who", "ada")
    assert (replaced["ledger"]["operation"], replaced["ledger"]["who"]) == ("replace", "ada")
    compacted = call("compact", *where)
    assert compacted["record"]["details"]["error"] <= 1e-6
    out = tmp_path / "state.safetensors"
    call("checkout", ids[2], *where, "--out", str(out))
    assert len(ModelUpdate.load(out).info["requests"]) == 3
    assert call("checkout", "base", *where)["active"] == []
    found = call("verify", *where)
    assert (found["ok"], found["records"], found["leftovers"]) == (True, 8, 0)


@pytest.mark.usefixtures("home")
def test_what_people_see_and_what_is_refused(emendo: Command, model: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "ledger")
    where = ["--ledger", folder]
    code, _, err = emendo("edit", "--model", "no-such-model", *fact("Japan", "Rome"), *where)
    assert (code, "there is no ledger in" in err) == (2, True), "before the model is looked for"
    assert emendo("ledger", "init", folder, "--model", model)[0] == 0
    code, _, err = emendo("ledger", "init", folder, "--model", "no-such-model")
    assert (code, "already" in err) == (2, True)
    assert emendo("edit", "--model", model, *fact("Japan", "Rome"), *where)[0] == 0
    id = History(LedgerStore(folder).chain()).edits()[0].id
    code, _, err = emendo("edit", "--model", "no-such-model", *fact("Japan", "Paris"), *where)
    assert code == 2
    assert f"emendo ledger revert {id[:12]}" in err
    assert emendo("edit", "--model", model, *fact("Japan", "Paris"), "--replace")[0] == 2
    code, text, _ = emendo("ledger", "log", *where)
    assert code == 0
    assert id[:12] in text
    assert "Japan" in text
    for command in (["show", id, *where], ["checkout", *where], ["verify", *where]):
        code, text, err = emendo("ledger", *command)
        assert (code, err) == (0, "")
        assert text
    code, _, err = emendo("ledger", "revert", "beef", *where)
    assert (code, "no record 'beef'" in err) == (2, True)
    code, text, _ = emendo("ledger", "revert", id[:6], *where)
    assert (code, "Reverted" in text) == (0, True)
    path = next((Path(folder) / "objects").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    code, text, _ = emendo("ledger", "verify", *where)
    assert code == 1
    assert id[:12] in text
    assert "truncated" in " ".join(text.split())
    code, text, _ = emendo("ledger", "verify", *where, "--json")
    assert (code, json.loads(text)["ok"]) == (1, False)


def test_verbs_under_their_old_spelling_say_the_new_one(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ledger"
    code, _, err = emendo("init", str(folder), "--model", model, "-q")
    assert code == 0
    assert err == "emendo: note: `emendo init` is `emendo ledger init` now; the old spelling will go\n"
    code, text, err = emendo("log", "--ledger", str(folder), "--json")
    assert code == 0
    assert "`emendo ledger log`" in err
    assert json.loads(text) == json.loads(emendo("ledger", "log", "--ledger", str(folder), "--json")[1])
    assert " log " not in emendo("--help")[1]
    assert {"init", "log", "show", "revert", "checkout", "verify", "compact"} <= set(
        emendo("ledger", "--help")[1].split()
    )
    monkeypatch.setenv("EMENDO_LEDGER", str(folder))
    for verb in ("log", "verify", "checkout"):
        assert emendo("ledger", verb)[0] == 0
    monkeypatch.setenv("EMENDO_LEDGER", str(tmp_path / "another"))
    assert emendo("ledger", "init", "--model", model)[0] == 0
    assert (tmp_path / "another").is_dir()
    assert emendo("ledger", "verify", "--ledger", str(folder))[0] == 0, "what is said wins"
