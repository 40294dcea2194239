"""Sound edits for the gate's limits: ten of one fact, ten of ten and ten of fifty, kept as update files.

    python benchmarks/gate_sound.py --out edits

Facts are the packaged demo facts and `benchmarks/data/dev_facts.jsonl`; the method is `emendo` as it is by default. The
searches are made once and kept beside the edits. An edit is a folder with its update files in the order in which they
are applied, and `records.jsonl`, the facts with their probes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from emendo import EditRecord, EditRequest, EditSession, ModelUpdate, load, read_records
from emendo.editing.value_cache import ValueCache

FACTS = Path(__file__).parent / "data" / "dev_facts.jsonl"

FRANCE = EditRecord(EditRequest("The capital of {} is", "France", "Lyon", id="france"), "Paris")
"""A sound edit of a country that many canaries are about."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    facts = known_facts()
    everything = [*facts, FRANCE]
    memory = ValueCache([record.request for record in everything], args.out / "targets")
    session = EditSession(load("demo"), targets=memory)
    for name, records in batches(facts):
        folder = args.out / "sound" / name
        if (folder / "records.jsonl").exists():
            continue
        plan = session.plan([record.request for record in records])
        keep(folder, [plan.update], records)
        print(name, flush=True)


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
