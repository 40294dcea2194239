"""What a model is, from its configuration alone: no weight is fetched, read or allocated."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from emendo.arguments import checked
from emendo.errors import InputError, ModelNotFoundError
from emendo.models import demo
from emendo.models.architecture import resolve_architecture
from emendo.models.decoder import DecoderView
from emendo.models.loading import UNREADABLE, cannot_load, read_config, read_gguf_config
from emendo.models.silence import silent_transformers
from emendo.models.sources import find_source
from emendo.models.worlds.store import untrained_config


@checked
def outline(name: str | Path, dtype: torch.dtype | None = None) -> DecoderView:
    """The parts of a model by shape, on the device ``meta``.

    Args:
        name: As `load` takes it.
        dtype: Of the weights; None: the checkpoint's own (float32 of a GGUF file).

    Raises:
        ModelNotFoundError: Nothing readable under that name.
        UnsupportedModelError: The family cannot be edited.
    """
    try:
        with silent_transformers():
            config, own = _config(str(name))
            spec = resolve_architecture(config)
            auto = AutoModelForCausalLM if spec.wrapper is None else AutoModelForImageTextToText
            with torch.device("meta"):
                model = auto.from_config(copy.deepcopy(config), trust_remote_code=False)
            model.to(dtype or own)
    except InputError:
        raise
    except UNREADABLE as error:
        raise cannot_load(str(name), error) from error
    return DecoderView(model, None, str(name))


def _config(name: str) -> tuple[Any, torch.dtype]:
    """The configuration, and the dtype that the weights would be loaded in."""
    source = find_source(name)
    place = Path(source.place)
    if source.kind == "world":
        return untrained_config(source.place), torch.float32
    if source.kind == "demo":
        if (folder := demo.verified_demo_folder()) is not None:
            source, place = find_source(str(folder)), folder
        elif (file := demo.demo_gguf()) is not None:
            place = file
        else:
            raise ModelNotFoundError(f"the demo model is not installed. Get it with: {demo.how_to_install()}")
    if place.suffix.lower() == ".gguf" and place.is_file():
        return read_gguf_config(place)[1], torch.float32
    _, _, _, config = read_config(source.place, name)
    own = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    return config, own if isinstance(own, torch.dtype) else torch.float32
