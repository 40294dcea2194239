"""CounterFact scores by the shortest road: plain transformers in float64, one text at a time, no code of Emendo.

It reads the original JSON rows, builds texts as the data set means them (prompt, a space, the object), and computes
each metric from its formula. Slow on purpose; what is fast is compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Candidate:
    """One object after one prompt: mean nll per token in nats, and whether greedy decoding would say it."""

    nll: float
    greedy: bool


class IndependentScorer:
    """Scores continuations with a transformers model and tokenizer.

    Args:
        model: A causal LM; it is used in float64.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.double().eval()
        self.tokenizer = tokenizer
        self.last: tuple[list[int], torch.Tensor] = ([], torch.empty(0))

    def candidate(self, prompt: str, target: str) -> Candidate:
        """Score one object after one prompt."""
        before = self.tokenizer(prompt)["input_ids"]
        whole = self.tokenizer(f"{prompt} {target}")["input_ids"]
        assert whole[: len(before)] == before, (prompt, target)
        total, greedy = 0.0, True
        log_probs = self.log_probs(whole[:-1])
        for place in range(len(before), len(whole)):
            row = log_probs[place - 1]
            total -= float(row[whole[place]])
            greedy = greedy and int(row.argmax()) == whole[place]
        return Candidate(total / (len(whole) - len(before)), greedy)

    def log_probs(self, ids: list[int]) -> torch.Tensor:
        """Next-token log-probabilities at every position of one text; the last text's are kept."""
        if self.last[0] != ids:
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([ids])).logits[0]
            assert logits.dtype == torch.float64
            self.last = (ids, torch.log_softmax(logits, dim=-1))
        return self.last[1]

    def record(self, row: dict[str, Any]) -> dict[str, list[tuple[Candidate, Candidate]]]:
        """(new, true) candidates of every prompt of a CounterFact row, by kind of prompt."""
        fact = row["requested_rewrite"]
        prompts = {
            "efficacy": [fact["prompt"].replace("{}", fact["subject"])],
            "paraphrase": row["paraphrase_prompts"],
            "neighborhood": row["neighborhood_prompts"],
        }
        new, true = fact["target_new"]["str"], fact["target_true"]["str"]
        return {
            kind: [(self.candidate(prompt, new), self.candidate(prompt, true)) for prompt in texts]
            for kind, texts in prompts.items()
        }


def summary(records: list[dict[str, list[tuple[Candidate, Candidate]]]]) -> dict[str, float]:
    """ES, PS, NS, S and EA, PA, NA in percent: mean over a record's prompts, then over records."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def average(kind: str, value: Any) -> float:
        return 100 * mean([mean([float(value(new, true)) for new, true in record[kind]]) for record in records])

    found = {
        "ES": average("efficacy", lambda new, true: new.nll < true.nll),
        "PS": average("paraphrase", lambda new, true: new.nll < true.nll),
        "NS": average("neighborhood", lambda new, true: true.nll < new.nll),
        "EA": average("efficacy", lambda new, true: new.greedy),
        "PA": average("paraphrase", lambda new, true: new.greedy),
        "NA": average("neighborhood", lambda new, true: true.greedy),
    }
    parts = [found[name] for name in ("ES", "PS", "NS")]
    return {**found, "S": 3 / sum(1 / part for part in parts) if all(parts) else 0.0}
