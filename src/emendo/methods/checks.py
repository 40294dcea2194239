"""What a method's settings may be: their types, their ranges, and which of them exclude each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from emendo.errors import MethodError

if TYPE_CHECKING:
    from emendo.methods.config import MethodConfig

_POSITIVE = (
    "span",
    "target.steps",
    "target.learning_rate",
    "target.max_norm_ratio",
    "target.batch_size",
    "moments.multiple",
    "post.keep",
    "post.max_ratio",
)
_NOT_NEGATIVE = (
    "target.kl_weight",
    "target.weight_decay",
    "target.loss_threshold",
    "target.argmax_steps",
    "target.argmax_nll_weight",
    "target.kl_threshold",
    "target.word_end_weight",
    "memorization.s",
    "history.weight",
    "preservation.dead_ridge",
)
_AT_MOST = {"post.keep": 1.0, "target.argmax_nll_weight": 1.0}
_ABOVE = {"post.log_base": 1.0}


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, value and type of every setting; a section that is not of its class is a leaf of its own."""
    types = _types(node.__class__)
    for entry in fields(node):
        name, value, kind = f"{prefix}{entry.name}", getattr(node, entry.name), types[entry.name]
        if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, kind):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value, kind


def parse(name: str, value: Any, kind: Any) -> Any:
    """A value as its setting's type; text is read, ``none`` where the setting can be off.

    Raises:
        MethodError: It cannot be read as that.
    """
    if isinstance(value, str) and value.lower() == "none" and type(None) in get_args(kind):
        return None
    adapter = _adapter(kind)
    try:
        return adapter.validate_strings(value) if isinstance(value, str) else adapter.validate_python(value)
    except ValidationError as error:
        raise _wrong_type(name, value, error) from error


def check_types(config: MethodConfig) -> None:
    """Refuse a value of another type than its setting's, which no code after this looks for.

    Raises:
        MethodError: Names the setting.
    """
    for name, value, kind in leaves(config):
        try:
            _adapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            raise _wrong_type(name, value, error) from error


def check_ranges(values: Mapping[str, Any]) -> None:
    """Refuse numbers that no search or solve could use.

    Args:
        values: Settings by dotted name, all of them or some.

    Raises:
        MethodError: Names the setting and what was expected.
    """
    for name, value in values.items():
        expected = _expected(name, value)
        if expected:
            raise MethodError(f"{name}={value!r}: expected {expected} ({_fix(name)})")


def _expected(name: str, value: Any) -> str:
    """What a number should have been; empty where it can be used, or where the setting is off."""
    if value is None:
        return ""
    if name in _POSITIVE and not 0 < value < float("inf"):
        return "a finite number above 0"
    if name in _NOT_NEGATIVE and not 0 <= value < float("inf"):
        return "a finite number of at least 0"
    if name in _AT_MOST and value > _AT_MOST[name]:
        return f"at most {_AT_MOST[name]:g}"
    if name in _ABOVE and not _ABOVE[name] < value < float("inf"):
        return f"a finite number above {_ABOVE[name]:g}"
    return ""


def check_together(config: MethodConfig) -> None:
    """Refuse values that exclude each other.

    Raises:
        MethodError: Says which, and what to set instead.
    """
    keys, target = config.keys, config.target
    if keys.residual == "mean" and target.site != "mlp_out":
        raise MethodError(
            "keys.residual=mean measures W k + b over contexts, which is the MLP's output; "
            f"found target.site={target.site} (--set target.site=mlp_out)"
        )
    if target.joint_attention and target.site != "mlp_out":
        raise MethodError(
            "target.joint_attention searches a vector for the attention's output beside one for the MLP's; found "
            f"target.site={target.site} (--set target.site=mlp_out)"
        )
    if config.batching == "one_by_one" and target.shared == "subject":
        raise MethodError(
            "target.shared=subject gives requests of one batch one v*, and batching=one_by_one searches each key on "
            "its own; write them together (--set batching=joint) or leave target.shared out"
        )
    if keys.constraint == "plain":
        _check_plain_constraint(config)


def _check_plain_constraint(config: MethodConfig) -> None:
    """The original ROME's mixed form is defined for equality, one residual and undivided edits alone."""
    if config.memorization.s != 0:
        raise MethodError(
            "keys.constraint=plain holds edits with equality at the plain prompt; found "
            f"memorization.s={config.memorization.s} (--set memorization.s=0)"
        )
    if config.keys.residual == "mean":
        raise MethodError(
            "keys.constraint=plain holds edits at the plain prompt's key, and keys.residual=mean measures what is "
            "missing at the mean one, so that v* is met at neither; use one key "
            "(--set keys.constraint=mean, as r-ROME, or --set keys.residual=plain, as ROME)"
        )
    if config.distribution == "optimal":
        raise MethodError(
            "keys.constraint=plain holds edits at the plain prompt's key, and distribution=optimal divides them by the "
            "cost of holding at the mean key (--set keys.constraint=mean or --set distribution=even)"
        )


# Both follow from a type alone; made anew for every value they would take most of the time of importing the catalog.
@cache
def _types(section: Any) -> dict[str, Any]:
    return get_type_hints(section)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _wrong_type(name: str, value: Any, error: ValidationError) -> MethodError:
    return MethodError(f"{name}={value!r}: {error.errors()[0]['msg'].lower()} ({_fix(name)})")


def _fix(name: str) -> str:
    """The argument that sets a setting: layers have their own, and how many there are follows from it."""
    return "--layers" if name in ("layers", "span") else f"--set {name}=VALUE"
