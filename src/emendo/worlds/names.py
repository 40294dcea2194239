"""Invented names, and the words that facts are about. Nothing here exists, so nothing has to be forgotten first."""

from __future__ import annotations

from random import Random

PROFESSIONS = (
    *("baker", "teacher", "doctor", "painter", "lawyer", "farmer", "sailor", "miner", "tailor", "judge"),
    *("nurse", "carpenter", "gardener", "soldier", "pilot", "dentist", "butcher", "librarian", "chemist", "surgeon"),
)
INSTRUMENTS = (
    *("piano", "violin", "flute", "trumpet", "guitar", "harp", "drums", "cello", "clarinet", "horn"),
    *("organ", "banjo", "oboe", "lute", "tuba", "whistle"),
)
TOPICS = (
    *("war", "love", "money", "the sea", "winter", "friendship", "gold", "music", "the stars", "hunger"),
    *("gardens", "dreams", "horses", "courage", "memory", "the desert"),
)
_ADJECTIVES = (
    *("Silver", "Broken", "Quiet", "Golden", "Hidden", "Distant", "Frozen", "Burning", "Lonely", "Secret"),
    *("Crooked", "Painted", "Sleeping", "Empty"),
)
_NOUNS = (
    *("Harbor", "Mirror", "Forest", "Lantern", "Bridge", "Tower", "Island", "Letter", "Window", "Valley"),
    *("Crown", "Orchard", "Shadow", "Kingdom", "Staircase", "Candle"),
)
_FIRMS = ("Works", "Mills", "Press", "Bank")
_STARTS = (
    *("b", "br", "d", "dr", "f", "g", "gr", "h", "k", "l", "m"),
    *("n", "p", "r", "s", "st", "t", "tr", "v", "z"),
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_ENDS = ("l", "n", "r", "s", "m", "nd", "rt", "ck", "th")


def invented(random: Random, count: int, syllables: int, ending: str, taken: set[str]) -> tuple[str, ...]:
    """So many different names with a capital letter, none of them taken; they are taken then.

    Args:
        random: What draws them.
        count: How many.
        syllables: Of each, before the ending.
        ending: What each ends with.
        taken: Names that there are already.
    """
    found: list[str] = []
    while len(found) < count:
        parts = [random.choice(_STARTS) + random.choice(_VOWELS) for _ in range(syllables)]
        name = ("".join(parts) + (ending or random.choice(_ENDS))).capitalize()
        if name not in taken:
            taken.add(name)
            found.append(name)
    return tuple(found)


def people(random: Random, count: int, taken: set[str]) -> tuple[str, ...]:
    """First and last names, each of them shared, so that only both together say who it is."""
    firsts = invented(random, max(2, count // 5), 1, "", taken)
    lasts = invented(random, max(2, count // 2), 2, "", taken)
    pairs = [f"{first} {last}" for first in firsts for last in lasts]
    return tuple(random.sample(pairs, count))


def titles(random: Random, count: int) -> tuple[str, ...]:
    """Titles of works, whose words are shared too."""
    return tuple(random.sample([f"The {one} {other}" for one in _ADJECTIVES for other in _NOUNS], count))


def companies(random: Random, count: int, taken: set[str]) -> tuple[str, ...]:
    """Names of companies, of which half a dozen end alike."""
    owners = invented(random, count, 2, "", taken)
    return tuple(f"{owner} {_FIRMS[index % len(_FIRMS)]}" for index, owner in enumerate(owners))
