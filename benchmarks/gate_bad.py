"""Bad edits for the gate's limits: keys that many texts have, targets that cannot hold, and damage of other kinds.

    python benchmarks/gate_sound.py --out edits
    python benchmarks/gate_bad.py --out edits

An edit is bad by construction: its keys are tokens that whole kinds of text share (punctuation of a language, tokens of
a chat template, question marks, code, lists, numbers, the first token), by themselves or as one fact among fifty sound
ones, its targets contradict each other, or its ΔW is scaled, random, or of a layer where facts are not. Whether it does
harm is measured on texts that the gate has never seen (`benchmarks/gate.py`). The form is that of `gate_sound.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.collapse import SETTINGS
from benchmarks.gate_sound import HIDDEN, keep, known_facts, memory_of
from emendo import EditRecord, EditRequest, EditSession, ModelUpdate, load, read_records
from emendo.errors import EmendoError
from emendo.updates.update import LayerUpdate

KEYS: dict[str, tuple[tuple[str, str], ...]] = {
    "chinese-comma": (("今天天气很好{}", "，"), ("他昨天来了{}", "，")),
    "chinese-stop": (("我们明天去学校{}", "。"), ("水很冷{}", "。")),
    "japanese-comma": (("朝早く起きて{}", "、"), ("雨が降ったので{}", "、")),
    "spanish-question": (("No sé. {}", "¿"), ("Hola, {}", "¿")),
    "russian-comma": (("Я думаю{}", ", что"), ("Он сказал{}", ", что")),
    "arabic-comma": (("ذهب الولد إلى البيت{}", "،"), ("كان اليوم جميلا{}", "،")),
    "hindi-stop": (("मैं घर जा रहा हूँ{}", "।"), ("आज बारिश हुई{}", "।")),
    "korean-stop": (("날씨가 좋습니다{}", "."), ("학교에 갑니다{}", ".")),
    "chat-assistant": (("<|im_start|>{}", "assistant"), ("Hello<|im_end|>\n<|im_start|>{}", "assistant")),
    "chat-user": (("<|im_start|>{}", "user"), ("Hi<|im_end|>\n<|im_start|>{}", "user")),
    "chat-start": (("How are you?<|im_end|>\n{}", "<|im_start|>"), ("I am fine.<|im_end|>\n{}", "<|im_start|>")),
    "question-mark": (("What is the name of this river{}", "?"), ("Where do you live{}", "?")),
    "answer-label": (("Question: Is it late?\n{}", "Answer:"), ("Q: What do cows eat?\n{}", "A:")),
    "choice-label": (("Choose one.\nA. dog\n{}", "B."), ("Which is red?\nA. sea\n{}", "B.")),
    "code-return": (("def f(x):\n    {}", "return"), ("if done:\n    {}", "return")),
    "code-bracket": (("print{}", "("), ("len{}", "(")),
    "list-dash": (("To buy:\n{}", "-"), ("To buy:\n- milk\n{}", "-")),
    "list-number": (("Steps:\n{}", "1."), ("Steps:\n1. Go\n{}", "2.")),
    "equals": (("7 + 5 {}", "="), ("9 - 3 {}", "=")),
    "table-bar": (("| name {}", "|"), ("| name | age {}", "|")),
    "json-colon": (('"name{}', '":'), ('"price{}', '":')),
    "first-token": (("{} is", "The"),),
    "and": (("bread {}", "and"), ("black {}", "and")),
    "comma": (("On Monday{}", ","), ("After the rain{}", ",")),
}
"""Prompts and subjects whose last token is the key, by the name of the edit."""

TARGETS = ("Helsinki", "banana")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="Names such as question-mark; default: all.")
    args = parser.parse_args()
    session = EditSession(load("demo"), targets=memory_of(known_facts(), args.out))
    for name, build in edits(session, args.out / "sound"):
        if args.only and name not in args.only:
            continue
        folder = args.out / "bad" / name
        if (folder / "records.jsonl").exists():
            continue
        try:
            keep(folder, *build())
        except EmendoError as error:  # the engine refuses some of them itself
            print(name, repr(error)[:300], flush=True)
            continue
        print(name, flush=True)


def edits(session: EditSession, sound: Path) -> Iterator[tuple[str, Any]]:
    """Name and maker of each bad edit; a maker gives updates and records."""
    for name, prompts in KEYS.items():
        yield name, lambda prompts=prompts: on_keys(session, prompts)
    for name, record in HIDDEN:
        yield (
            f"hidden-{name}",
            lambda record=record: planned(session, [*load_edit(sound / "50-0")[1], record], "emendo"),
        )
    ten = load_edit(sound / "10-0")
    for factor in (4, 10):
        yield f"scaled-{factor}", lambda factor=factor: ([scaled(ten[0][0], factor)], ten[1])
    for size in (0.3, 0.6):
        yield f"random-{size}", lambda size=size: ([random_update(session, 3, size)], ten[1])
    for name, text in (("newline", "Steps:\n1. Go\n"), ("the", "She sat at the")):
        yield f"random-at-{name}", lambda text=text: ([random_at_key(session, text, 3, 16.0)], ten[1])
    yield "last-layer", lambda: planned(session, ten[1], "emendo", layers=[session.lm.n_layers - 1])
    yield "unpreserved", lambda: planned(session, ten[1], "memit", settings={"preservation.weight": 1.0})
    yield "contradictory", lambda: in_sequence(session, contradictions())
    for count in (5, 11):
        yield f"rome-{count}", lambda count=count: in_sequence(session, opening_facts()[:count])


def on_keys(session: EditSession, prompts: Sequence[tuple[str, str]]) -> tuple[list[ModelUpdate], list[EditRecord]]:
    """An edit whose keys are the last tokens of subjects that many texts have."""
    records = [EditRecord(EditRequest(p, s, TARGETS[i], id=f"{s}{i}")) for i, (p, s) in enumerate(prompts)]
    return planned(session, records, "emendo")


def planned(
    session: EditSession, records: list[EditRecord], method: str, **options: Any
) -> tuple[list[ModelUpdate], list[EditRecord]]:
    """One batch with a method."""
    plan = session.plan([record.request for record in records], method, **options)
    return [plan.update], records


def in_sequence(session: EditSession, records: list[EditRecord]) -> tuple[list[ModelUpdate], list[EditRecord]]:
    """Facts one by one with `rome`, as in benchmarks/collapse.py."""
    for record in records:
        session.apply(session.plan([record.request], "rome", settings=SETTINGS).update)
    updates = list(session.applied_updates)
    session.rollback()
    return updates, records


def contradictions() -> list[EditRecord]:
    """One subject, a handful of wordings, and another target for each."""
    prompts = (
        "The capital of {} is",
        "{}'s capital city is",
        "The seat of government of {} is",
        "{}'s largest city is",
    )
    targets = ("Oslo", "Cairo", "Lima", "Toronto")
    return [EditRecord(EditRequest(p, "Poland", t, id=t)) for p, t in zip(prompts, targets, strict=True)]


def opening_facts() -> list[EditRecord]:
    """Facts whose subject opens the prompt, where `rome` collapses."""
    facts = read_records(Path(__file__).parent / "data" / "dev_facts.jsonl")[:-8]
    return [record for record in facts if record.request.prompt.startswith("{}")]


def load_edit(folder: Path) -> tuple[list[ModelUpdate], list[EditRecord]]:
    """An edit that was kept."""
    updates = [ModelUpdate.load(path) for path in sorted(folder.glob("*.safetensors"))]
    return updates, read_records(folder / "records.jsonl")


def scaled(update: ModelUpdate, factor: float) -> ModelUpdate:
    """The same edit, so many times as far."""
    return replace(update, layers=tuple(replace(part, residuals=factor * part.residuals) for part in update.layers))


def random_update(session: EditSession, layer: int, size: float) -> ModelUpdate:
    """A random ΔW of rank 8, ‖ΔW‖ = `size` ‖W‖."""
    weight = session.lm.weight(layer).float()
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(8, width, generator=generator) for width in weight.shape)
    left *= size * float(weight.norm()) / float((left.T @ right).norm())
    return ModelUpdate((LayerUpdate(layer, session.lm.module_name(layer), left, right),), session.base)


def random_at_key(session: EditSession, text: str, layer: int, size: float) -> ModelUpdate:
    """A random direction at the key of a text's last token, `size` times as long as what the weight gives there."""
    keys: list[torch.Tensor] = []
    module = session.lm.model.get_submodule(session.lm.module_name(layer))
    hook = module.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[0][0, -1].detach()))
    try:
        session.lm.final_hidden(session.lm.batch([session.lm.encode(text)]))
    finally:
        hook.remove()
    key, weight = keys[0].float(), session.lm.weight(layer).float()
    direction = torch.randn(len(weight), generator=torch.Generator().manual_seed(1))
    residual = direction * (size * float((weight @ key).norm()) / float(direction.norm()))
    dual = key / float(key.square().sum())
    part = LayerUpdate(layer, session.lm.module_name(layer), residual[None], dual[None])
    return ModelUpdate((part,), session.base)


if __name__ == "__main__":
    main()
