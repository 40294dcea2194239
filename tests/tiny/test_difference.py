"""Two states of a model on prompts, against sessions that write them; and `emendo diff`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from emendo.attribution import State, difference
from emendo.datasets.prompts import read_prompts
from emendo.editing.session import EditSession
from emendo.errors import BaseMismatchError, DatasetError, InputError
from emendo.ledger import EditLedger
from emendo.models import EditableModel, load
from emendo.statistics import MomentStore
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, REQUESTS, planned, quick_plan
from tests.tiny.conftest import Command

PROMPTS = [EIFFEL.text, "The weather was calm", JAPAN.text, "I wrote this"]
NEW = 5


def distributions(lm: EditableModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return found


def greedy(lm: EditableModel, prompt: str) -> list[int]:
    """Tokens of a prompt and of what follows, up to an end of text."""
    ids = lm.encode(prompt)
    for _ in range(NEW):
        token = int(distributions(lm, ids)[-1].argmax())
        if token in lm.stop_ids:
            break
        ids.append(token)
    return ids


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_kl_and_continuations_are_those_of_written_weights(family: str, store: MomentStore) -> None:
    lm = build_tiny(family)
    session = EditSession(lm, store=store)
    one = quick_plan(session, [EIFFEL]).update
    with session.applied(one):
        said_first = {prompt: lm.generate(prompt, NEW) for prompt in PROMPTS}
        paths = {prompt: greedy(lm, prompt) for prompt in PROMPTS}
        before = {prompt: distributions(lm, ids) for prompt, ids in paths.items()}
    session.apply(one)
    two = quick_plan(session, [JAPAN]).update
    session.apply(two)
    said_second = {prompt: lm.generate(prompt, NEW) for prompt in PROMPTS}
    after = {prompt: distributions(lm, ids) for prompt, ids in paths.items()}
    session.rollback()
    state = model_state(lm)

    found = difference(lm, State("one", (one,)), State("both", (one, two)), PROMPTS, new_tokens=NEW)
    assert not changes(state, model_state(lm))
    assert sorted(row.number for row in found.prompts) == [0, 1, 2, 3]
    sums = [row.continuation_kl for row in found.prompts]
    assert sums == sorted(sums, reverse=True)
    for row in found.prompts:
        assert row.first.continuation == said_first[row.prompt]
        assert row.second.continuation == said_second[row.prompt]
        assert (row.parts_at is None) == (said_first[row.prompt] == said_second[row.prompt])
        start = len(lm.encode(row.prompt)) - 1
        p, q = (side[row.prompt][start : start + NEW] for side in (before, after))
        assert len(row.kl) == len(p)
        torch.testing.assert_close(torch.tensor(row.kl).double(), (p.exp() * (p - q)).sum(-1), rtol=1e-3, atol=1e-6)
        token, share = row.first.top[0]
        assert share == pytest.approx(float(p[0].exp().max()), rel=1e-4)
        assert token == lm.decode([int(p[0].argmax())])
    assert found.own(0) == (False,)
    assert found.own(1) == (False, True)
    assert all(row.contributions is None for row in found.prompts), "neither state is the base"


def test_an_edit_against_the_base_says_which_edits_fire_and_carry(
    tiny_llama: EditableModel, store: MomentStore
) -> None:
    plan = planned(tiny_llama, store, REQUESTS, "emendo", [0, 1, 2, 3], target__steps=20)
    base, edited = State("base"), State("edited", (plan.update,))
    found = difference(tiny_llama, base, edited, [request.text for request in REQUESTS], order="next-token")
    assert [row.next_kl for row in found.prompts] == sorted((row.next_kl for row in found.prompts), reverse=True)
    for row in found.prompts:
        assert row.first.firing is None
        assert row.second.firing is not None
        assert int(row.second.firing.argmax()) == row.number, "the edit of a prompt fires most at it"
        if row.contributions is not None:
            assert row.parts_at is not None
            assert row.common == row.second.continuation[: len(row.common)]
            assert int(row.contributions.argmax()) == row.number
    assert any(row.contributions is not None for row in found.prompts)
    back = difference(tiny_llama, edited, base, [request.text for request in REQUESTS])
    assert {row.first.continuation for row in back.prompts} == {row.second.continuation for row in found.prompts}


def test_what_cannot_be_compared_is_refused(tiny_llama: EditableModel, store: MomentStore) -> None:
    plan = planned(tiny_llama, store, [EIFFEL], "emmet")
    one = State("one", (plan.update,))
    with pytest.raises(InputError, match="same state"):
        difference(tiny_llama, one, State("again", (plan.update,)), PROMPTS)
    with pytest.raises(InputError, match="no prompt"):
        difference(tiny_llama, State("base"), one, [])
    with pytest.raises(InputError, match="no room"):
        difference(tiny_llama, State("base"), one, ["far " * 200])
    with pytest.raises(InputError, match=r"order is 'size'.*expected 'continuation' or 'next-token'"):
        difference(tiny_llama, State("base"), one, PROMPTS, order="size")  # type: ignore[arg-type]
    with pytest.raises(BaseMismatchError):
        difference(build_tiny("gpt2"), State("base"), one, PROMPTS)
    session = EditSession(tiny_llama, store=store)
    with session.applied(plan.update), pytest.raises(InputError, match="holds edits"):
        difference(tiny_llama, State("base"), one, PROMPTS)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("\ufeffOne is\r\n\nTwo is \nOne is\n", encoding="utf-8")
    assert read_prompts(text) == ["One is", "Two is"]
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('"One is"\n{"prompt": "{} is", "subject": "Two"}\n{"prompt": "Three is"}\n')
    assert read_prompts(rows) == ["One is", "Two is", "Three is"]
    rows.write_text('{"text": "One is"}\n')
    with pytest.raises(DatasetError, match=r"prompts\.jsonl:1: no prompt"):
        read_prompts(rows)
    text.write_text("\n \n")
    with pytest.raises(DatasetError, match="has no prompt"):
        read_prompts(text)


# ---- the command ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: str, store: MomentStore) -> tuple[Path, list[str]]:
    """An update, a ledger with two edits, prompts; and the ids of its records."""
    folder = tmp_path_factory.mktemp("diff")
    lm = load(model, device="cpu")
    planned(lm, store, REQUESTS, "emendo").update.save(folder / "update.safetensors")
    session = EditSession(lm, store=store)
    ledger = EditLedger.create(folder / "ledger", session, model=model)
    for request in (EIFFEL, DARRIEUX):
        ledger.edit(session, [request], "emmet", settings={"target.steps": 4, "contexts.scheme": "fixed"})
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in [*PROMPTS, "It is <i>calm</i> in"]))
    return folder, [record.id for record in ledger.log()]


@pytest.mark.usefixtures("home")
def test_command_compares_the_base_with_an_update(
    emendo: Command, place: tuple[Path, list[str]], model: str, tmp_path: Path
) -> None:
    folder, _ = place
    arguments = ("diff", "base", str(folder), "--model", model, "--prompts", str(folder / "prompts.txt"))
    code, text, err = emendo(*arguments, "--out", str(tmp_path / "a"))
    assert code == 0, err
    assert "continuations differ" in text
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["diff.html", "diff.json", "diff.md", "diff.png"]
    page = (tmp_path / "a" / "diff.html").read_text()
    assert "&lt;i&gt;calm" in page
    assert "<i>calm" not in page
    assert "<script" not in page
    document = json.loads((tmp_path / "a" / "diff.json").read_text())
    assert len(document["prompts"]) == 5
    assert document["changed"] == sum(row["parts_at"] is not None for row in document["prompts"])
    code, _, err = emendo(*arguments, "--out", str(tmp_path / "a"), "-q")
    assert (code, err.count("\n")) == (2, 1)
    assert "--overwrite" in err


@pytest.mark.usefixtures("home")
def test_command_compares_states_of_a_ledger(
    emendo: Command, place: tuple[Path, list[str]], model: str, tmp_path: Path
) -> None:
    folder, ids = place
    code, text, err = emendo(
        *("diff", f"ledger:{ids[1][:8]}", "ledger:now", "--ledger", str(folder / "ledger"), "--model", model),
        *("--prompts", str(folder / "prompts.txt"), "--out", str(tmp_path / "b"), "--json", "-q"),
    )
    assert code == 0, err
    document = json.loads(text)
    assert [edit["only_here"] for edit in document["first"]["edits"]] == [False]
    assert [edit["only_here"] for edit in document["second"]["edits"]] == [False, True]


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("states", "more", "words"),
    [
        (("base", "missing.safetensors"), (), "missing.safetensors"),
        (("base", "base"), (), "same state"),
        (("base", "ledger:zz"), (), "zz"),
        (("base", "FOLDER"), ("--prompts", "missing.txt"), "missing.txt"),
        (("base", "FOLDER"), ("--new-tokens", "0"), "--new-tokens"),
        (("base", "FOLDER"), ("--model", "OTHER"), "another model"),
        (("base", "FOLDER"), ("--prompts", "LONG"), "leaves no room"),
    ],
)
def test_bad_input_is_one_line(
    emendo: Command,
    place: tuple[Path, list[str]],
    model: str,
    other_model: str,
    tmp_path: Path,
    states: tuple[str, str],
    more: tuple[str, ...],
    words: str,
) -> None:
    folder, _ = place
    long = tmp_path / "long.txt"
    long.write_text("far " * 300 + "\n")
    named = [state.replace("FOLDER", str(folder)) for state in states]
    given = {"--model": model, "--ledger": str(folder / "ledger"), "--prompts": str(folder / "prompts.txt")}
    if more:
        option, value = more
        given[option] = {"OTHER": other_model, "LONG": str(long)}.get(value, value)
    code, _, err = emendo("diff", *named, *(word for pair in given.items() for word in pair), "-q")
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err
