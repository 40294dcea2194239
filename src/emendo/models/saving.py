"""An edited model as a plain Hugging Face folder; the model in memory is neither written nor changed."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from emendo.arguments import checked
from emendo.errors import ExportError, NumericalError, SelfCheckError
from emendo.models.editable import EditableModel
from emendo.models.few_bits_grid import put_levels
from emendo.models.mixture import ExpertsMap
from emendo.models.packed_weights import is_packed, kind_of
from emendo.models.quantised_kinds import method_of
from emendo.models.silence import silent_transformers
from emendo.shapes import Weight


@checked
def save_model(lm: EditableModel, weights: Mapping[int, Weight], folder: Path, dtype: torch.dtype | None) -> None:
    """Write model, generation settings and tokenizer into a folder, as `from_pretrained` reads them.

    Weights are safetensors, and tied ones are written once. Of a model in few bits, edited maps are written in plain
    numbers beside the others, which stay as they are, and its configuration names them.

    Args:
        lm: The model.
        weights: Edited weights by layer, ``[d_out, d_in]``, in any precision: they are cast once.
        folder: An existing folder.
        dtype: Of every weight in the files; None leaves each in its own.

    Raises:
        NumericalError: An edited weight is not finite in the dtype of the files.
        OSError: The folder cannot be written.
        SelfCheckError: What was written is no model.
    """
    with silent_transformers():
        _twin(lm, weights, dtype).save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
    _check_written(lm, folder)


def save_levels(lm: EditableModel, levels: Mapping[int, Int[Tensor, "d_out d_in"]], folder: Path) -> None:
    """Write a model in few bits and its tokenizer into a folder, with other levels in some of its edited maps.

    Args:
        lm: The model.
        levels: Indices in each map's `few_bits_grid`, by layer.
        folder: An existing folder.

    Raises:
        OSError: The folder cannot be written.
        SelfCheckError: What was written is no model.
    """
    own = {id(lm.down_projection(layer).weight) for layer in levels}
    memo: dict[int, Any] = {id(part): part for part in lm.model.parameters() if id(part) not in own}
    twin = copy.deepcopy(lm.model, memo)
    vars(twin).pop("hf_device_map", None)
    for layer, index in levels.items():
        put_levels(twin.get_submodule(lm.module_name(layer)), index)
    with silent_transformers():
        twin.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
    _check_written(lm, folder)


_REMEDIES = {
    "config": "Set these values to None in model.config, or take them out of the model's config.json.",
    "generation_config": "Set model.generation_config.do_sample = True where these values are meant, or to None those "
    "that are not (temperature, top_p, top_k); of a folder, in its generation_config.json.",
}


@checked
def check_saveable(lm: EditableModel) -> None:
    """Refuse, before any work is done, a model whose settings transformers will not write.

    Raises:
        ExportError: What it complains of, and the way out.
    """
    model = lm.model
    settings = {"config": model.config, "generation_config": model.generation_config if model.can_generate() else None}
    with silent_transformers(), tempfile.TemporaryDirectory() as folder:
        for name, value in settings.items():
            try:
                if value is not None:
                    copy.deepcopy(value).save_pretrained(folder)
            except (ValueError, TypeError, AssertionError) as error:
                words = " ".join(str(error).split())
                raise ExportError(
                    f"transformers does not write model.{name} as it is: {words[:600]} {_REMEDIES[name]}"
                ) from error


def _check_written(lm: EditableModel, folder: Path) -> None:
    """What a model is saved as is for transformers to say: one with adapters, for instance, as those alone."""
    if not (folder / "config.json").is_file() or not any(folder.glob("model*.safetensors")):
        raise SelfCheckError(
            f"saving a {type(lm.model).__name__} wrote {sorted(path.name for path in folder.iterdir())}; expected "
            "config.json and model.safetensors among them. Export a plain causal LM as AutoModelForCausalLM loads it"
        )


def _twin(lm: EditableModel, weights: Mapping[int, Weight], dtype: torch.dtype | None) -> Any:
    """The model with other weights: saving writes into the configuration, and that of the live model is not ours.

    Parameters that stay are shared with the model, not copied.
    """
    memo: dict[int, Any] = {id(parameter): _kept(parameter, dtype) for parameter in lm.model.parameters()}
    memo |= {id(buffer): buffer for buffer in lm.model.buffers()}
    dense: dict[int, Any] = {}
    for layer, weight in weights.items():
        edited, module = lm.edited_map(layer), lm.down_projection(layer)
        cast = weight.to(dtype or edited.dtype)
        if not cast.isfinite().all():
            raise NumericalError(
                f"the edited weights of layer {layer} are not finite in {cast.dtype}; nothing was written. "
                "Expected finite ones; choose --dtype float32 if they are too large for it"
            )
        if isinstance(edited, ExpertsMap):
            cast = edited.stored(cast).contiguous()
        elif edited.transposed:
            cast = cast.T.contiguous()
        parameter = nn.Parameter(cast, requires_grad=False)
        if kind_of(module):
            dense[layer] = _linear(parameter, module.bias)
        else:
            (own,) = edited.written_in_place
            memo[id(own)] = parameter
    twin = copy.deepcopy(lm.model, memo)
    if method_of(lm.model.config) is not None:
        _put_dense(lm, twin, dense)
    # Of a model that was loaded over a map of devices: nothing is offloaded (the wrapper refuses that), though
    # transformers takes any "cpu" in the map for it.
    vars(twin).pop("hf_device_map", None)
    return twin


def _linear(weight: nn.Parameter, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = weight
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def _put_dense(lm: EditableModel, twin: Any, dense: Mapping[int, nn.Linear]) -> None:
    """Plain maps in the place of few-bit ones, and in the configuration the list of all maps that are plain."""
    for layer, module in dense.items():
        owner, _, name = lm.module_name(layer).rpartition(".")
        setattr(twin.get_submodule(owner), name, module)
    plain = [name for name, module in twin.named_modules() if type(module) is nn.Linear and not kind_of(module)]
    settings = twin.config.quantization_config
    skipped = "modules_to_not_convert" if hasattr(settings, "modules_to_not_convert") else "llm_int8_skip_modules"
    setattr(settings, skipped, plain)
    twin.hf_quantizer.quantization_config = settings


def _kept(parameter: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or parameter.dtype == dtype or is_packed(parameter):
        return parameter
    return nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
