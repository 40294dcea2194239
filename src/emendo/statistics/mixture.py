"""Second moments of a weighted mixture of corpora: C = Σ wᵢ Cᵢ, the weights summing to 1.

A mixture is written as ``0.7*self+0.3*wiki.jsonl``; ``self+wiki.jsonl`` has equal weights. Each part is
collected, fingerprinted and stored on its own, with its own full number of tokens: the weights are exact, no
part loses rank to another, and a mixture of stored parts costs nothing but a sum.

``+`` and ``*`` always separate, so a file or data set with one of them in its name cannot be named in a
mixture setting. What a setting means then never depends on which files happen to exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emendo.arguments import checked
from emendo.errors import CorpusError
from emendo.statistics.spec import Fingerprint


@dataclass(frozen=True)
class MixturePart:
    """One corpus of a mixture.

    Args:
        source: Its name, as `open_corpus` takes it.
        weight: Its share of the mixture; the shares of all parts sum to 1.
    """

    source: str
    weight: float


@checked
def parse_mixture(source: str) -> tuple[MixturePart, ...]:
    """The parts of a source of second moments; one with weight 1 where it is a single corpus.

    Args:
        source: Parts joined by ``+``, each a corpus or ``WEIGHT*CORPUS``; weights for all or for none.

    Raises:
        CorpusError: The text is not such a list; says why.
    """
    parts = [_part(text.strip(), source) for text in source.split("+")]
    weights = [weight for _, weight in parts if weight is not None]
    if weights and len(weights) < len(parts):
        bare = next(name for name, weight in parts if weight is None)
        raise _unreadable(source, f"{bare!r} has no weight and others do; give every part one, or none")
    names = [name for name, _ in parts]
    if twice := {name for name in names if names.count(name) > 1}:
        raise _unreadable(source, f"{min(twice)!r} is named twice; add its weights")
    try:
        total = math.fsum(weights)
    except OverflowError:
        raise _unreadable(source, "its weights are too large to be added; give them as shares of 1") from None
    return tuple(MixturePart(name, 1.0 / len(parts) if weight is None else weight / total) for name, weight in parts)


def _part(text: str, source: str) -> tuple[str, float | None]:
    number, star, name = text.partition("*")
    if not star:
        number, name = "", text
    name = name.strip()
    if not name:
        raise _unreadable(source, "a part names no corpus")
    if "*" in name:
        raise _unreadable(source, f"{text!r} has more than one '*'")
    if not star:
        return name, None
    try:
        weight = float(number)
    except ValueError:
        raise _unreadable(source, f"{number.strip()!r} is not a weight") from None
    if not (math.isfinite(weight) and weight > 0.0):
        raise _unreadable(source, f"the weight of {name!r} is {number.strip()}; expected a finite number above 0")
    return name, weight


def _unreadable(source: str, why: str) -> CorpusError:
    return CorpusError(
        f"cannot read the source of second moments {source!r}: {why}. Expected a corpus, or a mixture such as "
        f"0.7*self+0.3*wiki.jsonl (--set moments.source=...){_reserved_name(source)}"
    )


def mixture_error(source: str, part: MixturePart, error: CorpusError) -> CorpusError:
    """What `open_corpus` found wrong with one part, in terms of the whole."""
    return CorpusError(f"{error}. It is a part of the mixture {source!r}{_reserved_name(source)}")


def _reserved_name(source: str) -> str:
    """The way out for somebody who has a file of just that name."""
    if not Path(source).expanduser().exists():
        return ""
    return (
        f". There is a file {source!r}, but '+' and '*' separate the parts of a mixture: rename it, or make a link to "
        "it without them"
    )


def describe_mixture(parts: Sequence[tuple[MixturePart, Fingerprint]]) -> dict[str, Any]:
    """The JSON-ready record of a mixture: like that of a single corpus, with a ``corpus`` of kind "mixture".

    Args:
        parts: Two or more, with what each is valid for; collected with the same settings but for the corpus.

    Returns:
        The fields of a fingerprint, ``tokens`` being those of each part, and under "fingerprint" a digest of all that
        the mixture depends on. Names of files are recorded, but only their contents count in the digest.
    """
    contents = [{"weight": part.weight, "corpus": dict(fingerprint.corpus)} for part, fingerprint in parts]
    whole = replace(parts[0][1], corpus={"kind": "mixture", "parts": contents})
    named = [
        {"source": part.source, "fingerprint": fingerprint.digest, **content}
        for (part, fingerprint), content in zip(parts, contents, strict=True)
    ]
    return {"fingerprint": whole.digest, **whole.to_json(), "corpus": {"kind": "mixture", "parts": named}}
