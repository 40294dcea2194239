"""Ten facts of the demo model on their way out: the size of the update, and the adapter against the edited model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from emendo.datasets import read_records
from emendo.editing.session import EditSession
from emendo.export import write_adapter
from emendo.models import EditableModel
from emendo.statistics import MomentStore

pytestmark = pytest.mark.slow

FACTS = Path(__file__).parents[2] / "benchmarks" / "data" / "dev_facts.jsonl"


def test_ten_facts_are_small_and_the_adapter_gives_their_logits(demo_model: EditableModel, tmp_path: Path) -> None:
    records = read_records(FACTS)[:10]
    texts = [
        text
        for record in records
        for text in (record.request.text, *record.paraphrase_prompts[:2], *record.neighborhood_prompts[:2])
    ]
    assert len(set(texts)) == 50
    session = EditSession(demo_model, store=MomentStore(tmp_path / "moments"))
    settings = {"moments.multiple": 2}
    update = session.plan([record.request for record in records], "emmet", settings=settings).update
    assert update.save(tmp_path / "update").stat().st_size < 1_000_000
    written = write_adapter(demo_model, [update], tmp_path)
    assert (written.rank, written.exact_rank) == (16, 10)
    served = PeftModel.from_pretrained(copy.deepcopy(demo_model.model), written.path).eval()
    with session.applied(update), torch.no_grad():
        for text in texts:
            ids = torch.tensor([demo_model.encode(text)])
            edited = demo_model.model(input_ids=ids, use_cache=False).logits
            assert float((served(input_ids=ids, use_cache=False).logits - edited).abs().max()) < 1e-4, text
