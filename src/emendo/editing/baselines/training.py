"""The one training loop of the baselines: Adam on the target tokens' negative log-likelihood of the plain prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from emendo.errors import NumericalError
from emendo.methods.settings import TrainingSettings
from emendo.models import EditableModel
from emendo.models.alignment import encode_target
from emendo.progress import Progress, Silent
from emendo.requests import EditRequest


@dataclass(frozen=True)
class Example:
    """A request as tokens.

    Attributes:
        label: How messages name the request.
        ids: Prompt and all target tokens but the last, which nothing is predicted from.
        target_ids: The tokens to predict, the first of them after the prompt.
    """

    label: str
    ids: tuple[int, ...]
    target_ids: tuple[int, ...]


@dataclass(frozen=True)
class TrainingTrace:
    """What training did.

    Attributes:
        losses: Mean loss over the requests in each pass, before that pass's steps, nats a token.
        passes: Passes over all requests.
        updates: Steps of Adam.
        stopped: ``"loss"`` or ``"steps"``: the rule that ended training.
        nll: Of each request's target with the trained weights, before they are rounded to the model's dtype, nats a
            token.
        argmax: Whether each request's target tokens are all the most likely ones then.
    """

    losses: tuple[float, ...]
    passes: int
    updates: int
    stopped: Literal["loss", "steps"]
    nll: tuple[float, ...]
    argmax: tuple[bool, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def make_examples(lm: EditableModel, requests: Sequence[EditRequest]) -> list[Example]:
    """Plain prompts and targets as tokens, as the scorer reads them.

    Raises:
        RequestError: A target that the tokenizer cannot write.
    """
    found = []
    for request in requests:
        prompt, target = encode_target(lm, request.asked, request.target, request.join)
        found.append(Example(request.label, (*prompt, *target[:-1]), tuple(target)))
    return found


def target_nll(lm: EditableModel, examples: Sequence[Example]) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Mean negative log-likelihood of each example's target tokens, in nats, with its graph; and the argmax flags.

    In float32, or float64 for a float64 model.

    Raises:
        InputError: An example is longer than the model has positions for.
    """
    batch = lm.batch([example.ids for example in examples])
    out = lm.decoder(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask.long(),
        use_cache=False,
        return_dict=True,  # a configuration may ask for tuples
    )
    counts = [len(example.target_ids) for example in examples]
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    at = [len(example.ids) - count + j for example, count in zip(examples, counts, strict=True) for j in range(count)]
    logits = lm.unembed(out.last_hidden_state[rows, at])
    labels = torch.tensor([token for example in examples for token in example.target_ids], device=logits.device)
    nll = nn.functional.cross_entropy(logits, labels, reduction="none")
    hits = logits.detach().argmax(dim=1) == labels
    # Not index_add: its order of additions on a GPU differs from run to run.
    return (
        torch.stack([part.mean() for part in nll.split(counts)]),
        torch.stack([part.all() for part in hits.split(counts)]),
    )


def train(
    lm: EditableModel,
    requests: Sequence[EditRequest],
    parameters: Sequence[Tensor],
    settings: TrainingSettings,
    *,
    after_step: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> TrainingTrace:
    """Train `parameters`, which the model's forward pass already uses, in place.

    Call with an isolated model and gradients enabled; nothing here draws random numbers.

    Args:
        lm: The model.
        requests: The facts to write; mini-batches take them in this order.
        parameters: What is trained, in float32 or better.
        settings: Constants of the training.
        after_step: Called after every step, to bring the parameters back into their bounds.
        progress: Told about the stage "training", in passes.

    Raises:
        InputError: A prompt is longer than the model has positions for.
        NumericalError: A loss is not finite; names the requests.
    """
    progress = progress or Silent()
    examples = make_examples(lm, requests)
    optimizer = torch.optim.Adam(list(parameters), lr=settings.learning_rate)
    losses: list[float] = []
    updates = 0
    stopped: Literal["loss", "steps"] = "steps"
    progress.start("training", settings.steps)
    try:
        for _ in range(settings.steps):
            found: list[float] = []
            for part in _chunks(examples, settings.batch_size):
                nll, _ = target_nll(lm, part)
                found += _finite(nll, part, settings)
                if sum(found[-len(part) :]) / len(part) < settings.loss_threshold:
                    continue
                optimizer.zero_grad()
                nll.mean().backward()
                optimizer.step()
                updates += 1
                if after_step is not None:
                    after_step()
            losses.append(math.fsum(found) / len(found))
            progress.advance()
            if losses[-1] < settings.loss_threshold:
                stopped = "loss"
                break
        nll_after, argmax = _measure(lm, examples, settings)
    finally:
        progress.finish()
    return TrainingTrace(tuple(losses), len(losses), updates, stopped, nll_after, argmax)


def _measure(
    lm: EditableModel, examples: Sequence[Example], settings: TrainingSettings
) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """Loss and argmax of every example with the trained parameters."""
    nll: list[float] = []
    argmax: list[bool] = []
    with torch.no_grad():
        for part in _chunks(examples, settings.batch_size):
            values, hits = target_nll(lm, part)
            nll += _finite(values, part, settings)
            argmax += hits.tolist()
    return tuple(nll), tuple(argmax)


def _finite(nll: Float[Tensor, " n"], examples: Sequence[Example], settings: TrainingSettings) -> list[float]:
    values: list[float] = nll.tolist()
    bad = [example.label for example, value in zip(examples, values, strict=True) if not math.isfinite(value)]
    if bad:
        raise NumericalError(
            f"training left the finite numbers for {', '.join(map(repr, bad))}; expected a finite loss. "
            f"Lower --set {settings.section}.learning_rate (it is {settings.learning_rate:g}), or load the model with "
            "--dtype float32"
        )
    return values


def _chunks(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    return (examples[begin : begin + size] for begin in range(0, len(examples), size))
