"""Causal tracing against plain loops, against the numbers of ROME's public script, and as its users meet it."""

from __future__ import annotations

import errno
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import emendo.report.trace.write as write_module
import emendo.tracing.grid as grid_module
from emendo.errors import InputError, RequestError, SelfCheckError, TraceError
from emendo.models import EditableModel
from emendo.tracing import (
    KINDS,
    Trace,
    TraceFact,
    TraceSettings,
    forget_parts,
    position_classes,
    read_trace,
    trace,
    write_trace,
)
from emendo.tracing.corrupt import Corrupted, corrupt
from emendo.tracing.facts import align_fact
from emendo.tracing.grid import EXACT, FREE, trace_grid
from emendo.tracing.runs import run_both
from tests.conftest import FLOAT32_ATTENTION, ROWS, VARIANTS, build_tiny
from tests.kinds import kinds
from tests.model_state import changes, model_state
from tests.pairs import pairs
from tests.tiny.conftest import Command
from tests.tracing_cases import arithmetic_gpt2, naive_scores

EIFFEL = TraceFact("{} is located in the", "The Eiffel Tower")
JAPAN = TraceFact("The capital of {} is", "Japan")
FACTS = [EIFFEL, JAPAN, TraceFact("{}, a native speaker of", "Danielle Darrieux")]


def grids_of(lm: EditableModel, fact: TraceFact, settings: TraceSettings) -> tuple[Any, Corrupted, dict[str, Any]]:
    aligned = align_fact(lm, fact)
    corrupted = corrupt(lm, aligned, settings, deviation=0.3)
    runs = run_both(lm, corrupted, 300, settings.metric, settings.kinds)
    return aligned, corrupted, {kind: trace_grid(lm, aligned, runs, kind, settings) for kind in settings.kinds}


def worst_difference(lm: EditableModel, fact: TraceFact, settings: TraceSettings, cells: int | None) -> float:
    """Largest difference from the naive loop over all cells, or over a few random ones of each kind."""
    aligned, corrupted, grids = grids_of(lm, fact, settings)
    assert corrupted.noise is not None
    random, worst = np.random.default_rng(0), 0.0
    for kind, grid in grids.items():
        every = [(t, layer) for t in range(len(aligned.ids)) for layer in range(lm.n_layers)]
        chosen = every if cells is None else [every[i] for i in random.choice(len(every), cells, replace=False)]
        for t, layer in chosen:
            span = (aligned.begin, aligned.end)
            expected = naive_scores(
                lm, list(aligned.ids), span, corrupted.noise, kind, (t, layer), 300, settings.window
            )
            worst = max(worst, float(np.abs(expected - grid.scores[:, t, layer].numpy()).max()))
    return worst


@pytest.mark.parametrize("family", [*kinds(ROWS), *VARIANTS])
def test_every_family_agrees_with_the_naive_loop(family: str) -> None:
    lm = build_tiny(family, dtype=torch.float64)
    settings = TraceSettings(kinds=KINDS, samples=2, window=2, metric="log-probability")
    bound = 1e-5 if family in FLOAT32_ATTENTION else 1e-9
    assert worst_difference(lm, JAPAN, settings, cells=2) <= bound


@pytest.mark.parametrize(("window", "family"), pairs([1, 3, 10], ["llama", "gpt2"]))
def test_whole_grids_agree_with_the_naive_loop(family: str, window: int) -> None:
    kinds = KINDS if window == 3 else ("mlp", "attention")
    settings = TraceSettings(kinds=kinds, samples=2, window=window, metric="log-probability")
    assert worst_difference(build_tiny(family, dtype=torch.float64), JAPAN, settings, cells=None) <= 1e-9


def test_float32_is_within_rounding() -> None:
    settings = TraceSettings(kinds=KINDS, samples=3, window=2, metric="log-probability")
    assert worst_difference(build_tiny("llama"), EIFFEL, settings, cells=12) <= 1e-5


PUBLIC: dict[str, dict[int, list[float]]] = {
    "hidden": {
        0: [0.06008967, 0.06074356, 0.06042202, 0.06020325],
        6: [0.06213066, 0.06072108, 0.06026503, 0.06020325],
        12: [0.05783783, 0.06202151, 0.06221977, 0.0613686],
    },
    "mlp": {
        0: [0.0599383, 0.05994862, 0.06011991, 0.0601517],
        6: [0.06049049, 0.06067134, 0.06013937, 0.06015374],
        12: [0.05963381, 0.05914316, 0.05862144, 0.05900286],
    },
    "attention": {
        0: [0.06009169, 0.06007658, 0.06009248, 0.06013127],
        6: [0.06188555, 0.06182221, 0.06012638, 0.0601756],
        12: [0.06202151, 0.06221977, 0.06351706, 0.05964164],
    },
    "uniform": {
        0: [0.05557995, 0.05479115, 0.0551178, 0.05496661],
        6: [0.05634727, 0.05502781, 0.05498587, 0.05496661],
        12: [0.05935302, 0.06246432, 0.06173006, 0.0613686],
    },
}
"""What ROME's public causal-tracing script gives for `arithmetic_gpt2` and EIFFEL with noise 0.3 and three samples;
MLPs in a window of 2 layers, attention in one of 3."""


@pytest.mark.parametrize("name", PUBLIC)
def test_numbers_of_the_public_script(name: str) -> None:
    lm = arithmetic_gpt2()
    kind: Any = "hidden" if name == "uniform" else name
    settings = TraceSettings(
        kinds=(kind,),
        samples=3,
        noise=1.0,
        corruption="uniform" if name == "uniform" else "noise",
        window={"mlp": 2, "attention": 3}.get(name, 10),
    )
    aligned = align_fact(lm, EIFFEL)
    corrupted = corrupt(lm, aligned, settings, deviation=0.3)
    runs = run_both(lm, corrupted, 350, settings.metric, settings.kinds)
    found = trace_grid(lm, aligned, runs, kind, settings).scores.mean(dim=0).numpy()
    assert abs(float(runs.high[0]) - 0.06136860) <= 1e-5
    if name != "uniform":
        assert abs(float(runs.low.mean()) - 0.06020325) <= 1e-5
    for t, expected in PUBLIC[name].items():
        np.testing.assert_allclose(found[t], expected, rtol=0, atol=1e-5)


def test_cells_that_cannot_differ_are_free_and_right(tiny_llama: EditableModel) -> None:
    settings = TraceSettings(samples=2, window=2)
    aligned, _, grids = grids_of(tiny_llama, JAPAN, settings)
    for kind, grid in grids.items():
        assert (grid.state[: aligned.begin] == FREE).all()
        assert (grid.state[aligned.begin :, :-1] == EXACT).all()
        assert (grid.state[:, -1] == FREE).all() == (kind == "hidden")
        assert grid.scores.isfinite().all()


def test_token_budget_changes_memory_alone(tiny_llama: EditableModel) -> None:
    settings = TraceSettings(samples=4, window=3)
    aligned = align_fact(tiny_llama, EIFFEL)
    corrupted = corrupt(tiny_llama, aligned, settings, deviation=0.3)
    runs = run_both(tiny_llama, corrupted, 300, settings.metric, settings.kinds)
    for kind in settings.kinds:
        one, many = (trace_grid(tiny_llama, aligned, runs, kind, settings, token_budget=b) for b in (1, 10**6))
        torch.testing.assert_close(one.scores, many.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("most", [1, 7, 30])
def test_parts_of_a_row_that_go_through_a_block_alone_change_time_alone(
    tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """From one branch of one sample at a time, through parts of both, to a few samples."""
    settings = TraceSettings(kinds=KINDS, samples=5, window=3)
    aligned, _, whole = grids_of(tiny_llama, EIFFEL, settings)
    steps: list[tuple[int, int]] = []
    step = grid_module.wave_step

    def counted(lm: EditableModel, layer: int, stream: torch.Tensor, layout: Any) -> torch.Tensor:
        steps.append((layout.samples, stream[..., 0].numel()))
        return step(lm, layer, stream, layout)

    monkeypatch.setattr(grid_module, "_CACHED", most)
    monkeypatch.setattr(grid_module, "wave_step", counted)
    _, _, parts = grids_of(tiny_llama, EIFFEL, settings)
    opened = 5 * len(aligned.ids)  # a pass over whole texts, which nothing is cut from
    assert all(tokens in (opened,) or tokens <= max(most, len(aligned.ids)) for _, tokens in steps)
    assert {samples for samples, _ in steps} >= {1}
    for kind, grid in whole.items():
        torch.testing.assert_close(parts[kind].scores, grid.scores, rtol=0, atol=1e-6)


def test_the_model_is_left_as_it_was(tiny_gpt2: EditableModel) -> None:
    tiny_gpt2.model.train()
    before = model_state(tiny_gpt2)
    trace(tiny_gpt2, FACTS, TraceSettings(samples=2))
    assert not changes(before, model_state(tiny_gpt2))


def test_a_wave_that_is_wrong_is_refused(tiny_llama: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import emendo.tracing.grid as grid

    right = grid.wave_step
    monkeypatch.setattr(grid, "wave_step", lambda *arguments: right(*arguments) * 1.01)
    with pytest.raises(SelfCheckError, match="ordinary forward pass"):
        trace(tiny_llama, FACTS, TraceSettings(samples=2, metric="log-probability"))


def test_swapped_subjects_have_as_many_tokens(tiny_llama: EditableModel) -> None:
    settings = TraceSettings(corruption="swap", samples=3, metric="logit-difference")
    aligned = align_fact(tiny_llama, JAPAN)
    names = ["Japan", "Italy", "France", "Paris", "Tokyo"]
    corrupted = corrupt(tiny_llama, aligned, settings, 0.0, names)
    assert corrupted.noise is None
    assert 1 <= corrupted.samples <= 3
    changed = (corrupted.ids[1:] != corrupted.ids[0]).any(dim=0).nonzero().flatten().tolist()
    assert set(changed) <= set(range(aligned.begin, aligned.end))
    found = trace(tiny_llama, [JAPAN], settings, subjects=names)
    (fact,) = found.facts
    assert len(fact.low) == corrupted.samples
    # Restoring the whole stream at the last position gives the clean logits back, with each sample's own rival.
    assert fact.grids["hidden"].scores[-1, -1] == pytest.approx(fact.high, abs=1e-5)
    with pytest.raises(RequestError, match="no other subject has"):
        trace(tiny_llama, [EIFFEL], settings, subjects=["Japan"])


def test_positions_by_class() -> None:
    assert position_classes(8, 1, 4) == (
        *("before", "first subject", "middle subject", "last subject"),
        *("first after", "further", "further", "last"),
    )
    assert position_classes(3, 0, 1) == ("last subject", "first after", "last")
    assert position_classes(2, 0, 1) == ("last subject", "last")
    assert position_classes(2, 0, 2) == ("first subject", "last subject")


def test_averages_are_means_over_facts(tiny_llama: EditableModel) -> None:
    found = trace(tiny_llama, FACTS, TraceSettings(samples=2))
    for average in found.averages():
        rows = []
        for fact in found.facts:
            own = [t for t, name in enumerate(fact.classes) if name == average.position]
            if own:
                rows.append(fact.effects(average.kind)[own].mean(axis=0))
        assert average.n == len(rows)
        np.testing.assert_allclose(average.mean, np.mean(rows, axis=0), atol=1e-12)
        for mean, interval in zip(average.mean, average.interval, strict=True):
            assert interval is None if len(rows) == 1 else interval[0] - 1e-12 <= mean <= interval[1] + 1e-12


def test_a_run_that_was_interrupted_goes_on(
    tiny_llama: EditableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import emendo.tracing.run as module

    whole = trace(tiny_llama, FACTS, TraceSettings(samples=2))
    right, calls = module.run_both, []

    def stops(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(module, "run_both", stops)
    with pytest.raises(KeyboardInterrupt):
        trace(tiny_llama, FACTS, TraceSettings(samples=2), parts=tmp_path / "parts")
    again = trace(tiny_llama, FACTS, TraceSettings(samples=2), parts=tmp_path / "parts")
    assert len(calls) == 4  # the third once more, the first two not
    assert len(list((tmp_path / "parts").iterdir())) == len(again.facts), "until the trace itself is kept"
    assert same(whole, again)
    forget_parts(tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def same(one: Trace, other: Trace) -> bool:
    pairs = zip(one.facts, other.facts, strict=True)
    return all(
        np.array_equal(getattr(a.grids[kind], part), getattr(b.grids[kind], part), equal_nan=True)
        for a, b in pairs
        for kind in one.kinds
        for part in ("scores", "spread", "state")
    )


def test_the_file_gives_back_what_was_traced(tiny_llama: EditableModel, tmp_path: Path) -> None:
    found = trace(tiny_llama, FACTS, TraceSettings(samples=2, positions="ends"))
    path = write_trace(tmp_path / "trace.safetensors", found)
    again = read_trace(path)
    assert same(found, again)
    assert again.made == found.made
    assert [fact.tokens for fact in again.facts] == [fact.tokens for fact in found.facts]
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(TraceError, match="damaged"):
        read_trace(path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kinds": ("mpl",)}, "did you mean 'mlp'"),
        ({"corruption": "noisy"}, "did you mean 'noise'"),
        ({"metric": "prob"}, "probability"),
        ({"samples": 0}, "--samples"),
        ({"noise": float("nan")}, "--noise"),
        ({"window": 0}, "--window"),
        ({"kinds": ()}, "--kind"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TraceSettings(**settings)


# ---- the command ---------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """What a page would load, and the tags that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")
        ]


@pytest.mark.usefixtures("home", "small_pictures")
def test_command_writes_what_a_person_and_a_program_need(
    emendo: Command, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = (
        "trace",
        "--model",
        model,
        "--prompt",
        "{} is <b>in",
        "--subject",
        "The Eiffel Tower",
        "--samples",
        "2",
    )
    code, text, err = emendo(*arguments, "--out", str(out))
    assert code == 0, err
    for words in ("The Eiffel Tower is <b>in", "Measured", "state after a block at the last subject token"):
        assert words in text
    assert sorted(path.name for path in out.iterdir()) == [
        *("trace.html", "trace.json", "trace.md", "trace.png", "trace.safetensors")
    ]
    page = (out / "trace.html").read_text()
    parsed = _Page(page)
    assert parsed.loads == []
    assert "script" not in parsed.tags
    assert "&lt;b&gt;in" in page  # text of the prompt is no markup
    assert "<b>in" not in page
    assert parsed.tags.count("svg") == 3
    assert parsed.tags.count("table") >= 4  # a table of numbers behind every map
    document = json.loads((out / "trace.json").read_text())
    (read,) = read_trace(out / "trace.safetensors").facts
    np.testing.assert_allclose(document["facts"][0]["effects"]["mlp"], read.effects("mlp"))

    code, _, err = emendo(*arguments, "--out", str(out))
    assert (code, err.count("\n")) == (2, 1)
    assert "--overwrite" in err

    # On a disk that is full at the last file, the old files stay, and so do the finished facts.
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as full:
        full.setattr(write_module, "write_trace", refuses)
        code, _, err = emendo(*arguments, "--out", str(out), "--overwrite", "-q")
    assert code == 2, err
    assert "what it held is there as it was" in err
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert len(list((out / "parts").iterdir())) == 1
    assert emendo(*arguments, "--out", str(out), "--overwrite", "--json", "-q")[0] == 0
    assert not (out / "parts").exists()


def refuses(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


@pytest.mark.usefixtures("home", "small_pictures")
def test_command_traces_a_data_set(emendo: Command, model: str, tmp_path: Path) -> None:
    rows = [
        {"subject": "Japan", "prompt": "The capital of Japan is", "attribute": "Paris", "known_id": 1, "template": "x"},
        {"subject": "Italy", "prompt": "The capital of Italy is", "attribute": "Rome", "known_id": 2, "template": "x"},
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("trace", "--model", model, "--facts", str(path), "--samples", "2", "--json", "-q")
    code, text, _ = emendo(*common, "--out", str(tmp_path / "none"))
    assert code == 2  # a random model answers neither
    assert "none of 2 facts" in json.loads(text)["error"]["message"]
    code, text, _ = emendo(*common, "--any-answer", "--n", "1", "--out", str(tmp_path / "one"))
    assert code == 0
    assert len(json.loads(text)["facts"]) == 1
    code, _, _ = emendo(*common, "--any-answer", "--out", str(tmp_path / "both"))
    assert code == 0
    page = (tmp_path / "both" / "trace.html").read_text()
    assert page.count('<figure class="panel">') == 4  # first subject (of one), last subject, first after, last
    assert page.count("<svg") >= 4
    assert "Last subject token, 2 facts (indirect effect)" in page


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--prompt and --subject"),
        (("--prompt", "{} is", "--subject", "Japan", "--facts", "x.jsonl"), "exclude each other"),
        (("--prompt", "Japan is", "--subject", "Japan"), "one {}"),
        (("--prompt", "{} is", "--subject", " "), "--subject"),
        (("--prompt", "{} is", "--subject", "Japan", "--kind", "mpl"), "did you mean 'mlp'"),
        (("--prompt", "{} is", "--subject", "Japan", "--answer", "Rome"), "does not answer"),
        (("--prompt", "{} is" + " far" * 200, "--subject", "Japan"), "tokens; expected at most"),
        (("--facts", "missing.jsonl"), "missing.jsonl"),
    ],
)
def test_bad_input_is_one_line(emendo: Command, model: str, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = emendo("trace", "--model", model, *arguments, "-q")
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err


@pytest.mark.usefixtures("home")
def test_a_subject_that_is_not_in_its_prompt_is_named_with_its_row(emendo: Command, model: str, tmp_path: Path) -> None:
    row = {"subject": "Japan", "prompt": "The capital of Italy is", "attribute": "Rome", "known_id": 1, "template": "x"}
    (tmp_path / "facts.jsonl").write_text(json.dumps(row) + "\n")
    code, _, err = emendo("trace", "--model", model, "--facts", str(tmp_path / "facts.jsonl"), "-q")
    assert (code, err.count("\n")) == (2, 1), err
    assert "line 1: prompt must hold the subject once, found 0 times: 'Japan' in 'The capital of Italy is'" in err
