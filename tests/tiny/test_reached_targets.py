"""An edit reaches its target: what the edited model holds is v*, in every family, where δ was searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from emendo.editing.session import EditSession
from emendo.editing.value_search import search_values
from emendo.errors import MethodError
from emendo.methods import METHODS, method_named
from emendo.requests import EditRequest
from emendo.statistics import MomentStore
from tests.conftest import FAMILIES, VARIANTS, build_tiny
from tests.every import every
from tests.kinds import ALIKE
from tests.naive_loop import Naive, apart, close
from tests.pairs import covering, pairs
from tests.quick_plans import DARRIEUX, EIFFEL, JAPAN, REQUESTS, planned

NORMED = ("gemma2", "gemma3_text", "gemma3_text_local_rope", "olmo2", "opt_post_norm")
ONE_CONTEXT: dict[str, Any] = {"contexts__scheme": "none", "target__steps": 4}
SLOW = pytest.mark.slow
EXACT = 1e-5  # float32 factors in a float64 model, relative to the largest entry


def is_normed(family: str) -> bool:
    return family in NORMED


def setting_of(family: str) -> dict[str, Any]:
    """One context; and a ridge where a ReLU leaves some keys of a tiny model always zero."""
    return ONE_CONTEXT | ({"preservation__ridge": 1e-3} if family == "opt_post_norm" else {})


# ---- v* is held -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "site"), pairs(sorted({**FAMILIES, **VARIANTS}), ("resid_post", "mlp_out"), ALIKE))
def test_the_edited_model_holds_the_target(family: str, site: str, store: MomentStore) -> None:
    """At the subject's last token of the plain prompt; for Granite through the factor on its MLP's output."""
    lm = build_tiny(family, dtype=torch.float64)
    assert lm.spec.mlp_normed == is_normed(family)
    if site == "resid_post" and is_normed(family):
        pytest.skip("the stream does not gain what the MLP's output gains")
    session = EditSession(lm, store=store)
    plan = planned(session, store, REQUESTS, "emmet", [2], target__site=site, **setting_of(family))
    assert plan.contexts == ("{}",)
    targets = search_values(lm, REQUESTS, plan.contexts, 2, plan.method.config.target)
    naive = Naive(lm, plan.contexts)
    before = naive.values(REQUESTS, 2, site)
    keys = [naive.keys(request, 2) for request in REQUESTS]
    assert apart(before, targets.value.T) > 0.1, "there is something to reach"
    session.apply(plan.update)
    close(naive.values(REQUESTS, 2, site), targets.value.T, EXACT)
    if site == "mlp_out":  # the constraint itself: W' k + b = v*
        bias = getattr(lm.down_projection(2), "bias", None)
        for key, value in zip(keys, targets.value, strict=True):
            out = lm.weight(2) @ key[0] + (0 if bias is None else bias.detach())
            close(out, value, EXACT)
    session.rollback()
    assert torch.equal(naive.values(REQUESTS, 2, site), before)


@pytest.mark.parametrize(
    ("family", "site"),
    [
        *(
            pytest.param(
                family, "mlp_out" if is_normed(family) else "resid_post", marks=SLOW if family in ALIKE else ()
            )
            for family in sorted(FAMILIES)
        ),
        ("granite", "mlp_out"),
    ],
)
def test_the_target_does_in_the_model_what_the_search_promised(family: str, site: str, store: MomentStore) -> None:
    """The NLL of the target, read from the edited model's own logits, where nothing but the subject's end can move.

    The subject is the whole prompt's first token, so that no earlier position passes through the edited layer.
    """
    lm = build_tiny(family, dtype=torch.float64)
    request = EditRequest("{}", "I", "the")
    session = EditSession(lm, store=store)
    settings = {"target__precision": "float32", "target__site": site, **ONE_CONTEXT}
    plan = planned(session, store, [request], "emmet", [2], **settings)
    session.apply(plan.update)
    ids, label = torch.tensor([lm.encode("I")]), lm.encode(" the")
    assert ids.shape == (1, 1)
    with torch.no_grad():
        logp = lm.model(input_ids=ids).logits[0, -1].log_softmax(dim=0)
    assert len(label) == 1
    assert float(-logp[label[0]]) == pytest.approx(plan.targets[0].nll, rel=1e-4)
    assert plan.targets[0].losses[-1] < plan.targets[0].losses[0]


# ---- families whose MLP's output is normed ------------------------------------------------------------------


@every("family", NORMED)
@every("method", METHODS)
def test_every_method_resolves_to_what_can_be_reached(method: str, family: str) -> None:
    lm = build_tiny(family)
    resolved = EditSession(lm).resolve(method)
    own, config = method_named(method), resolved.config
    assert config.target.site == "mlp_out"
    assert resolved.origins["target.site"].startswith("family: ")
    if own.distribution in ("even", "sqrt", "optimal"):
        assert config.distribution == "replay"
        assert resolved.origins["distribution"].startswith("family: ")
    else:
        assert config.distribution == own.distribution
        assert resolved.origins["distribution"] == f"method {method}"


@pytest.mark.parametrize(("family", "method"), pairs(NORMED, ["emmet", "memit", "rome", "emendo"]))
def test_methods_work_by_name(family: str, method: str, store: MomentStore) -> None:
    lm = build_tiny(family)
    session = EditSession(lm, store=store)
    plan = planned(session, store, [EIFFEL], method, **setting_of(family))
    config = plan.method.config
    aim = config.written_layers[0]
    targets = search_values(lm, [EIFFEL], plan.contexts, aim, config.target)
    naive = Naive(lm, plan.contexts)
    before = naive.values([EIFFEL], aim, "mlp_out")
    session.apply(plan.update)
    found, wanted = naive.values([EIFFEL], aim, "mlp_out"), targets.value.double().T
    if config.memorization.s == 0:
        close(found, wanted, 1e-4)
    else:
        memorized = plan.layers[0].solves[0].memorized
        close(found, before + memorized * (wanted - before), 1e-4)
    assert plan.layers[0].achieved == pytest.approx(1.0 if config.memorization.s == 0 else memorized, rel=1e-4)


@pytest.mark.parametrize("family", NORMED)
@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        *(({"distribution": name}, rf"distribution={name}.*{{family}}.*norms") for name in ("even", "sqrt", "optimal")),
        ({"target.site": "resid_post"}, r"target\.site=resid_post: {family} norms its MLP's output"),
    ],
    ids=["even", "sqrt", "optimal", "resid_post"],
)
def test_what_cannot_be_reached_is_refused_with_the_reason(family: str, setting: dict[str, str], reason: str) -> None:
    lm = build_tiny(family)
    session = EditSession(lm)
    with pytest.raises(MethodError, match=reason.format(family=lm.spec.model_type)):
        session.plan([EIFFEL], "memit", layers=[0, 1], settings=setting)
    for fine in ("replay", "ends"):
        resolved = session.resolve("memit", layers=[0, 1], settings={"distribution": fine})
        assert resolved.origins["distribution"] == "given (--set)"


# ---- targets with anchored norms ----------------------------------------------------------------------------


def anchored(site: str, batching: str = "joint") -> dict[str, Any]:
    return {"target__norm_anchor": True, "target__site": site, "batching": batching, **ONE_CONTEXT}


@pytest.mark.parametrize(
    ("family", "site", "batching"),
    covering(["gemma2", "llama", "gptj", "granite"], ["mlp_out", "resid_post"], ["joint", "one_by_one"]),
)
def test_anchored_values_have_the_norm_of_the_unedited_model(
    family: str, site: str, batching: str, store: MomentStore
) -> None:
    """Also on top of an edit that changed the norms: the session measures in the base."""
    if site == "resid_post" and is_normed(family):
        pytest.skip("the stream does not gain what the MLP's output gains")
    lm = build_tiny(family, dtype=torch.float64)
    naive, session = Naive(lm, ("{}",)), EditSession(lm, store=store)
    norms = naive.values(REQUESTS, 2, site).norm(dim=0)
    settings = anchored(site, batching)
    session.apply(planned(session, store, [JAPAN], "emmet", [1], target__max_norm_ratio=6.0, **ONE_CONTEXT).update)
    session.apply(planned(session, store, [DARRIEUX], "emmet", [2], target__max_norm_ratio=6.0, **ONE_CONTEXT).update)
    edited = naive.values(REQUESTS, 2, site).norm(dim=0)
    assert float(((edited - norms) / norms).abs().min()) > 1e-3, "the edits moved every norm"
    plan = planned(session, store, REQUESTS, "emmet", [2], **settings)
    session.apply(plan.update)
    held = naive.values(REQUESTS, 2, site).norm(dim=0)
    if batching == "joint":
        close(held, norms, EXACT)
    else:  # only the last one is held with equality after all have been written
        close(held[-1:], norms[-1:], EXACT)
    free = planned(session, store, REQUESTS, "emmet", [2], **{**settings, "target__norm_anchor": False})
    assert free.update.id != plan.update.id


def test_anchoring_turns_but_does_not_lengthen(store: MomentStore) -> None:
    """v* keeps the direction that was searched."""
    lm = build_tiny("llama", dtype=torch.float64)
    session, naive = EditSession(lm, store=store), Naive(lm, ("{}",))
    plan = planned(session, store, REQUESTS, "emmet", [2], **anchored("resid_post"))
    free = search_values(lm, REQUESTS, plan.contexts, 2, plan.method.config.target).value.T
    norms = naive.values(REQUESTS, 2).norm(dim=0)
    assert float(((free.norm(dim=0) - norms) / norms).abs().min()) > 1e-2
    session.apply(plan.update)
    close(naive.values(REQUESTS, 2), free / free.norm(dim=0) * norms, EXACT)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMENDO_HOME", str(tmp_path / "home"))
