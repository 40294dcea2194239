"""Weights that somebody else changes between a session's steps: an error in words, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from emendo.editing.session import EditSession
from emendo.errors import WeightsChangedError
from emendo.models import EditableModel
from emendo.statistics import MomentStore
from tests.model_state import changes, model_state
from tests.quick_plans import EIFFEL, JAPAN, quick_plan


def train(lm: EditableModel) -> None:
    lm.model.train()
    optimizer = torch.optim.SGD(lm.model.parameters(), lr=0.1)
    lm.model(torch.arange(2, 12)[None], labels=torch.arange(2, 12)[None]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    lm.model.eval()


def through_data(lm: EditableModel) -> None:
    lm.blocks[3].self_attn.q_proj.weight.data[0, 0] += 1  # as merging an adapter does; no version tells


def edited_layer(lm: EditableModel) -> None:
    with torch.no_grad():
        lm.weight(1)[0, 0] += 1


def replaced(lm: EditableModel) -> None:
    head = lm.model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach() * 2)


def loaded(lm: EditableModel) -> None:
    lm.model.load_state_dict({name: value * 1.5 for name, value in lm.model.state_dict().items()})


CHANGES: dict[str, Callable[[EditableModel], object]] = {
    "trained": train,
    "written through .data": through_data,
    "an edited layer": edited_layer,
    "a parameter replaced": replaced,
    "another state loaded": loaded,
    "another dtype": lambda lm: lm.model.to(torch.bfloat16),
    "embeddings resized": lambda lm: lm.model.resize_token_embeddings(lm.vocab_size + 8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_between_plan_and_apply(change: str, session: EditSession) -> None:
    update = quick_plan(session, [EIFFEL], layers=[1]).update
    CHANGES[change](session.lm)
    before = model_state(session.lm)
    for step in (lambda: session.apply(update), lambda: quick_plan(session, [EIFFEL], layers=[1])):
        with pytest.raises(WeightsChangedError, match="accept_weights"):
            step()
    assert not all(session.verify_rolled_back().values())
    assert changes(before, model_state(session.lm)) == []


@pytest.mark.parametrize("change", CHANGES)
def test_between_apply_and_rollback(change: str, session: EditSession) -> None:
    update = quick_plan(session, [EIFFEL], layers=[1]).update
    session.apply(update)
    CHANGES[change](session.lm)
    before = model_state(session.lm)
    for step in (session.rollback, lambda: session.move_to([])):
        with pytest.raises(WeightsChangedError, match="accept_weights"):
            step()
    assert not all(session.verify_rolled_back().values())
    assert session.applied_updates == (update,)
    assert changes(before, model_state(session.lm)) == []


def test_the_parameter_is_named(session: EditSession) -> None:
    quick_plan(session, [EIFFEL])
    through_data(session.lm)
    with pytest.raises(WeightsChangedError, match=r"model\.layers\.3\.self_attn\.q_proj\.weight of"):
        quick_plan(session, [EIFFEL])
    assert session.verify_rolled_back()["model.layers.3.self_attn.q_proj.weight"] is False


@pytest.mark.parametrize("change", ["trained", "written through .data", "an edited layer"])
def test_accepted_weights_are_a_base_like_any_other(change: str, session: EditSession, store: MomentStore) -> None:
    session.apply(quick_plan(session, [JAPAN], layers=[1]).update)
    old = session.base["weights_sha256"]
    CHANGES[change](session.lm)
    session.accept_weights()
    base = model_state(session.lm)
    assert session.applied_updates == ()
    assert session.base["weights_sha256"] != old
    update = quick_plan(session, [EIFFEL], layers=[1]).update
    assert quick_plan(EditSession(session.lm, store=store), [EIFFEL], layers=[1]).update.id == update.id
    session.apply(update)
    session.rollback()
    assert changes(base, model_state(session.lm)) == []
    assert all(session.verify_rolled_back().values())


def test_a_change_inside_a_context_is_not_undone_on_leaving(session: EditSession) -> None:
    update = quick_plan(session, [EIFFEL], layers=[1]).update
    context = session.applied(update)
    context.__enter__()
    edited_layer(session.lm)
    changed = model_state(session.lm)
    with pytest.raises(WeightsChangedError):
        context.__exit__(None, None, None)
    assert changes(changed, model_state(session.lm)) == []
    assert session.applied_updates == (update,)


def test_what_holds_the_same_numbers_has_not_changed(session: EditSession) -> None:
    """Another storage, another place in memory, a change that was taken back."""
    update = quick_plan(session, [EIFFEL], layers=[1]).update
    for parameter in session.lm.model.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        session.lm.weight(2).neg_().neg_()
    session.apply(update)
    session.rollback()
    assert all(session.verify_rolled_back().values())


def test_the_identity_of_an_unedited_model_follows_its_weights(tiny_llama: EditableModel) -> None:
    before = tiny_llama.weights_digest()
    train(tiny_llama)
    assert tiny_llama.weights_digest() != before
