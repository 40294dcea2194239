"""The one training recipe: from a world and a family to a model that knows the world's facts.

AdamW with warm-up at a constant rate until nearly every trained fact is answered, then a linear cool-down. Two things
make it quick: the objects of facts weigh more in the loss than the words around them, which are learnt at once, and
weights begin larger than large models' do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from emendo.errors import NumericalError
from emendo.models.silence import no_log
from emendo.models.worlds.families import FAMILIES, LENGTH
from emendo.models.worlds.text import END_ID, Packer, Rows, train_tokenizer
from emendo.progress import Progress, Silent
from emendo.solve.numerics import pinned
from emendo.worlds import World, epoch
from emendo.worlds.relations import fill


@dataclass(frozen=True)
class Recipe:
    """How a model of a world is trained; one for all families.

    Args:
        seed: Of weights and of the order of the text.
        learning_rate: Of AdamW, after the warm-up.
        weight_decay: Of matrices.
        warm_up: Steps until the whole rate is reached.
        rows: Of a step.
        length: Tokens of a row.
        object_weight: What a token of a fact's object counts in the loss, where others count one.
        initial_range: Standard deviation of initial weights.
        enough: Share of the trained facts that are answered when the rate begins to fall.
        cool_down: Passes until it is zero, which end the training.
        most: Passes before it falls in any case.
    """

    seed: int = 0
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warm_up: int = 100
    rows: int = 16
    length: int = LENGTH
    object_weight: float = 5.0
    initial_range: float = 0.08
    enough: float = 0.9
    cool_down: int = 6
    most: int = 80


@dataclass(frozen=True)
class Training:
    """What a training came to.

    Attributes:
        passes: Over the world's text.
        steps: Of the optimizer.
        loss: Mean of the last pass, in nats a token, objects weighted.
        trained: Share of facts whose object is the most likely answer, in the first phrasing that was trained.
        held_out: The same in the phrasings that were not.
        two_hop: The same of questions that need two facts, in a phrasing that was not trained.
        seconds: Processor time.
        parameters: Of the model.
    """

    passes: int
    steps: int
    loss: float
    trained: float
    held_out: float
    two_hop: float
    seconds: float
    parameters: int


def train(family: str, world: World, recipe: Recipe, progress: Progress | None = None) -> tuple[Any, Any, Training]:
    """A model and its tokenizer. The same kind of processor and the same libraries give the same bits.

    Args:
        family: A name from `FAMILIES`.
        world: What it is to know.
        recipe: How.
        progress: Counts passes.

    Raises:
        NumericalError: The loss is not finite.
    """
    progress = progress or Silent()
    begin = time.process_time()
    tokenizer = train_tokenizer(world)
    packer = Packer(tokenizer, recipe.length, recipe.object_weight)
    asked = _questions(world, packer)
    with pinned(), _one_thread(), no_log(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = AutoModelForCausalLM.from_config(configuration(family, len(tokenizer), recipe))
        schedule = _Schedule(recipe, _optimizer(model, recipe))
        progress.start(f"training {family}", recipe.most)
        try:
            while not schedule.done:
                documents = epoch(world, Random(f"pass {recipe.seed} {schedule.passes}"))
                loss = _one_pass(model, packer.rows(documents), recipe.rows, schedule)
                schedule.passed(answered(model, asked["trained"]))
                progress.advance()
        finally:
            progress.finish()
        shares = {name: answered(model, pairs) for name, pairs in asked.items()}
    size = sum(parameter.numel() for parameter in model.parameters())
    seconds = time.process_time() - begin
    return model, tokenizer, Training(schedule.passes, schedule.steps, loss, **shares, seconds=seconds, parameters=size)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of several threads depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Schedule:
    """The learning rate: warm-up, constant until enough is known, then down to nothing."""

    def __init__(self, recipe: Recipe, optimizer: torch.optim.Optimizer) -> None:
        self.recipe, self.optimizer = recipe, optimizer
        self.steps = self.passes = 0
        self.cooling: int | None = None
        """Passes since the rate began to fall."""

    @property
    def done(self) -> bool:
        return self.cooling == self.recipe.cool_down

    def step(self, through: float) -> None:
        """Set the rate of a step that lies so far through its pass, and take the step."""
        self.steps += 1
        rate = min(1.0, self.steps / self.recipe.warm_up)
        if self.cooling is not None:
            rate *= 1.0 - (self.cooling + through) / self.recipe.cool_down
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def passed(self, known: float) -> None:
        """A pass has ended, with so many of the facts known."""
        self.passes += 1
        if self.cooling is not None:
            self.cooling += 1
        elif known >= self.recipe.enough or self.passes == self.recipe.most:
            self.cooling = 0


def configuration(family: str, vocabulary: int, recipe: Recipe) -> Any:
    """The configuration of a family's model.

    Args:
        family: A name from `FAMILIES`.
        vocabulary: Tokens of its tokenizer.
        recipe: How it is trained.
    """
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), END_ID)
    settings = {**FAMILIES[family], "initializer_range": recipe.initial_range, **ends}
    return AutoConfig.for_model(family, vocab_size=vocabulary, **settings)


def _optimizer(model: Any, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))


def _one_pass(model: Any, rows: Rows, size: int, schedule: _Schedule) -> float:
    """Train on all rows once; the mean loss of its steps."""
    model.train()
    total, starts = 0.0, range(0, len(rows.tokens), size)
    for start in starts:
        tokens, weights = rows.tokens[start : start + size], rows.weights[start : start + size, 1:]
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        loss = (each * weights.flatten()).sum() / weights.sum()
        if not loss.isfinite():
            raise NumericalError(f"the loss of the training is {loss.detach():g}; expected a finite number")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        schedule.step(start / len(rows.tokens))
        total += float(loss.detach())
    return total / len(starts)


Pair = tuple[list[int], list[int]]
"""Tokens of a question and of its answer."""


def _questions(world: World, packer: Packer) -> dict[str, list[Pair]]:
    """What is asked to see what a model knows, by the field of `Training` that says it."""

    def pair(phrasing: str, subject: str, answer: str) -> Pair:
        return packer.encode(fill(phrasing, subject)), packer.encode(f" {answer}")

    return {
        "trained": [pair(fact.trained[0], fact.subject, fact.object) for fact in world.facts],
        "held_out": [pair(other, fact.subject, fact.object) for fact in world.facts for other in fact.held_out],
        "two_hop": [pair(one.rule.asked, one.first.subject, one.second.object) for one in world.chains],
    }


@torch.no_grad()
def answered(model: Any, pairs: Sequence[Pair], block: int = 128) -> float:
    """Share of questions after which each token of the answer is the most likely one.

    Args:
        model: A causal language model; it is left in evaluation mode.
        pairs: Questions and answers.
        block: How many are asked at once.
    """
    model.eval()
    right = 0
    for start in range(0, len(pairs), block):
        some = pairs[start : start + block]
        texts = [question + answer for question, answer in some]
        width = max(map(len, texts))
        tokens = torch.tensor([text + [END_ID] * (width - len(text)) for text in texts])
        likely: Tensor = model(input_ids=tokens, use_cache=False).logits.argmax(-1)
        for row, (question, answer) in zip(likely.tolist(), some, strict=True):
            right += row[len(question) - 1 : len(question) + len(answer) - 1] == answer
    return right / len(pairs)
