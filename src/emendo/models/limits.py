"""What a model takes as text: how long it may be, and which token ids its embedding has rows for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emendo.errors import InputError, UnsupportedModelError
from emendo.models.decoder import DecoderView


def longest_text(lm: DecoderView) -> int:
    """Longest text, in tokens, that the model has positions for and computes as it does any shorter one.

    Raises:
        UnsupportedModelError: The configuration names no length.
    """
    same_factors = _longrope_length(lm.config)
    return _positions(lm) if same_factors is None else min(_positions(lm), same_factors)


def check_length(lm: DecoderView, length: int) -> None:
    """Refuse a text that is too long.

    Raises:
        InputError: It has more tokens than `longest_text`.
    """
    if length <= (longest := longest_text(lm)):
        return
    message = f"a text has {length} tokens; {lm.name!r} has positions for {_positions(lm)}"
    if (same_factors := _longrope_length(lm.config)) is not None:
        message += (
            f", and computes all texts of a batch with other rotary factors once one is longer than {same_factors} "
            "(rope_type longrope, original_max_position_embeddings); an edit would hold for one of the two only"
        )
    raise InputError(f"{message}. Expected at most {longest}: shorten the text")


def known_tokens(lm: DecoderView) -> int:
    """Number of token ids, from 0 on, that the model can both read and predict."""
    return min(int(lm.model.get_input_embeddings().weight.shape[0]), lm.vocab_size)


def check_ids(lm: DecoderView, ids: Sequence[int]) -> None:
    """Refuse token ids that the model has no row for.

    Raises:
        InputError: An id is negative or too large.
    """
    rows = known_tokens(lm)
    bad = next((token for token in (min(ids, default=0), max(ids, default=0)) if not 0 <= token < rows), None)
    if bad is not None:
        text = lm.tokenizer.convert_ids_to_tokens(bad) if 0 <= bad < len(lm.tokenizer) else None
        named = "" if text is None else f" ({text!r})"
        raise InputError(
            f"a text has the token id {bad}{named}, and {lm.name!r} has rows for 0 to {rows - 1}: the token was "
            "added to the tokenizer later, or the tokenizer belongs to another model. Load the model's own tokenizer, "
            "or give the model the row (model.resize_token_embeddings) and train it"
        )


def _positions(lm: DecoderView) -> int:
    for attribute in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        if (value := getattr(lm.config, attribute, None)) is not None:
            return int(value)
    if lm.spec.max_length is not None:
        return lm.spec.max_length
    raise UnsupportedModelError(
        f"the configuration of {lm.name!r} names no maximum length "
        "(expected max_position_embeddings, n_positions, n_ctx or seq_length)"
    )


def _longrope_length(config: Any) -> int | None:
    """Longest text with which every longrope of a configuration keeps its short factors; None without one."""
    parameters = getattr(config, "rope_parameters", None) or {}
    ropes = [parameters, *(part for part in parameters.values() if isinstance(part, dict))]  # one, or one a layer type
    lengths = [rope["original_max_position_embeddings"] for rope in ropes if rope.get("rope_type") == "longrope"]
    return min(map(int, lengths), default=None)
