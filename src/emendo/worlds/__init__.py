"""Worlds: invented facts, and the text that a small model learns them from (`emendo.models.worlds`)."""

from emendo.worlds.corpus import END, Sentence, epoch, fact_sentences, held_out_text
from emendo.worlds.world import NAME, PREFIX, Chain, Fact, World, make_world

__all__ = [
    "END",
    "NAME",
    "PREFIX",
    "Chain",
    "Fact",
    "Sentence",
    "World",
    "epoch",
    "fact_sentences",
    "held_out_text",
    "make_world",
]
