"""Prompts that an edit may change: ranked by firing, the first of them asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emendo.attribution import edits_of, firing
from emendo.editing.session import EditSession
from emendo.errors import InputError
from emendo.gate import prompts_at_risk
from emendo.models import EditableModel
from emendo.statistics import MomentStore
from emendo.updates.fold import fold
from emendo.updates.update import ModelUpdate
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.quick_plans import DARRIEUX, EIFFEL, planned
from tests.tiny.conftest import Command

PROMPTS = ["The Eiffel Tower is in", "I like bread", "He saw the Eiffel Tower and", "We went home", "Danielle said"]
GATE = "[checks.norm_growth]\nlimit = 10\n"


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_the_prompts_where_an_edit_fires_most_are_asked(family: str, store: MomentStore) -> None:
    lm = build_tiny(family)
    update = planned(lm, store, [EIFFEL, DARRIEUX], "emmet").update
    session, before = EditSession(lm, store=store), model_state(lm)
    found = prompts_at_risk(session, [update], PROMPTS, most=3)
    assert not changes(before, model_state(lm))
    edits = edits_of([update])
    fired = torch.stack([firing(lm, edits, lm.batch([lm.encode(text)]))[0].amax(dim=0).abs() for text in PROMPTS])
    order = fired.amax(dim=1).argsort(descending=True).tolist()[:3]
    assert found.looked_at == 5
    assert [row.prompt for row in found.prompts] == [PROMPTS[place] for place in order]
    with session.preview([update]) as edited:
        for row, place in zip(found.prompts, order, strict=True):
            assert row.firing == pytest.approx(float(fired[place].max()), rel=1e-4)
            assert row.edit == edits.edits[int(fired[place].argmax())].label
            said, says = (next_token(model, row.prompt) for model in (lm, edited))
            assert row.kl == pytest.approx(float((said.exp() * (said - says)).sum()), rel=1e-3, abs=1e-6)
            assert (row.before, row.after) == tuple(lm.decode([int(logs.argmax())]) for logs in (said, says))
            assert row.changed == (int(said.argmax()) != int(says.argmax()))


@torch.no_grad()
def next_token(lm: EditableModel, text: str) -> torch.Tensor:
    out: torch.Tensor = lm.model(input_ids=torch.tensor([lm.encode(text)])).logits[0, -1].double().log_softmax(-1)
    return out


def test_edits_that_are_not_kept_apart_are_refused(store: MomentStore) -> None:
    lm = build_tiny("llama")
    alike = [EIFFEL, replace(EIFFEL, prompt="{} was built in", target="Tokyo")]  # of one key: one row
    folded = fold([planned(lm, store, [request], "emmet").update for request in alike]).update
    with pytest.raises(InputError, match="emendo diff base UPDATE"):
        prompts_at_risk(EditSession(lm, store=store), [folded], PROMPTS)
    with pytest.raises(InputError, match="--at-risk"):
        prompts_at_risk(EditSession(lm, store=store), [folded], [])


@pytest.mark.usefixtures("home")
def test_the_command_names_them_and_nothing_fails_by_them(
    emendo: Command, model: str, store: MomentStore, tmp_path: Path
) -> None:
    update: ModelUpdate = planned(build_tiny("llama"), store, [EIFFEL], "emmet").update
    update.save(tmp_path / "update.safetensors")
    (tmp_path / "gate.toml").write_text(GATE)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    base = ("gate", "--model", model, "--update", str(tmp_path / "update.safetensors"))
    base += ("--config", str(tmp_path / "gate.toml"))
    code, out, err = emendo(*base, "--json")
    assert (code, "at_risk" in json.loads(out)) == (0, False), err
    code, out, err = emendo(*base, "--at-risk", str(tmp_path / "prompts.txt"), "--most", "2")
    assert code == 0, err
    for words in ("fires most at these 2 of 5", "Eiffel", "→ Rome", "another token is most likely"):
        assert words in out
    code, out, err = emendo(*base, "--at-risk", str(tmp_path / "prompts.txt"), "--most", "2", "--json", "-q")
    risk = json.loads(out)["at_risk"]
    assert (code, risk["looked_at"], len(risk["prompts"])) == (0, 5, 2)
    for more, words in (
        (("--at-risk", "missing.txt"), "missing.txt"),
        (("--at-risk", str(tmp_path / "prompts.txt"), "--most", "0"), "--most 20"),
    ):
        code, _, err = emendo(*base, *more, "-q")
        assert (code, err.count("\n"), words in err) == (2, 1, True), err
