"""Reference score: whether what a model writes about a subject reads like texts about its new attribute."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emendo.arguments import checked
from emendo.errors import InputError

_TERM = re.compile(r"(?u)\b\w\w+\b")
"""Terms of at least two word characters, as in the published vectoriser."""


def terms_of(text: str) -> list[str]:
    """The lower-case terms of a text."""
    return _TERM.findall(text.lower())


@dataclass(frozen=True)
class ReferenceVocabulary:
    """Terms and their inverse document frequency; fixed once, so that scores of one study compare.

        idf(t) = ln((1 + n) / (1 + df(t))) + 1        n documents, df(t) of them with t

    The published score uses a vocabulary and idf that its authors made from the CounterFact snippets and Wikipedia and
    shipped beside the data. This one is made from the snippets that the caller gives, with the same formula: scores
    have the same meaning and other absolute values, so compare them only within one vocabulary.

    Attributes:
        idf: By term.
        documents: How many documents it was made from.
    """

    idf: Mapping[str, float]
    documents: int

    @classmethod
    @checked
    def fit(cls, documents: Sequence[str]) -> ReferenceVocabulary:
        """The vocabulary of some documents, such as all snippets of a data set.

        Raises:
            InputError: No document has a term.
        """
        frequency = Counter(term for document in documents for term in set(terms_of(document)))
        if not frequency:
            raise InputError(f"a vocabulary needs documents with words, found {len(documents)} without any")
        n = len(documents)
        return cls({term: math.log((1 + n) / (1 + df)) + 1 for term, df in sorted(frequency.items())}, n)

    @checked
    def vector(self, text: str) -> dict[str, float]:
        """Term counts times idf; terms outside the vocabulary are dropped."""
        counts = Counter(term for term in terms_of(text) if term in self.idf)
        return {term: count * self.idf[term] for term, count in counts.items()}


@checked
def reference_score(
    texts: Sequence[str], references: Sequence[str], vocabulary: ReferenceVocabulary | None = None
) -> float:
    """Cosine between TF-IDF vectors of all texts together and of all references together: RS, in [0, 1].

        RS = u · v / (‖u‖ ‖v‖)        u, v: tf × idf of the joined texts; 0 where one has no known term

    Args:
        texts: What the model wrote about one subject, all of its generations.
        references: Texts about other subjects that have the new attribute.
        vocabulary: Fixed for a study; None makes one of `references`, each a document.

    Raises:
        InputError: There is no text or no reference.

    Source: Meng et al. 2022 (ROME, arXiv 2202.05262), CounterFact: reference score.
    """
    if not texts or not references:
        raise InputError(f"a reference score compares texts, found {len(texts)} texts and {len(references)} references")
    vocabulary = vocabulary or ReferenceVocabulary.fit(references)
    u, v = vocabulary.vector(" ".join(texts)), vocabulary.vector(" ".join(references))
    norms = math.hypot(*u.values()) * math.hypot(*v.values())
    if norms == 0:
        return 0.0
    return min(1.0, math.fsum(weight * v[term] for term, weight in u.items() if term in v) / norms)
