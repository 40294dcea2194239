"""Every public function of Emendo with values that it takes, found rather than listed.

Functions are what a package of `PACKAGES` exports and `emendo.arguments.checked` holds to its annotations. A value for
each parameter without a default comes from `values_of`, by its name, or by ``function.parameter`` where one name means
several things.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from emendo import attribution, evaluate, experiments, export, gate, ledger, report, solve, tracing
from emendo import statistics as moments
from emendo.datasets import format_named
from emendo.editing.session import EditSession
from emendo.evaluate.measures import chosen
from emendo.models import ARCHITECTURES, TokenBatch
from emendo.report.diff import document as difference_document
from emendo.report.experiment import Experiment as ReadExperiment
from emendo.report.see import Seen
from emendo.report.see.document import document as seen_document
from emendo.requests import EditRecord, Probe
from emendo.serving.aliases import Alias, set_alias
from emendo.solve.distribution import DISTRIBUTIONS
from tests.conftest import build_tiny
from tests.quick_plans import EIFFEL, quick_plan
from tests.serving_stand_in import edited_weights, stand_in
from tests.tiny_gguf import write_tiny_gguf

PACKAGES = (
    *("emendo", "emendo.attribution", "emendo.datasets", "emendo.evaluate", "emendo.experiments", "emendo.export"),
    *("emendo.gate", "emendo.ledger", "emendo.methods", "emendo.models", "emendo.report", "emendo.report.diff"),
    *("emendo.report.experiment", "emendo.report.see", "emendo.report.trace", "emendo.requests", "emendo.solve"),
    *("emendo.serving", "emendo.statistics", "emendo.tracing", "emendo.updates"),
)


_OF_MOMENTS = ("EditSession.second_moments", "second_moments", "describe_for_method", "obtain_for_method")


def public() -> dict[str, Callable[..., Any]]:
    """Every checked function by its short name; methods, unbound, as ``Class.method``."""
    found: dict[str, Callable[..., Any]] = {}
    for package in map(importlib.import_module, PACKAGES):
        for name in package.__all__:
            value = getattr(package, name)
            if not inspect.isclass(value):
                members = {name: value}
            elif value.__module__.startswith("emendo"):
                members = {
                    f"{name}.{key}": getattr(value, key) if isinstance(entry, classmethod) else entry
                    for kind in reversed(value.__mro__)
                    if kind.__module__.startswith("emendo")
                    for key, entry in vars(kind).items()
                }
            else:
                members = {}
            for key, member in members.items():
                if getattr(member, "__checked__", False):
                    known = found.setdefault(key, member)
                    if getattr(known, "__func__", known) is not getattr(member, "__func__", member):
                        found[f"{value.__module__}.{key}"] = member  # a name that two packages have
    return found


def values_of(folder: Path) -> dict[str, Any]:
    """A value for each parameter that has no default; ``Class.self`` is what methods of a class are called on.

    Args:
        folder: Where files go.
    """
    lm = build_tiny("llama")
    tokenizer: Any = lm.tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    store = moments.MomentStore(folder / "moments")
    session = EditSession(lm, store=store)
    plan = quick_plan(session, [EIFFEL])
    config: Any = plan.method.config
    update, part = plan.update, plan.update.layers[0]
    layer, keys, weight = part.layer, part.keys, lm.weight(plan.update.layers[0].layer).clone()
    assert keys is not None
    record = EditRecord(EIFFEL, "Paris", ("It stands in",), ("The capital of Italy is",))
    moment = session.second_moments([layer], config.moments)[0][layer]
    header: Any = store.entries()[0].header
    prepared = solve.prepare(moment, solve.Preservation(ridge=0.1))
    narrow = solve.prepare(moment, solve.Preservation(null_space="energy", threshold=0.5, ridge=1.0))
    book = ledger.EditLedger.create(folder / "ledger", session)
    entry = book.commit_edit(update)
    batch = TokenBatch.pad([[5, 6, 7]], lm.pad_id)
    hidden = lm.final_hidden(batch)[0]
    fact = tracing.TraceFact("The capital of {} is", "Japan")
    settings = tracing.TraceSettings(samples=2)
    trace = tracing.trace(lm, [fact], settings, subjects=("Italy",), any_answer=True)
    edits = attribution.edits_of([update])
    scores = evaluate.evaluate_records(lm, [record])
    tokens = evaluate.score_tokens(lm, [("The capital is", "Rome")])
    log_probs = evaluate.next_token_log_probs(lm, ["The capital is"])
    text = evaluate.text_tokens(lm, [[5, 6, 7]])
    answers = evaluate.zsre_scores(lm, [record])
    cell = experiments.Cell("demo", "facts.jsonl", "emmet", "batch", 1, 1, "immediate")
    experiment = experiments.Experiment("name", {}, [cell], folder / "experiment", lambda name, progress=None: lm)
    (folder / "facts.jsonl").write_text(json.dumps(EIFFEL.to_dict()), encoding="utf-8")
    seen = Seen(edits, ("update",), update.base)
    (folder / "facts.jsonl").write_text(json.dumps(EIFFEL.to_dict()), encoding="utf-8")
    states = (attribution.State("base"), attribution.State("edited", (update,)))
    found = attribution.difference(lm, *states, ["The capital is"])
    factors = (part.residuals, part.dual_keys)
    server = ExitStack().enter_context(stand_in("llamacpp", lm))  # until the process ends
    adapter = export.write_gguf_adapter(lm, [update], folder / "adapters")
    server.adapters, server.weights = {adapter.name: str(adapter.path)}, {adapter.name: edited_weights(lm, [update])}
    set_alias(folder / "adapters", "facts", Alias(server.address, "vllm", adapter.name))
    document = report.report_document(plan, None, {})
    sample = solve.KeySample(torch.ones(1, 1, 24), torch.zeros(1, 1, dtype=torch.long), torch.ones(1))
    blocks = solve.BlockMoment(torch.eye(24).expand(2, 24, 24), torch.tensor([9, 9]), "experts", sample)
    values: dict[str, Any] = {
        # models and text
        **{"adapter": lm, "lm": lm, "model": lm.model, "tokenizer": tokenizer, "session": session},
        **{"prompt": "The capital is", "prompts": ["The capital is"], "text": "The capital of Japan is Tokyo. " * 8},
        **{"texts": ["The capital of Japan is Tokyo."], "target": "Rome", "join": "auto", "answer": "Rome"},
        "probe": Probe("portability", "It stands in", ("Rome",)),
        **{"references": ["The capital of Japan."], "subject": "Paris", "subjects": ["Rome", "Paris"]},
        **{"ids": [5, 6], "before": [5], "token": 5, "pad_id": 1, "sequences": [[5, 6]], "batch": batch},
        **{"message": "Hello", "messages": [("user", "Hello")], "hidden": hidden, "stream": hidden[None]},
        **{"layer": layer, "layers": [layer], "weight": weight, "weights": {layer: weight}, "character": "a"},
        # requests, updates and plans
        **{"records": [record], "requests": [EIFFEL], "request": EIFFEL, "record": record, "plan": plan, "edit": plan},
        **{"update": update, "updates": [update], "parts": update.layers, "factor": 0.5, "position": 0, "index": 0},
        **{"earlier": update.preceding, "method": "emmet", "config": config, "settings": {}, "scheme": "none"},
        # algebra
        **{"seed": 0},
        **{"moment": moment, "total": moment, "count": 10, "d_in": 4, "d_out": 4, "keys": keys, "history": None},
        **{"s": 1.0, "preservation": prepared.preservation, "residuals": factors[0], "dual_keys": factors[1]},
        **{"total_residuals": factors[0], "total_dual_keys": factors[1], "wanted_residuals": factors[0], "ratio": 0.5},
        **{"weight0": weight, "original": weight, "delta": factors[0].T @ factors[1], "dtype": torch.float32},
        **{"reduced": prepared.reduce(keys), "whitened": prepared.whiten(keys), "metrics": {layer: prepared}},
        # measures
        **{"values": [0.0, 1.0], "n": 2, "successes": 1, "hits": [True, False], "immediate": [True], "final": [True]},
        **{"new": [1.0], "true": [2.0], "efficacy": 1.0, "paraphrase": 1.0, "neighborhood": 1.0, "chat": False},
        **{"words": ["a", "b", "c"], "score": tokens[0], "scores": [scores.records[0].efficacy[0].target]},
        **{"pairs": [("The capital is", "Rome")], "names": ["a"], "rows": [{"a": 1.0}], "documents": ["a text", "b"]},
        **{"token_ids": torch.tensor([5]), "row_of": torch.tensor([0]), "places": ["a", "b", "c"], "after": tokens},
        # what packages register: things that are there already, so that nothing is added
        **{
            "new_tokens": 2,
            "register_model_family.spec": ARCHITECTURES["llama"],
            "LayerUpdate.to.device": torch.device("cpu"),
            "distribution": DISTRIBUTIONS["even"],
            "measure": chosen()["generated"],
            "data_format": format_named("zsre"),
        },
        **{"check": gate.GateCheck("efficacy", "taken", lambda evidence: gate.Measurement(0.0, 1, ""))},
        **{"question": "Where is {}?", "device": "cpu", "product": moment, "row": EIFFEL.to_dict()},
        # files, ledgers, moments
        **{"base": session, "id": entry.id, "prefix": entry.id, "chain": book.log(), "active": book.state()},
        **{"touched": lambda kept: True, "operation": "test", "timeout": 1.0, "file": entry.added[0].file},
        **{"save": lambda path: Path(path).write_bytes(b"x"), "header": header},
        **{"fingerprint": header.fingerprint, "expected": header.fingerprint, "module": header.module, "store": store},
        **{"spec": moments.MomentSpec(tokens=64, length=16), "source": "self", "name": "emmet", "files": ["packaged"]},
        **{"format": format_named("emendo"), "dropped": [], "rejected": [], "folder": folder / "new"},
        **{"out": folder / "out", "path": folder / "file", "document": document, "seconds": {}, "judgement": None},
        **{"report": gate.run_gate(session, plan, [record]), "other": moments.SecondMoment(moment, 10)},
        # tracing, attribution, experiments
        **{"facts": [fact], "trace": trace, "length": 6, "begin": 1, "end": 3, "n_layers": 4, "kind": "hidden"},
        **{"edits": edits, "asked": attribution.ask(lm, "The capital is", "Rome"), "left_out": [[0]]},
        **{"seen": seen, "mode": "batch", "batch_size": 1, "schedule": "immediate"},
        **{
            "cells": [cell],
            "cell": cell,
            "most": 2,
            "state": "finished",
            "load": lambda name, progress: lm,
            "planned": [],
            "summary": {},
        },
        **{"token_budget": 8, "lengths": [1, 2], "repo": "someone/something"},
        # names that mean something else somewhere
        **{"MomentHeader.now.model": "name", "MomentStore.put.moment": moments.SecondMoment(moment, 10)},
        **{"stable_rank.values": torch.ones(3), "entropy_of_records.prompts": [["The capital is"]]},
        **{"EditScores.from_records.records": scores.records, "zsre_means.records": answers.records},
        **{"probe_means.records": [[]], "text_tokens.texts": [[5, 6, 7]], "harmonic_mean.parts": [1.0, 2.0]},
        **{"prediction_agreement.before": tokens, "prediction_agreement.after": tokens},
        **{"measure_drift.before": log_probs, "measure_drift.after": log_probs},
        **{"token_shift.before": text, "token_shift.after": text, "read_rows.rows": []},
        **{"EditSet.by_edit.rows": torch.ones(edits.owner.shape), "EditSet.strengths.edits": torch.ones(1, 1)},
        **{f"{name}.record": entry for name in ("History.reverted_by", "LedgerStore.holds", "LedgerStore.append")},
        **{"check_keys.layer": prepared, "solve.layer": prepared, "retained_in_all.update": factors},
        **{
            "Fingerprint.from_json.values": header.fingerprint.to_json(),
            "MomentHeader.from_json.values": header.to_json(),
        },
        **{"first": attribution.State("base"), "second": attribution.State("edited", (update,)), "found": found},
        **{"document.base": dict(update.base), "write_difference.document": difference_document(found, update.base)},
        **{"LedgerStore.create.first": book.log()[0], "in_state.state": "done", "reference_score.texts": ["a b c"]},
        **{"write_seen.document": seen_document(seen), "CollapseMonitor.__init__.config": gate.default_config()},
        **{f"{name}.settings": config.moments for name in _OF_MOMENTS},
        **{"Experiment.__init__.config": {}, "format_named.name": "zsre", "parse_source.source": f"hf:a/b@{'0' * 40}"},
        **{f"{name}.source": str(folder / "facts.jsonl") for name in ("read_records", "load_records")},
        **{"parse_records.text": '{"prompt": "{} is in", "subject": "Paris", "target": "Rome"}', "run.resid": [0]},
        **{
            "recognise.rows": [EIFFEL.to_dict()],
            "trace.subjects": ["Italy"],
            "ModelUpdate.load.path": folder / "update",
        },
        **{
            "read_trace.path": tracing.write_trace(folder / "trace", trace),
            "read_moment.path": store.entries()[0].path,
        },
        **{"edit.model": session, "resolve_method.model": lm, "check_system.layer": prepared},
        **{"experts": 2, "width": 24, "PreparedLayer.remembering.weight": 1.0, "drift_over_price.moment": blocks},
        **{"cache": None, "by_digest.digest": header.fingerprint.digest},
        # servers
        **{"write_gguf_model.base": write_tiny_gguf(folder / "base.gguf"), "alias": "facts"},
        **{"write_gguf_in_place.base": folder / "base.gguf"},
        **{"server": server.address, "engine": "llamacpp", "push.out": folder / "adapters"},
        **{"moments": {layer: moment}, "contexts": ["{}"], "DecoderView.self": lm},
        **{"served_name.folder": folder / "adapters"},
        **{"token_entropy.ids": [5, 6], "has_dead_units.config": lm.config},
    }
    instances = (
        *(EIFFEL, session, lm, update, edits, experiment, book, book.store, book.history(), header, prepared),
        *(header.fingerprint, values["spec"], store, values["other"], narrow.null_space, prepared.preservation),
        *(
            part,
            values["other"],
            evaluate.Snapshot(lm, [record]),
            settings,
            trace,
            trace.facts[0],
            evaluate.ReferenceVocabulary.fit(["a text"]),
            gate.CollapseMonitor(session),
        ),
        experiments.ExperimentConfig(name="a", data="facts.jsonl", n=1, methods=["emmet"]),
    )
    values |= {f"{type(one).__name__}.self": one for one in instances}
    return values | {"in_state.self": ReadExperiment(folder, {}, ())}


def value_of(function: str, parameter: str, values: dict[str, Any]) -> Any:
    """The value of a parameter.

    Args:
        function: Name, as `public` has it.
        parameter: Its parameter.
        values: From `values_of`.

    Raises:
        LookupError: There is none: it has to be added to `values_of`.
    """
    owner = function.rpartition(".")[0].rpartition(".")[2]
    short = ".".join(function.split(".")[-2:])
    for name in (f"{short}.{parameter}", f"{short.rpartition('.')[2]}.{parameter}", f"{owner}.{parameter}", parameter):
        if name in values:
            return values[name]
    raise LookupError(f"{function} has a parameter {parameter!r} that tests/public_functions.py has no value for")


PUBLIC = public()


def arguments(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """What a function is called with: a value of each parameter that has no default.

    Args:
        name: A name of `PUBLIC`.
        values: From `values_of`.
    """
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    given = {parameter: value_of(name, parameter, values) for parameter in needed}
    if name.endswith(".__init__"):
        given["self"] = object.__new__(type(given["self"]))  # the values are not made anew
    return given
