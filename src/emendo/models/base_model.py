"""Which base model something was made for: the identity that updates and ledgers record, and whether two are one.

An identity is a flat mapping of strings (`EditableModel.identity` makes it): name, family, digests of the weights and
the tokenizer, and the configuration with all its settings, so that a difference can be named and not only noticed.
Names are never compared: a folder can be moved. Files of an Emendo that did not record the configuration stay usable;
whoever uses one is told.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from emendo.errors import BaseMismatchError, EmendoWarning

_PLAIN = ("model_type", "dtype", "weights_sha256", "tokenizer_sha256")
"""What is compared as it stands, wherever both sides record it."""

_BOOKKEEPING = ("auto_map", "transformers.js_config", "unsloth_fixed", "unsloth_version", "vocab_file")
"""Entries that tools leave in a configuration and no decoder reads."""

_BUFFER_TOLERANCE = 1e-4
"""Relative: powers and cosines differ in their last bits between processors, and by 1e-3 once rounded to bfloat16."""

_MOST_SHOWN = 5


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """In words, where one identity is not the other; what only one of them records is not compared.

    Args:
        expected: The identity that was recorded.
        found: The identity that is compared with it.
    """
    told = [
        f"{what}: found {found[what][:12]}, expected {expected[what][:12]}"
        for what in _PLAIN
        if what in expected and what in found and expected[what] != found[what]
    ]
    if "config" not in expected or "config" not in found or expected["config"] == found["config"]:
        return told
    return told + _config_differences(_parsed(expected), _parsed(found))


def check_same_base(expected: Mapping[str, str], found: Mapping[str, str], *, what: str, remedy: str) -> None:
    """Refuse another base model, and say where its configuration cannot be compared.

    Args:
        expected: The identity that was recorded.
        found: The identity of the model, or of the base of an update.
        what: What was made for the expected one, as messages begin with it: ``"this update"``.
        remedy: What to do instead.

    Raises:
        BaseMismatchError: Names every difference.
    """
    if told := differences(expected, found):
        raise BaseMismatchError(
            f"{what} is for {expected.get('name')!r}, and this is {found.get('name')!r}, which is another model: "
            f"{in_words(told)}; {remedy}"
        )
    if "config" not in expected and "config" in found:
        # One text for all of a kind: Python then shows it once.
        warnings.warn(
            f"{what} was written by an Emendo that did not record the model's configuration: weights and tokenizer are "
            "the same, and whether activation function, rope or norms are could not be compared",
            EmendoWarning,
            stacklevel=2,
        )


def fullest(bases: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Of the identities of one base, the one that records most; the first of equals.

    Args:
        bases: At least one.
    """
    return max((dict(base) for base in bases), key=len)


def in_words(told: list[str]) -> str:
    """Some differences in one line."""
    more = [f"and {len(told) - _MOST_SHOWN} more"] if len(told) > _MOST_SHOWN else []
    return "; ".join([*told[:_MOST_SHOWN], *more])


def _parsed(identity: Mapping[str, str]) -> dict[str, Any]:
    """The recorded configuration: its settings, its buffers, and the transformers that knew them."""
    try:
        config = json.loads(identity["config"])
        return {
            "transformers": str(config["transformers"]),
            "settings": flat(dict(config["settings"])),
            "buffers": dict(config["buffers"]),
        }
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BaseMismatchError(
            f"the configuration that is recorded for {identity.get('name')!r} cannot be read ({error!r}), so no model "
            "can be compared with it; make the file again"
        ) from error


def _config_differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Settings that are not the same; buffers where all settings are, since most follow from them.

    A newer transformers adds settings, which an older one had as code: what only one of two versions knows is then no
    difference. Under one version a setting on one side alone was put there by somebody.
    """
    one_version = expected["transformers"] == found["transformers"]
    for kind, label, same in (("settings", "", _same), ("buffers", "buffer ", _same_buffer)):
        mine, theirs = found[kind], expected[kind]
        told = [
            f"{label}{name}: found {_short(mine.get(name))}, expected {_short(theirs.get(name))}"
            for name in sorted({*mine, *theirs})
            if (one_version or (name in mine and name in theirs))
            and not name.startswith(_BOOKKEEPING)
            and not same(mine.get(name), theirs.get(name))
        ]
        if told:
            return told
    return []


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= {f"{name}.{inner}": entry for inner, entry in flat(value).items()}
        else:
            found[name] = value
    return found


def _same(a: Any, b: Any) -> bool:
    return bool(a == b)


def _same_buffer(a: Any, b: Any) -> bool:
    """Whether two sketches (dtype, shape, some values) are of one buffer, to rounding."""
    if a is None or b is None or a[:2] != b[:2] or len(a[2]) != len(b[2]):
        return bool(a == b)
    return all(math.isclose(x, y, rel_tol=_BUFFER_TOLERANCE, abs_tol=1e-12) for x, y in zip(a[2], b[2], strict=True))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
