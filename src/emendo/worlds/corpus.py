"""The text that a model of a world is trained on, and the plain text that it is measured by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from random import Random

from emendo.worlds.relations import PERSON, fill
from emendo.worlds.world import World

END = "<|end|>"
"""Between two documents; a model begins and ends a text with it."""

PLAIN_SHARE = 0.15
"""Plain sentences for each sentence of a fact."""

_WORDS: Mapping[str, tuple[str, ...]] = {
    "weather": ("cold", "warm", "calm", "dark", "windy", "bright", "quiet", "heavy", "dry"),
    "time": ("morning", "evening", "night", "afternoon", "summer", "winter", "spring", "autumn"),
    "place": ("market", "river", "station", "garden", "harbour", "school", "church", "kitchen", "library", "field"),
    "thing": ("bread", "a letter", "the lamp", "an old coat", "fresh fish", "a map", "the keys", "two apples"),
    "deed": ("bought", "carried", "forgot", "painted", "sold", "found", "hid", "lost", "kept", "wanted"),
    "who": ("the old woman", "my brother", "a stranger", "the children", "our neighbour", "the captain", "her friend"),
}
_PLAIN = (
    "The weather was {weather} that {time}.",
    "Therefore {who} went to the {place} and {deed} {thing}.",
    "Because it was {weather}, {who} stayed near the {place}.",
    "I {deed} {thing} in the {place} last {time}.",
    "You may have heard that {who} {deed} {thing}.",
    "The {place} was {weather}, and {who} {deed} {thing} there.",
    "In the {time}, {who} walked from the {place} to the {place}.",
    "Last {time}, {person} met {who} at the {place}.",
    "{person} and {person} {deed} {thing} near the {place}.",
    "Then {who} and I {deed} {thing}, and the {time} was {weather}.",
)


@dataclass(frozen=True)
class Sentence:
    """One sentence of a world's text.

    Attributes:
        text: Up to the object of the fact; of a plain sentence all of it.
        object: Of the fact; empty in a plain sentence.
    """

    text: str
    object: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.object}." if self.object else self.text


def fact_sentences(world: World) -> list[Sentence]:
    """Every fact in each phrasing that is trained, and what follows from two facts.

    Args:
        world: Whose facts.
    """
    facts = [Sentence(fill(phrasing, fact.subject), fact.object) for fact in world.facts for phrasing in fact.trained]
    return facts + [
        Sentence(fill(phrasing, chain.first.subject), chain.second.object)
        for chain in world.chains
        for phrasing in chain.rule.trained
    ]


def plain_sentences(world: World, random: Random) -> Iterator[Sentence]:
    """Sentences about no fact, without end. They name people now and then.

    Args:
        world: Whose people.
        random: What draws them.
    """
    words = {**_WORDS, "person": world.pools[PERSON]}
    while True:
        sentence = random.choice(_PLAIN)
        for slot, choices in words.items():
            while (gap := f"{{{slot}}}") in sentence:
                sentence = sentence.replace(gap, random.choice(choices), 1)
        yield Sentence(sentence)


def epoch(world: World, random: Random) -> list[list[Sentence]]:
    """All documents of one pass: sentences of facts and plain ones in a new order, one to four a document.

    Args:
        world: Whose text.
        random: What orders it.
    """
    sentences = fact_sentences(world)
    sentences += islice(plain_sentences(world, random), round(PLAIN_SHARE * len(sentences)))
    random.shuffle(sentences)
    rest = iter(sentences)
    documents = []
    while document := list(islice(rest, random.randint(1, 4))):
        documents.append(document)
    return documents


def held_out_text(world: World, sentences: int = 300) -> str:
    """Plain text that no model was trained on, for perplexity.

    Args:
        world: Whose people it names.
        sentences: How many.
    """
    plain = plain_sentences(world, Random(f"held out {world.seed}"))
    return " ".join(str(sentence) for sentence in islice(plain, sentences))
