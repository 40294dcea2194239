"""Names in templates: with the article that running text gives them, or without where the template has one."""

from __future__ import annotations

import re

from emendo.requests import SLOT

_ARTICLE = re.compile(r"(?i)\bthe\s+(?=\{\})")


def with_article(template: str, name: str) -> str:
    """A name as running text has it: with "the" where the template that it was given with has that.

    Args:
        template: Of the request, with one ``{}``.
        name: The subject.
    """
    if _ARTICLE.search(template) and not name.lower().startswith("the "):
        return f"the {name}"
    return f"the {name[4:]}" if name.startswith("The ") and template.lstrip().startswith(SLOT) else name


def filled(template: str, name: str) -> str:
    """A template with a name in its slot.

    Args:
        template: With one ``{}``, with or without an article before it.
        name: As running text has it: "the Louvre", "Big Ben", "The Hague".
    """
    bare = _ARTICLE.sub("", template)
    text = bare.replace(SLOT, name)
    at = len(bare) - len(bare.lstrip())
    if bare.lstrip().startswith(SLOT) and name.startswith("the "):
        text = text[:at] + "T" + text[at + 1 :]
    return text


def bare_name(name: str) -> str:
    """A name by which subjects are compared: without article, in one case."""
    return re.sub(r"^the ", "", name.strip().casefold())


def begun(question: str) -> str:
    """A question with the beginning of its answer, which a model that completes text goes on with.

    Of "Question: … Answer:" small chat models make a list: none of twelve known capitals was answered so by the demo
    model, six with this.
    """
    return f"{question} It {'was' if question.startswith('Who ') else 'is'}"
