"""A gate's configuration and its canary files: the packaged ones are sound, and every mistake is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emendo.datasets import read_records
from emendo.errors import GateConfigError, InputError, PluginError
from emendo.gate import (
    GATE_CHECKS,
    GateCheck,
    Measurement,
    default_config,
    default_text,
    read_canaries,
    read_config,
    register_gate_check,
)
from emendo.gate.canaries import PACKAGED, CanaryText, parse_canaries
from emendo.gate.checks import AT_LEAST
from emendo.gate.config import MonitorConfig, parse_config
from emendo.gate.sections import CheckConfig, Checks, GrowingConfig, SuccessConfig
from tests.every import every

ROOT = Path(__file__).parents[2]


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(GateConfigError) as caught:
        parse_config(text, "mine.toml")
    assert "mine.toml" in str(caught.value)
    return caught.value.problems


# ---- the packaged configuration ------------------------------------------------------------------------------


def test_the_default_declares_every_check_and_every_signal() -> None:
    config = default_config()
    assert set(config.checks.declared()) == set(Checks.model_fields)
    assert set(config.monitor.limits()) == set(MonitorConfig.model_fields)
    assert read_config("default") == config
    assert parse_config(default_text(), "printed") == config


def test_what_a_file_does_not_declare_is_not_checked() -> None:
    config = parse_config("[checks.efficacy]\nlimit = 1\n", "mine.toml")
    assert list(config.checks.declared()) == ["efficacy"]
    assert config.monitor.limits() == {}
    assert config.checks.declared()["efficacy"].unmeasured == "fail"


# ---- mistakes ------------------------------------------------------------------------------------------------


def test_every_mistake_is_named_with_the_nearest_name() -> None:
    found = problems(
        'x = 1\n[checks.efficacy]\nlimt = 1\nlimit = 2\n[checks.eficacy]\nlimit = 1\n[canaries]\nfile = ["a"]'
    )
    assert len(found) == 5
    text = "\n".join(found)
    for words in ("unknown setting 'x'", "did you mean 'limit'?", "did you mean 'efficacy'?", "did you mean 'files'?"):
        assert words in text
    assert "checks.efficacy.limit = 2" in text


@every(
    ("text", "words"),
    [
        ("[checks.efficacy]\n", "checks.efficacy.limit"),
        ("[checks.efficacy]\nlimit = true\n", "valid number"),
        ("[checks.efficacy]\nlimit = '1'\n", "valid number"),
        ("[checks.efficacy]\nlimit = 1.01\n", "less than or equal to 1"),
        ("[checks.norm_growth]\nlimit = -0.1\n", "greater than or equal to 0"),
        ("[checks.norm_growth]\nlimit = nan\n", "finite"),
        ("[checks.perplexity_ratio]\nlimit = inf\n", "finite"),
        ("[checks.norm_growth]\nlimit = 1\njudge = 'estimate'\n", "unknown setting 'judge'"),
        ("[checks.efficacy]\nlimit = 1\nsuccess = 'argmx'\n", "argmax"),
        ("[checks.efficacy]\nlimit = 1\nunmeasured = 'skip'\n", "pass"),
        ("[checks]\nefficacy = 0.5\n", "expected a table, [checks.efficacy]"),
        ("reference = 'before'\n[checks.efficacy]\nlimit = 1\n", "base"),
        ("[canaries]\nfiles = []\n[checks.efficacy]\nlimit = 1\n", "canaries.files"),
        ("[monitor]\nnorm = 1\n[checks.efficacy]\nlimit = 1\n", "did you mean 'norm_growth'?"),
    ],
)
def test_a_bad_value_is_refused_in_words(text: str, words: str) -> None:
    assert any(words in problem for problem in problems(text)), problems(text)


@pytest.mark.parametrize("text", ["", 'reference = "base"', "[checks]\n"])
def test_a_gate_without_checks_is_refused(text: str) -> None:
    with pytest.raises(GateConfigError, match="would let everything in"):
        parse_config(text, "mine.toml")


def test_what_is_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GateConfigError, match="not TOML"):
        parse_config("limit = [", "mine.toml")
    with pytest.raises(GateConfigError, match="not TOML"):
        parse_config("a = " + "[" * 5000, "mine.toml")
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    for name in ("missing.toml", "latin.toml", "", "a\0b"):
        with pytest.raises(InputError, match=r"cannot read|no path has a NUL"):
            read_config(str(tmp_path / name))


# ---- canaries ------------------------------------------------------------------------------------------------


def test_the_packaged_canaries_cover_their_topics() -> None:
    canaries = read_canaries([PACKAGED]).canaries
    topics = [canary.topic for canary in canaries]
    assert len(canaries) >= 60
    assert len({canary.prompt for canary in canaries}) == len({canary.id for canary in canaries}) == len(canaries)
    for topic in ("geography", "science", "arithmetic", "grammar", "code", "chat"):
        assert topics.count(topic) >= 8
    # A trailing space would be a token of its own, which no word begins with.
    assert all(canary.prompt == canary.prompt.rstrip() for canary in canaries)


@pytest.mark.parametrize("facts", ["src/emendo/data/demo_facts.jsonl", "benchmarks/data/dev_facts.jsonl"])
def test_no_packaged_canary_is_about_a_fact_that_is_edited_here(facts: str) -> None:
    subjects = [record.request.subject.lower() for record in read_records(ROOT / facts)]
    prompts = [prompt.lower() for prompt in read_canaries([PACKAGED]).prompts]
    assert [(s, p) for s in subjects for p in prompts if s in p] == []


KINDS = ("English", "Chinese", "Japanese", "Korean", "Spanish", "French", "German", "Russian", "Arabic", "Hindi")
FORMS = ("code", "markup", "tables", "lists", "arithmetic", "chat", "long context")
QUESTIONS = ("questions", "multiple choice", "completions")


def test_the_packaged_texts_cover_languages_formats_and_questions() -> None:
    texts = read_canaries([PACKAGED]).texts
    topics = [text.topic for text in texts]
    assert set(topics) == {*KINDS, *FORMS, *QUESTIONS}
    size = {topic: sum(len(text.text.encode()) for text in texts if text.topic == topic) for topic in topics}
    assert all(size[topic] >= 120 for topic in size if topic != "chat")
    assert len({text.id for text in texts}) == len({(text.text, text.messages) for text in texts}) == len(texts)
    assert all(text.messages for text in texts if text.topic == "chat")
    assert {mark for mark in "，。：？“”、「」¿¡«»„،؟।" if not any(mark in text.text for text in texts)} == set()


def test_own_texts_and_conversations_are_kinds_of_their_own() -> None:
    rows = [
        {"text": "Dear customer,", "topic": "letters"},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "id": "hi"},
    ]
    letter, chat = parse_canaries("\n".join(map(json.dumps, rows)), "mine.jsonl")
    assert letter == CanaryText("mine.jsonl:1", "letters", "Dear customer,")
    assert chat == CanaryText("hi", "other", messages=(("system", "Be brief."), ("user", "Hi")))


def test_own_canaries_join_the_packaged_ones(tmp_path: Path) -> None:
    known = read_canaries([PACKAGED]).prompts[0]
    rows = [
        {"prompt": "Our refund policy is"},
        {"prompt": known, "id": "again"},
        {"prompt": "Call us at", "topic": "x"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    (tmp_path / "gate.toml").write_text(
        '[checks.canary_flips]\nlimit = 0\n[canaries]\nfiles = ["packaged", "mine.jsonl"]\n'
    )
    config = read_config(tmp_path / "gate.toml")
    found = read_canaries(config.canaries.files, config.folder)  # relative to the configuration
    assert len(found.canaries) == len(read_canaries([PACKAGED]).canaries) + 2
    assert found.canaries[-2].id == "mine.jsonl:1"
    assert sorted(found.sources) == ["mine.jsonl", "packaged"]


def test_every_bad_canary_line_is_named() -> None:
    lines = ['{"prompt": 3}', "{", '["a"]', '{"id": "x"}', '{"prompt": " "}', '{"prompt": "a", "topc": "b"}']
    lines += ['{"prompt": "\\ud800"}', '{"prompt": "fine"}', '{"text": ""}', '{"text": "a", "prompt": "b"}']
    lines += ['{"messages": []}', '{"messages": [{"role": "bot", "content": "a"}]}', '{"messages": [{"role": "user"}]}']
    with pytest.raises(GateConfigError) as caught:
        parse_canaries("\n".join(lines), "mine.jsonl")
    found = caught.value.problems
    assert [problem.split(":")[0] for problem in found] == [f"line {n}" for n in (*range(1, 8), *range(9, 14))]
    assert "did you mean 'topic'?" in found[5]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_a_canary_file_without_prompts_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(content)
    with pytest.raises(GateConfigError, match="expected JSONL"):
        read_canaries(["mine.jsonl"], tmp_path)
    with pytest.raises(GateConfigError, match="cannot read"):
        read_canaries(["missing.jsonl"], tmp_path)


# ---- the page ------------------------------------------------------------------------------------------------


def table_after(heading: str) -> dict[str, list[str]]:
    """Rows of the first table of docs/guides/gate.md whose header begins with `heading`, by their first cell."""
    lines = (ROOT / "docs" / "guides" / "gate.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        rows[name] = cells
    return rows


def test_the_page_has_every_check_with_its_default_limit() -> None:
    checks = default_config().checks.declared()
    rows = table_after("check")
    assert list(rows) == list(Checks.model_fields)
    for name, check in checks.items():
        limit, unmeasured, _ = rows[name]
        assert limit == f"{'≥' if name in AT_LEAST else '≤'} {check.limit:g}{_growth(check)}"
        assert unmeasured == check.unmeasured


def _growth(check: CheckConfig) -> str:
    if not isinstance(check, GrowingConfig):
        return ""
    return f" + {check.each:g} a further fact, ≤ {check.most:g}"


def test_the_page_has_every_signal_with_its_default_limit() -> None:
    rows = table_after("signal")
    assert {name: float(cells[0]) for name, cells in rows.items()} == default_config().monitor.limits()


def test_the_page_has_every_setting() -> None:
    rows = table_after("setting")
    config = default_config()
    assert rows["reference"][0] == config.reference
    assert rows["canaries.files"][0] == ", ".join(config.canaries.files)
    for name, field in {**SuccessConfig.model_fields, **GrowingConfig.model_fields}.items():
        default = rows[f"checks.NAME.{name}"][0]
        assert default == (
            "below" if field.is_required() else f"{field.default:g}" if name == "each" else str(field.default)
        )


# ---- checks of one's own ---------------------------------------------------------------------------------------


def test_a_registered_check_is_declared_by_its_name(request: pytest.FixtureRequest) -> None:
    check = GateCheck("one_layer", "a test", lambda evidence: Measurement(1.0, 1, "is one"), reads=frozenset({"texts"}))
    with pytest.raises(GateConfigError, match="one_layer"):
        parse_config("[checks.one_layer]\nlimit = 1\n", "f")
    register_gate_check(check)
    request.addfinalizer(lambda: GATE_CHECKS.unregister("one_layer"))
    checks = parse_config("[checks.efficacy]\nlimit = 0.5\n[checks.one_layer]\nlimit = 1\n", "f").checks
    assert list(checks.declared()) == ["efficacy", "one_layer"]
    assert checks.read_texts
    assert not checks.ask_prompts
    assert checks.model_dump()["one_layer"] == {"limit": 1.0, "unmeasured": "fail"}
    with pytest.raises(GateConfigError, match=r"did you mean 'one_layer'"):
        parse_config("[checks.one_layr]\nlimit = 1\n", "f")
    with pytest.raises(GateConfigError, match="limit"):
        parse_config("[checks.one_layer]\nlimit = -1\n", "f")


def test_a_check_cannot_take_the_name_of_one_of_emendos() -> None:
    check = GateCheck("efficacy", "a test", lambda evidence: Measurement(1.0, 1, "is one"))
    with pytest.raises(PluginError, match=r"gate check 'efficacy' is there already, from Emendo"):
        register_gate_check(check)
