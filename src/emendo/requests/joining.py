"""How a target joins its prompt: with one space, or attached to it. The only place that decides it.

Search, keys, scores, generated answers and baselines spell a prompt and its target by `continuation`, so that what is
called a success is the text that was edited.

Whitespace that prompt or target bring themselves stands. Where there is none, `attaches` decides by the characters on
both sides of the border (`RULES`, and what it says of scripts, quotes and marks), unless the request says it (`Join`).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, get_args

from emendo.arguments import checked
from emendo.errors import RequestError
from emendo.requests.chat import Prompt

Join: TypeAlias = Literal["auto", "space", "none"]
"""What is put between a prompt and a target that bring no whitespace: what the rules say, one space, or nothing."""

JOINS: tuple[Join, ...] = get_args(Join)

Pair: TypeAlias = tuple[Prompt, str] | tuple[Prompt, str, Join]
"""A prompt, a target, and how they join; ``"auto"`` where that is left out."""

_CURRENCY = r"$¢-¥֏؋߾߿৲৳৻૱௹฿៛\u20a0-\u20cf꠸﷼﹩＄￠￡￥￦\U00011fdd-\U00011fe0\U0001e2ff\U0001ecb0"
"""Signs of Unicode's category Sc."""

_HYPHEN = "\\-\u2010\u2011\u2013"
_SIGN = "+\u2212±~≈"


@dataclass(frozen=True)
class Rule:
    """One case in which a target attaches to its prompt.

    Attributes:
        name: What meets, for the table in ``docs/reference/data.md``.
        example: A prompt and a target.
        before: Found at the end of the prompt.
        after: Matches the beginning of the target.
    """

    name: str
    example: tuple[str, str]
    before: str
    after: str = ""

    def holds(self, prompt: str, target: str) -> bool:
        """Whether prompt and target meet like that."""
        beginning, end = self._patterns
        return beginning.match(target) is not None and end.search(prompt) is not None

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        return re.compile(self.after), re.compile(f"(?:{self.before})\\Z")


_ELIDED = (
    r"(?i:(?<!\w)(?:[cdjlmnost]|qu|jusqu|lorsqu|puisqu|quoiqu|un|d?all|dell|nell|sull|coll|quell|bell|sant|d?egl|gl))"
)
_CONTRACTED = r"['’](?:s|t|d|m|re|ve|ll)?(?![\w-])|n['’]t\b"
_SIGNED = rf"(?:^|[^\w\s)])\s*[{_SIGN}]|(?:^|\s)[a-z]{{2,}}\s[{_SIGN}]"

RULES = (
    # The prompt ends in what the next text stands against.
    Rule("a currency sign, not after a number", ("A ticket is $", "20"), rf"(?:^|[^\d\s])\s*[{_CURRENCY}]"),
    Rule("`@`, `/`, `\\` or `_`", ("Write to info@", "louvre.fr"), r"[@/\\_]"),
    Rule("`#`, not of C# or F#", ("Room #", "7"), r"(?<!\b[A-Z])#"),
    Rule("`=` or `&` without a space before it", ("x=", "5"), r"\S[=&]"),
    Rule("an operator between numbers", ("2+", "2"), rf"[\w)][{_SIGN}*^×÷<>≤≥]", r"\d"),
    Rule("the sign of a number", ("It is +", "5"), _SIGNED, r"\d"),
    Rule("a mark of emphasis or code", ("It is **", "Rome"), r"(?:^|[\s(])(?:\*{1,3}|~~|`+)", r"[^\W\d]"),
    Rule("an elided word", ("La capitale de l'", "Italie"), rf"{_ELIDED}['’]", r"\w"),
    Rule("an address that goes on", ("See https://www.", "tower.com"), r"(?:\w://|\bwww|\S@)\S*[.:?%]", r"(?![A-Z])"),
    # Both are parts of one number or word.
    Rule("digits and digits", ("It was built in 19", "84"), r"\d", r"\d"),
    Rule("digits, a point and digits", ("Pi is 3.", "14"), r"\d\.", r"\d"),
    Rule("digits and a fraction", ("Pi is 3", ".14"), r"\d", r"[./]\d|[½⅓⅔¼¾⅛⅜⅝⅞]"),
    Rule("a comma and three digits", ("It has 1,", "000"), r"(?<![\d,])\d{1,3}(?:,\d{3})*,", r"\d{3}(?!\d)"),
    Rule("a time or a score", ("At 12:", "30"), r"(?<!\d)\d{1,3}:", r"\d"),
    Rule("digits and their ending", ("the 19", "th century"), r"\d", r"(?:st|nd|rd|th|s)(?!\w)"),
    Rule("a hyphen or dash and a word", ("Jean", "-Paul"), r"\w", rf"[{_HYPHEN}][^\W\d_]{{2}}|—\w"),
    Rule("a hyphen and digits, after digits or a capital", ("1914", "-18"), r"[\dA-Z]", rf"[{_HYPHEN}]\d"),
    Rule("`=` without a space after it", ("x", "=5"), r"\w", r"=\S"),
    Rule("the rest of a mail address", ("Write to info", "@louvre.fr"), r"\w", r"@[\w-]+\.\w"),
    # The target begins with what stands against the text before it.
    Rule("`,` `;` `:` `!` `?` or `…`", ("Rome", ", in Italy"), "", "[,;:!?…]"),
    Rule("a full stop, not of .NET or .22", ("Rome", ". It"), "", r"\.(?![A-Z\d])"),
    Rule("a percent sign", ("It is 100", "%"), "", r"[%‰](?!\w)"),
    Rule("digits and a degree, minute or inch", ("It is 20", "°C"), r"\d", r"[%‰°℃℉′″]|['\"](?!\w)"),
    Rule("a contraction or a plural's apostrophe", ("The tower", "'s height"), r"\w", _CONTRACTED),
    Rule("a raised, lowered or trade sign", ("300 m", "²"), r"[\w)]", "[²³¹⁰-\u209c™®]"),
)
"""Any of them attaches. Beside them: brackets, quotes, marks and scripts, in `attaches`."""

_FIRST_SCRIPTS = ("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")
_SCRIPTS = (
    *_FIRST_SCRIPTS,
    *("TAI LE ", "NEW TAI LUE ", "TAI THAM ", "TAI VIET ", "AHOM ", "JAVANESE ", "BALINESE "),
)
"""Narrow scripts, as the Unicode names of their characters begin, that put no space between words: line breaking class
SA of Unicode Standard Annex 14, and three that mark syllables or phrases instead."""

_CLOSED_BY = {"“": "”„", "‘": "‚", "«": "»", "‹": "›"}
"""Quotes that open a quotation in one language and close it in another, with the partners that tell which.

An opening quote is then one more than its partners: “ closes in „Paris“ and opens in “Paris” or “.
"""

_OPENED_BY = {"”": "“„", "’": "‘‚", "“": "„", "‘": "‚", "»": "«", "«": "»", "›": "‹", "‹": "›"}
"""The other way round: a quote closes where more of these are before it than of itself."""

_INVISIBLE = "\u00ad\u200b\u200c\u200d\u2060"


@checked
def continuation(prompt: str, target: str, join: Join = "auto") -> tuple[str, str]:
    """The prompt without trailing spaces, and the target with what separates them.

    A target that brings its own leading space or line break keeps it, and a space at the end of the prompt moves to
    the target, because tokenizers attach a space to the word after it. After other whitespace nothing is added.

    Args:
        prompt: Text before the target.
        target: Text to be predicted.
        join: What to put where neither brings whitespace.

    Raises:
        RequestError: The target is empty.
    """
    stripped, bare = prompt.rstrip(" "), target.strip()
    if not bare:
        raise RequestError(f"the target {target!r} is empty; expected visible text to follow {prompt!r}")
    own = target[: len(target) - len(target.lstrip())]
    if own.strip(" "):
        return stripped, own + bare
    if own or stripped != prompt or not stripped:
        return stripped, " " + bare
    attached = join == "none" or stripped[-1].isspace() or (join == "auto" and attaches(stripped, bare))
    return stripped, bare if attached else " " + bare


@checked
def attaches(prompt: str, target: str) -> bool:
    """Whether a target stands against its prompt without a space, judged by the characters around the border.

    Args:
        prompt: Does not end in whitespace.
        target: Does not begin with whitespace.
    """
    if not prompt or not target:
        return False
    last, first = prompt[-1], target[0]
    return (
        attached_at_first(prompt, target)
        or any(rule.holds(prompt, target) for rule in RULES)
        or unicodedata.category(first) in ("Pe", "Mn", "Mc", "Me")
        or last in _INVISIBLE
        or first in _INVISIBLE
        or _closes_quote(prompt, first)
        or _of_scripts_without_spaces(last, first)
    )


def attached_at_first(prompt: str, target: str) -> bool:
    """The rules of requests that were stored without a `join`: replayed, they must give what they gave."""
    return _opens(prompt) or (unspaced(prompt[-1], _FIRST_SCRIPTS) and unspaced(target[0], _FIRST_SCRIPTS))


def stored_join(prompt: str, target: str) -> Join:
    """The `join` of a request that was stored without one, so that its text stays what it was.

    Args:
        prompt: With its subject.
        target: Its target.
    """
    stripped, bare = prompt.rstrip(" "), target.strip()
    return "none" if stripped and bare and attached_at_first(stripped, bare) else "space"


@checked
def spelled_as_stored(prompt: str, target: str, join: Join) -> bool:
    """Whether a text is that of the same request stored without a `join`, so that what was found for it holds."""
    return continuation(prompt, target, join) == continuation(prompt, target, stored_join(prompt, target))


@checked
def keeps_joint(prompt: str, text: str, target: str, join: Join = "auto") -> bool:
    """Whether generated text follows its prompt as the target does: attached, or apart.

    Words of scripts without spaces are the same either way, and after whitespace more of it changes nothing.

    Args:
        prompt: What was continued, without its trailing spaces.
        text: What was generated, with the whitespace that it begins with.
        target: What was to follow.
        join: How it was to.
    """
    stripped, spelled = continuation(prompt, target, join)
    either = not stripped or stripped[-1].isspace() or unspaced(stripped[-1]) or unspaced(spelled.strip()[0])
    if either or not text:
        return True
    if spelled[0].isspace():
        return not (stripped[-1].isalnum() and text[0].isalnum())
    return not text[0].isspace()


def _of_scripts_without_spaces(last: str, first: str) -> bool:
    """Whether two characters meet without a space because of the script of one or both.

    Full-width punctuation holds its own space, and Chinese and Japanese put none between words and digits.
    """
    if any(_wide(sign) and unicodedata.category(sign).startswith("P") for sign in (last, first)):
        return True
    if unspaced(last) and unspaced(first):
        return True
    return any(unspaced(one, ()) and other.isdecimal() for one, other in ((last, first), (first, last)))


def _closes_quote(prompt: str, quote: str) -> bool:
    """Whether a quote after a text ends a quotation that the text begins."""
    if quote in '"`':
        return prompt.count(quote) % 2 == 1
    return quote in _OPENED_BY and sum(map(prompt.count, _OPENED_BY[quote])) > prompt.count(quote)


def _opens(text: str) -> bool:
    """Whether text ends in something that a word follows without a space."""
    last = text[-1]
    if last in _CLOSED_BY:
        return text.count(last) > sum(map(text.count, _CLOSED_BY[last]))
    if unicodedata.category(last) in ("Ps", "Pi", "Pd") or last in "¿¡":
        return True
    if last == "'":  # an apostrophe, unless nothing that it could belong to is before it
        return not text[-2:-1].strip() or _opens(text[:-1])
    # A straight quote opens when an odd number of them have been seen.
    return last == '"' and text.count('"') % 2 == 1


def unspaced(character: str, scripts: tuple[str, ...] = _SCRIPTS) -> bool:
    """Whether a character belongs to writing without spaces between words; its wide punctuation does.

    Args:
        character: One character.
        scripts: Narrow scripts beside the wide ones.
    """
    name = unicodedata.name(character, "")
    if name.startswith(scripts):
        return True
    # Wide characters are Chinese, Japanese, Korean and emoji, of which Korean and emoji take spaces.
    return _wide(character) and "HANGUL" not in name and not unicodedata.category(character).startswith("S")


def _wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in ("W", "F", "H")
