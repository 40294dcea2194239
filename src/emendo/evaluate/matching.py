"""Whether generated text gives an answer: normalised exact match and contained match, on words.

Normalisation: Unicode NFKC, case folded; words are runs of letters, marks and digits; everything else only separates
them. In scripts that are written without spaces every character is a word. One leading English article (a, an, the) is
dropped from answer and text. Accents stay.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from emendo.arguments import checked

_ARTICLES = ("a", "an", "the")

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
"""Thai and Lao, Tibetan, Burmese, Khmer, kana and Chinese characters."""

_ENDS = re.compile(r"""[.!?…]+["'”’»)\]*_]*\s|\n|[。！？]""")
"""Where an answer may end before another word: the end of a sentence or of a line."""


@dataclass(frozen=True)
class _Word:
    text: str
    start: int
    end: int


def normalised_words(text: str) -> tuple[str, ...]:
    """The words by which answers are compared, without one leading article."""
    return tuple(word.text for word in _words(_folded(text)))


@checked
def exact_match(text: str, answer: str) -> bool:
    """Whether a text begins with the answer and the answer ends there: at the end of the text, a sentence or a line.

    A continuation of a raw prompt goes on after its answer ("Paris. It is ..."), which is why the rest of the text is
    not compared; "Paris, Texas" and "Paris Hilton" do not match "Paris".
    """
    folded = _folded(text)
    words, wanted = _words(folded), normalised_words(answer)
    if not wanted or tuple(word.text for word in words[: len(wanted)]) != wanted:
        return False
    if len(words) == len(wanted):
        return True
    return _ENDS.search(folded[words[len(wanted) - 1].end : words[len(wanted)].start]) is not None


@checked
def contained_match(text: str, answer: str) -> bool:
    """Whether the answer's words stand in the text, next to each other and in order ("art" is not in "party")."""
    words, wanted = normalised_words(text), normalised_words(answer)
    return bool(wanted) and any(
        words[start : start + len(wanted)] == wanted for start in range(len(words) - len(wanted) + 1)
    )


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _words(folded: str) -> list[_Word]:
    words = list(_split(folded))
    return words[1:] if len(words) > 1 and words[0].text in _ARTICLES else words


def _split(folded: str) -> Iterator[_Word]:
    """Runs of word characters, and single characters of unspaced scripts."""

    def kind(place: int) -> int:
        character = folded[place]
        if unicodedata.category(character)[0] not in "LMN":
            return -1
        return place if _UNSPACED.match(character) else -2

    for key, run in itertools.groupby(range(len(folded)), key=kind):
        if key != -1:
            places = list(run)
            yield _Word(folded[places[0] : places[-1] + 1], places[0], places[-1] + 1)
