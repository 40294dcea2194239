"""Edits as features: every number against dense algebra, finite differences or an edited model; and `emendo see`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emendo.attribution import (
    EditSet,
    ask,
    attribute,
    base_rates,
    cross_firing,
    edits_of,
    firing,
    leave_out,
    lens,
    norm,
    promoted,
    reading,
    scan,
    singular_values,
    stable_rank,
    strongest_firing,
)
from emendo.editing.plan import Plan
from emendo.editing.session import EditSession
from emendo.errors import InputError, UpdateFileError
from emendo.models import EditableModel
from emendo.models.alignment import encode_target
from emendo.statistics import MomentStore
from emendo.updates.fold import fold
from emendo.updates.stored import StoredUpdate
from tests.conftest import build_tiny
from tests.model_state import changes, model_state
from tests.quick_plans import EIFFEL, JAPAN, REQUESTS, planned
from tests.tiny.conftest import Command

PROMPT, ANSWER = EIFFEL.text, EIFFEL.target


@pytest.fixture(scope="module", params=["llama", "gpt2", "opt", "gemma2", "granite"])
def edited(request: pytest.FixtureRequest, store: MomentStore) -> tuple[EditableModel, Plan, EditSet]:
    lm = build_tiny(request.param)
    method = "emmet" if request.param == "gemma2" else "emendo"
    plan = planned(lm, store, REQUESTS, method)
    return lm, plan, edits_of([plan.update])


def log_probability(lm: EditableModel, prompt: str, answer: str) -> float:
    prompt_ids, answer_ids = encode_target(lm, prompt, answer)
    with torch.no_grad():
        logits = lm.model(torch.tensor([[*prompt_ids, *answer_ids]])).logits[0].double().log_softmax(-1)
    places = range(len(prompt_ids) - 1, len(prompt_ids) + len(answer_ids) - 1)
    return sum(float(logits[place, token]) for place, token in zip(places, answer_ids, strict=True))


def test_algebra_of_factors(edited: tuple[EditableModel, Plan, EditSet]) -> None:
    _, plan, edits = edited
    for part in plan.update.layers:
        crossing = cross_firing(edits, part.layer)
        np.testing.assert_allclose(crossing, np.eye(len(REQUESTS)), rtol=0, atol=1e-6)
        dense = part.residuals.double().T @ part.dual_keys.double()
        values = singular_values(part.dual_keys, part.residuals)
        np.testing.assert_allclose(values, torch.linalg.svdvals(dense)[: len(values)], rtol=1e-9, atol=1e-12)
        assert norm(part.dual_keys, part.residuals) == pytest.approx(float(dense.norm()))
        assert stable_rank(values) == pytest.approx(float(dense.norm() ** 2 / values[0] ** 2))
        key = torch.randn(part.dual_keys.shape[1], dtype=torch.float64)
        fired = torch.from_numpy(edits.factors[part.layer][0]).double() @ key
        torch.testing.assert_close(fired @ part.residuals.double(), dense @ key, rtol=0, atol=1e-6)


def test_base_rate_is_the_mean_square_of_firing(edited: tuple[EditableModel, Plan, EditSet]) -> None:
    _, _, edits = edited
    layer = edits.layers[0]
    dual_keys, residuals = edits.factors[layer]
    keys = np.random.default_rng(0).normal(size=(500, dual_keys.shape[1]))
    found = reading(edits, layer, keys.T @ keys / len(keys))
    fired = keys @ dual_keys.astype(np.float64).T
    squared = np.square(fired).mean(axis=0)
    np.testing.assert_allclose(found.base_rate, np.sqrt(squared))
    np.testing.assert_allclose(found.cost, squared * np.square(residuals.astype(np.float64)).sum(axis=1))
    moments = {other: keys.T @ keys / len(keys) for other in edits.layers}
    every = np.stack([np.square(reading(edits, other, moments[other]).base_rate) for other in edits.layers])
    np.testing.assert_allclose(base_rates(edits, moments), np.sqrt(every.mean(axis=0)))


def test_contributions_add_up_to_the_change_of_the_written_model(edited: tuple[EditableModel, Plan, EditSet]) -> None:
    lm, plan, edits = edited
    before = log_probability(lm, PROMPT, ANSWER)
    state = model_state(lm)
    found = attribute(lm, edits, ask(lm, PROMPT, ANSWER))
    assert not changes(state, model_state(lm))
    session = EditSession(lm)
    with session.applied(plan.update):
        after = log_probability(lm, PROMPT, ANSWER)
    assert found.before == pytest.approx(before, abs=1e-4)
    assert found.after == pytest.approx(after, abs=1e-4)
    assert abs(found.error) <= max(0.02, 0.01 * abs(after - before))
    assert float(found.by_edit.sum()) == pytest.approx(found.after - found.before, abs=abs(found.error) + 1e-9)


def test_contributions_are_the_integral_of_derivatives(store: MomentStore) -> None:
    """A of one edit, from finite differences of its own strength along the path, in float64."""
    lm = build_tiny("gpt2", dtype=torch.float64)  # its norms are in float64 too, unlike Llama's
    plan = planned(lm, store, REQUESTS, "emendo")
    edits, asked = edits_of([plan.update]), ask(lm, PROMPT, ANSWER)
    found = attribute(lm, edits, asked, nodes=8)
    points, weights = np.polynomial.legendre.leggauss(8)
    originals = {part.layer: lm.weight(part.layer).clone() for part in plan.update.layers}

    def score(strengths: torch.Tensor) -> float:
        weights_now = {}
        for part in plan.update.layers:
            scaled = part.residuals.double() * strengths[:, None]
            weights_now[part.layer] = originals[part.layer] + scaled.T @ part.dual_keys.double()
        with lm.edited(weights_now):
            return log_probability(lm, PROMPT, ANSWER)

    step = 1e-5
    for edit in range(len(REQUESTS)):
        total = 0.0
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            high, low = (torch.full((len(REQUESTS),), point, dtype=torch.float64) for _ in range(2))
            high[edit] += step
            low[edit] -= step
            total += weight * (score(high) - score(low)) / (2 * step)
        assert float(found.by_edit[edit]) == pytest.approx(total, abs=1e-5)


def test_leaving_edits_out_is_writing_the_others(edited: tuple[EditableModel, Plan, EditSet]) -> None:
    lm, plan, edits = edited
    found = leave_out(lm, edits, ask(lm, PROMPT, ANSWER), [[], [0], [1, 2], [0, 1, 2]])
    kept = [[0, 1, 2], [1, 2], [0], []]
    for score, rows in zip(found.tolist(), kept, strict=True):
        weights = {
            part.layer: lm.weight(part.layer) + part.residuals[rows].T @ part.dual_keys[rows]
            for part in plan.update.layers
        }
        with lm.edited(weights):
            assert score == pytest.approx(log_probability(lm, PROMPT, ANSWER), abs=1e-4)


def test_firing_is_read_in_the_edited_model(edited: tuple[EditableModel, Plan, EditSet]) -> None:
    lm, plan, edits = edited
    batch = lm.batch([lm.encode(text) for text in (PROMPT, JAPAN.text)])
    found = firing(lm, edits, batch)
    with EditSession(lm).applied(plan.update):
        captured = lm.run(batch, keys=edits.layers)
    expected = torch.stack(
        [captured.keys[layer].double() @ torch.from_numpy(edits.factors[layer][0]).double().T for layer in edits.layers]
    )
    expected = expected.mean(dim=0) * batch.attention_mask[..., None]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(strongest_firing(lm, edits, [PROMPT, JAPAN.text]), found.amax(dim=1), rtol=0, atol=1e-4)


def test_scan_finds_the_strongest_places(tiny_llama: EditableModel, store: MomentStore) -> None:
    plan = planned(tiny_llama, store, REQUESTS, "emmet")
    edits = edits_of([plan.update])
    text = "The weather was calm. " * 6 + "The Eiffel Tower stands here. " + "Because many people had asked. " * 6
    found = scan(tiny_llama, edits, text, length=16, most=3)
    ids = tiny_llama.encode_bare(text)
    assert found.tokens == len(ids)
    rows = [firing(tiny_llama, edits, tiny_llama.batch([ids[i : i + 16]]))[0] for i in range(0, len(ids), 16)]
    every = torch.cat(rows)
    for edit, places in enumerate(found.places):
        expected = sorted(every[:, edit].tolist(), reverse=True)[:3]
        assert [place.firing for place in places] == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(found.base_rate, every.square().mean(dim=0).sqrt(), rtol=1e-4, atol=1e-6)


def test_promoted_tokens_are_those_of_the_write(tiny_llama: EditableModel, store: MomentStore) -> None:
    plan = planned(tiny_llama, store, REQUESTS, "emendo")
    rows = promoted(tiny_llama, edits_of([plan.update]), most=3)
    write = sum(part.residuals[1] for part in plan.update.layers)
    norm, head = tiny_llama.decoder.norm, tiny_llama.model.get_output_embeddings()
    with torch.no_grad():
        logits = head(norm(write[None]))[0]
    assert rows[1][0] == tuple(tiny_llama.decode([i]) for i in logits.topk(3).indices.tolist())
    assert rows[1][1] == tuple(tiny_llama.decode([i]) for i in (-logits).topk(3).indices.tolist())


def test_updates_that_follow_one_another_are_one_set(tiny_llama: EditableModel, store: MomentStore) -> None:
    session = EditSession(tiny_llama, store=store)
    updates = []
    for request in REQUESTS[:2]:
        updates.append(planned(session, store, [request], "emmet").update)
        session.apply(updates[-1])
    session.rollback()
    edits = edits_of(updates)
    assert [edit.update for edit in edits.edits] == [0, 1]
    asked = ask(tiny_llama, PROMPT, ANSWER)
    found = attribute(tiny_llama, edits, asked)
    session.move_to(updates)
    assert found.after == pytest.approx(log_probability(tiny_llama, PROMPT, ANSWER), abs=1e-4)


def test_rows_that_are_no_edits_are_attributed_as_a_whole(tiny_llama: EditableModel, store: MomentStore) -> None:
    plan = planned(tiny_llama, store, REQUESTS, "rect")
    edits = edits_of([plan.update])
    assert [edit.whole for edit in edits.edits] == [True]
    assert edits.keys is None
    with pytest.raises(InputError, match="not known"):
        cross_firing(edits, edits.layers[0])
    found = attribute(tiny_llama, edits, ask(tiny_llama, PROMPT, ANSWER))
    assert found.by_edit.shape == (1,)
    assert abs(found.error) <= max(0.02, 0.01 * abs(found.after - found.before))
    assert found.firing.isnan().all()


def test_a_model_that_cannot_have_the_edits_is_refused(
    tiny_llama: EditableModel, tiny_gpt2: EditableModel, store: MomentStore
) -> None:
    plan = planned(tiny_llama, store, REQUESTS, "emmet")
    edits = edits_of([plan.update])
    session = EditSession(tiny_llama, store=store)
    with session.applied(plan.update), pytest.raises(InputError, match="holds edits"):
        attribute(tiny_llama, edits, ask(tiny_llama, PROMPT, ANSWER))
    other = build_tiny("gpt2_square")
    with pytest.raises(InputError, match="does not have"):
        attribute(other, edits, ask(other, PROMPT, ANSWER))


def test_lens_reads_every_layer_of_both_models(edited: tuple[EditableModel, Plan, EditSet]) -> None:
    lm, plan, edits = edited
    asked = ask(lm, PROMPT, ANSWER)
    found = lens(lm, edits, asked)
    session = EditSession(lm)

    def plain() -> torch.Tensor:
        with torch.no_grad():
            out = lm.model(torch.tensor([asked.ids]), output_hidden_states=True)
            states = out.hidden_states[1:-1]  # the last one has passed the final norm
            shares = [lm.unembed(lm.finish(state[:, asked.first])).softmax(-1)[0, asked.answer[0]] for state in states]
            return torch.stack([*shares, out.logits[0, asked.first].float().softmax(-1)[asked.answer[0]]]).double()

    torch.testing.assert_close(found.before, plain(), rtol=1e-3, atol=1e-6)
    with session.applied(plan.update):
        torch.testing.assert_close(found.after, plain(), rtol=1e-3, atol=1e-6)
    assert len(found.top_before) == len(found.top_after) == lm.n_layers


def test_an_update_file_is_the_same_with_and_without_torch(
    edited: tuple[EditableModel, Plan, EditSet], tmp_path: Path
) -> None:
    _, plan, edits = edited
    path = plan.update.save(tmp_path / "update.safetensors")
    stored = StoredUpdate.load(path)
    assert stored.id == plan.update.id
    found = edits_of([stored])
    assert [edit.label for edit in found.edits] == [edit.label for edit in edits.edits]
    np.testing.assert_array_equal(found.owner, edits.owner)
    for layer in edits.layers:
        for one, other in zip(found.factors[layer], edits.factors[layer], strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(found.keys[layer], edits.keys[layer])  # type: ignore[index]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UpdateFileError, match="altered"):
        StoredUpdate.load(path)


# ---- the command ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: str, shared_home: Path) -> Path:
    """An edit's folder, with its facts and their probes."""
    from emendo.models import load

    out = tmp_path_factory.mktemp("see")
    plan = planned(load(model, device="cpu"), MomentStore(shared_home / "moments"), REQUESTS, "emendo")
    plan.update.save(out / "update.safetensors")
    rows = [
        {
            **request.to_dict(),
            "paraphrase_prompts": ["So <i>it</i> is"],
            "neighborhood_prompts": ["The capital of France is"],
        }
        for request in REQUESTS
    ]
    (out / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "text.txt").write_text("The Eiffel Tower is calm. " * 30)
    return out


@pytest.mark.usefixtures("home", "small_pictures")
def test_see_without_a_model(emendo: Command, folder: Path, tmp_path: Path) -> None:
    code, text, err = emendo("see", str(folder), "--out", str(tmp_path / "a"))
    assert code == 0, err
    assert "The Eiffel Tower" in text
    page = (tmp_path / "a" / "see.html").read_text()
    assert "Without a model" in page
    assert "<script" not in page
    document = json.loads((tmp_path / "a" / "see.json").read_text())
    assert np.allclose(document["cross_firing"], np.eye(3), atol=1e-6)
    arguments = ["see", str(folder), "--out", str(tmp_path / "c")]
    looked = (
        f"from emendo.cli.app import run; import sys; assert run({arguments!r}) == 0; "
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", looked], capture_output=True, text=True, check=False, env=paths)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("home", "small_pictures")
def test_see_with_a_model(emendo: Command, folder: Path, model: str, tmp_path: Path) -> None:
    out = tmp_path / "b"
    code, text, err = emendo(
        *("see", str(folder / "update.safetensors"), "--model", model, "--prompt", PROMPT, "--answer", ANSWER),
        *("--requests", str(folder / "facts.jsonl"), "--text", str(folder / "text.txt"), "--out", str(out), "--json"),
    )
    assert code == 0, err
    document = json.loads(text)
    (answer,) = document["answers"]
    assert sum(answer["by_edit"]) == pytest.approx(answer["change"], abs=abs(answer["error"]) + 1e-9)
    assert sum(row["contribution"] for row in answer["by_token"]) == pytest.approx(sum(answer["by_edit"]))
    assert sum(answer["by_layer"].values()) == pytest.approx(sum(answer["by_edit"]))
    assert {probe["kind"] for probe in document["probes"]} == {"own", "paraphrase", "neighbor"}
    assert document["scan"]["tokens"] > 100
    assert len(answer["lens"]["before"]) == 4
    rates = [edit["base_rate"] for edit in document["edits"]]
    assert all(rate is not None and rate > 0 for rate in rates), "the store of the plan is that of the command"
    own = next(probe for probe in document["probes"] if probe["kind"] == "own")
    assert own["z"] == pytest.approx(own["firing"] / rates[own["edit"]])
    page = (out / "see.html").read_text()
    assert "&lt;i&gt;it" in page
    assert "<i>it" not in page
    assert sorted(path.name for path in out.iterdir()) == ["see.html", "see.json", "see.md", "see.png"]


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--ledger"),
        (("missing",), "missing"),
        (("FOLDER", "--prompt", "x", "--answer", "y"), "--model"),
        (("FOLDER", "--model", "MODEL", "--prompt", "x"), "--answer"),
        (("FOLDER", "--model", "MODEL", "--text", "missing.txt"), "missing.txt"),
        (("FOLDER", "--nodes", "0"), "--nodes"),
        (("FOLDER", "--model", "OTHER", "--prompt", "x", "--answer", "y"), "another model"),
        (("FOLDER", "--model", "MODEL", "--prompt", "far " * 300, "--answer", "y"), "has positions for"),
        (("FOLDER", "--model", "MODEL", "--prompt", "x", "--answer", " "), "is empty"),
    ],
)
def test_see_refuses_in_one_line(
    emendo: Command, folder: Path, model: str, other_model: str, arguments: tuple[str, ...], words: str
) -> None:
    places = {"FOLDER": str(folder), "MODEL": model, "OTHER": other_model}
    code, _, err = emendo("see", *(places.get(word, word) for word in arguments), "-q")
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err


@pytest.mark.usefixtures("home", "small_pictures")
def test_a_folded_update_is_seen_as_a_whole(
    emendo: Command, tiny_llama: EditableModel, store: MomentStore, model: str, tmp_path: Path
) -> None:
    alike = [REQUESTS[0], replace(REQUESTS[0], prompt="{} was built in", target="Tokyo")]  # of one key: one row
    folded = fold([planned(tiny_llama, store, [request], "emmet").update for request in alike]).update
    folded.save(tmp_path / "update.safetensors")
    code, _, err = emendo(
        *("see", str(tmp_path), "--model", model, "--prompt", PROMPT, "--answer", ANSWER, "--out", str(tmp_path / "s"))
    )
    assert code == 0, err
    assert "as a whole" in (tmp_path / "s" / "see.html").read_text()
    document = json.loads((tmp_path / "s" / "see.json").read_text())
    assert [edit["whole"] for edit in document["edits"]] == [True]
    assert document["cross_firing"] is None


def test_a_prompt_beyond_the_models_positions_is_refused(tiny_llama: EditableModel) -> None:
    with pytest.raises(InputError, match="has positions for"):
        ask(tiny_llama, "word " * 2 * tiny_llama.max_length, "Rome")
