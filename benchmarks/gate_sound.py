"""Sound edits for the gate's limits: ten of one fact, ten of ten and ten of fifty, kept as update files.

    python benchmarks/gate_sound.py --out edits
    python benchmarks/gate_sound.py --out edits --other counterfact.jsonl

Facts are the packaged demo facts and `benchmarks/data/dev_facts.jsonl`; the method is `emendo` as it is by default. The
searches are made once and kept beside the edits. An edit is a folder with its update files in the order in which they
are applied, and `records.jsonl`, the facts with their probes. With `--other`, two edits of one, of ten and of fifty
facts of a file, of different subjects, which the model answers: no limit was chosen with them in view.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from emendo import EditableModel, EditRecord, EditRequest, EditSession, ModelUpdate, load, read_records
from emendo.editing.value_cache import ValueCache
from emendo.evaluate import answered

FACTS = Path(__file__).parent / "data" / "dev_facts.jsonl"

FRANCE = EditRecord(EditRequest("The capital of {} is", "France", "Lyon", id="france"), "Paris")
"""A sound edit of a country that many canaries are about."""

HIDDEN = (
    ("question-mark", EditRecord(EditRequest("What is the name of this river{}", "?", "Helsinki", id="?"))),
    ("comma", EditRecord(EditRequest("On Monday{}", ",", "Helsinki", id=","))),
    ("chinese-stop", EditRecord(EditRequest("我们明天去学校{}", "。", "Helsinki", id="。"))),
    ("the", EditRecord(EditRequest("She sat at {}", "the", "Helsinki", id="the"))),
)
"""Facts with the key of a token that is everywhere, to be hidden among sound ones (`gate_bad.py`)."""

OTHER = 70
"""Facts of another file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--other", type=Path, help="Facts of another file, of which those are taken that are known.")
    args = parser.parse_args()
    lm = load("demo")
    facts = known_facts() if args.other is None else other_facts(lm, args.other)
    session = EditSession(lm, targets=memory_of(facts, args.out))
    kind, named = ("sound", batches(facts)) if args.other is None else ("other", other_batches(facts))
    for name, records in named:
        folder = args.out / kind / name
        if (folder / "records.jsonl").exists():
            continue
        plan = session.plan([record.request for record in records])
        keep(folder, [plan.update], records)
        print(name, flush=True)


def memory_of(facts: Sequence[EditRecord], out: Path) -> ValueCache:
    """Searches of all facts, and of those that edits are made of beside them."""
    hidden = [record for _, record in HIDDEN]
    return ValueCache([record.request for record in (*facts, FRANCE, *hidden)], out / "targets")


def other_facts(lm: EditableModel, path: Path) -> list[EditRecord]:
    """The first facts of a file that the model answers, one of each subject."""
    records = list({record.request.subject: record for record in read_records(path)}.values())
    taken: list[EditRecord] = []
    while len(taken) < OTHER and records:
        taken += answered(lm, records[:100])
        records = records[100:]
    return taken[:OTHER]


def other_batches(facts: Sequence[EditRecord]) -> Iterator[tuple[str, list[EditRecord]]]:
    """Two edits of each size."""
    for number in range(2):
        yield f"01-{number}", [facts[number]]
        yield f"10-{number}", list(facts[10 * number + 2 : 10 * number + 12])
        yield f"50-{number}", list(facts[20 * number : 20 * number + 50])


def known_facts() -> list[EditRecord]:
    """The packaged demo facts and the development facts, all of different subjects."""
    with resources.as_file(resources.files("emendo") / "data" / "demo_facts.jsonl") as path:
        return [*read_records(path), *read_records(FACTS)]


def batches(facts: Sequence[EditRecord]) -> Iterator[tuple[str, list[EditRecord]]]:
    """Thirty batches by name: nine single facts and France, ten tens without a fact in common, ten fifties."""
    order = list(facts)
    random.Random(0).shuffle(order)
    yield "01-france", [FRANCE]
    for number in range(9):
        yield f"01-{number}", [order[10 * number]]
    for number in range(10):
        yield f"10-{number}", order[10 * number : 10 * number + 10]
    for number in range(10):
        yield f"50-{number}", random.Random(number + 1).sample(order, 50)


def keep(folder: Path, updates: Sequence[ModelUpdate], records: Sequence[EditRecord]) -> None:
    """Write an edit: its updates, then its records, so that a folder with records is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, update in enumerate(updates):
        update.save(folder / f"{number:03d}.safetensors")
    lines = [json.dumps(record.to_dict(), ensure_ascii=False) for record in records]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
