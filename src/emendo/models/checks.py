"""What a model must be before it is edited: reachable weights, and a wrapper that sees what the model computes."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from emendo.errors import NumericalError, SelfCheckError, UnsupportedModelError
from emendo.models.batch import TokenBatch
from emendo.models.identity import COMPILED
from emendo.models.packed_weights import REPACKING, ROUNDED_INPUTS, kind_of, repacks, rounds_inputs
from emendo.models.parts import refuse_computed_weights, refuse_shared_weights
from emendo.models.runnable import RunnableModel
from emendo.solve.numerics import pinned

SELF_CHECK_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Largest relative deviation that rounding explains, by dtype of the weights."""


@pinned()
def check_model(lm: RunnableModel) -> None:
    """Refuse a model that cannot be edited as it is, in words.

    Raises:
        UnsupportedModelError: Tokenizer, modules or weights are not what editing needs.
        SelfCheckError: A captured key times the weight does not give the captured MLP output.
        NumericalError: What the model computes is not finite.
    """
    _refuse_adapters(lm.model)
    _refuse_compiled_parts(lm.model)
    if not getattr(lm.tokenizer, "is_fast", False):
        raise UnsupportedModelError(
            f"the tokenizer {type(lm.tokenizer).__name__} gives no character offsets, which Emendo needs to find "
            "the subject's tokens. Load a fast tokenizer, as AutoTokenizer.from_pretrained gives if there is a "
            "tokenizer.json"
        )
    _refuse_other_modules(lm)
    _refuse_offloaded(lm)
    _refuse_repacked(lm.model)
    for layer in range(lm.n_layers):
        _refuse_unreachable_weight(lm, layer)
    refuse_shared_weights(lm)
    refuse_computed_weights(lm)
    _self_check(lm)


def _refuse_adapters(model: nn.Module) -> None:
    """A model with adapters computes with more than its weights, and is saved as the adapters alone."""
    wrapped = ((name, module) for name, module in model.named_modules() if hasattr(module, "base_layer"))
    name, module = next(wrapped, ("", None))
    if module is None and not getattr(model, "peft_config", None):
        return
    found = "a peft_config" if module is None else f"{name}, a {type(module).__name__} around another layer"
    if module is not None and not getattr(module, "lora_A", None) and not getattr(model, "peft_config", None):
        raise UnsupportedModelError(
            f"this {type(model).__name__} has what is left of adapters that were deleted (found {found}), and nothing "
            "to merge. Expected a model of plain layers: unload() of the PeftModel around it gives one; without a "
            "PeftModel, load the base anew"
        )
    raise UnsupportedModelError(
        f"this {type(model).__name__} has adapters in it (found {found}): an edit would be made for the model with "
        "them and be saved without. Expected a model whose weights are all that it computes with: merge them first "
        "(peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()), or load the base alone"
    )


def _refuse_compiled_parts(model: nn.Module) -> None:
    """A compiled module may leave out hooks that come later, such as those that read and move activations."""
    for name, module in model.named_modules():
        if name and (hasattr(module, COMPILED) or getattr(module, "_compiled_call_impl", None) is not None):
            raise UnsupportedModelError(
                f"{name} is compiled by itself, and activations inside a compiled module are not always seen; expected "
                "plain modules. Compile the whole model instead (model.compile()), or after editing"
            )


def _refuse_other_modules(lm: RunnableModel) -> None:
    try:
        complete = all(lm.down_projection(layer) is not None for layer in range(lm.n_layers))
    except AttributeError:
        complete = False
    if not complete or lm.model.get_output_embeddings() is None:
        path = f"{lm.spec.decoder}.{lm.spec.blocks}.*.{lm.spec.down_projection}"
        raise UnsupportedModelError(
            f"a {type(lm.model).__name__} does not have {path} and an unembedding, as expected of "
            f"model_type {lm.spec.model_type!r}. Pass the causal LM itself (AutoModelForCausalLM), "
            "with adapters merged first (merge_and_unload())"
        )


def _refuse_offloaded(lm: RunnableModel) -> None:
    """A weight that is fetched for each forward pass can be neither read, identified nor written in place."""
    away = [name for name, parameter in lm.model.named_parameters() if parameter.device.type == "meta"]
    if away:
        raise UnsupportedModelError(
            f"{len(away)} weights are offloaded (device 'meta'), {away[0]} for one; expected all of them in memory. "
            "Load the model without offloading: on fewer or larger devices, in a smaller --dtype, or on --device cpu"
        )


def _refuse_repacked(model: nn.Module) -> None:
    """Bytes that a forward pass changes are no base to come back to, and the kernels for them give no gradients."""
    repacked = next((name for name, module in model.named_modules() if repacks(module)), None)
    if repacked is not None:
        raise UnsupportedModelError(
            f"{repacked}: bitsandbytes packs this 4-bit weight anew in the first forward pass, for this processor's "
            "bf16 instructions, so its bytes do not stay what they are. Expected a model that was told not to, before "
            "it first ran: emendo.load(NAME, load_in=...), which does, or for every module of the model "
            f"module.{REPACKING} = False"
        )


def _refuse_unreachable_weight(lm: RunnableModel, layer: int) -> None:
    module, name = lm.down_projection(layer), lm.module_name(layer)
    if lm.mixture(layer) is not None:
        _refuse_other_experts(lm, layer)
        return
    if kind_of(module):
        return
    weight = getattr(module, "weight", None)
    if not isinstance(module, (nn.Linear, Conv1D)) or weight is None:
        raise UnsupportedModelError(
            f"{name} is a {type(module).__name__}, expected a Linear or Conv1D: "
            "wrapped or converted layers cannot be edited. Merge adapters first (merge_and_unload())"
        )
    if not weight.is_floating_point() or weight.dtype not in SELF_CHECK_TOLERANCE:
        raise UnsupportedModelError(
            f"{name} has dtype {weight.dtype}; expected one of "
            f"{', '.join(str(dtype) for dtype in SELF_CHECK_TOLERANCE)} (--dtype float32)"
        )


def _refuse_other_experts(lm: RunnableModel, layer: int) -> None:
    """Experts whose outputs are not added up as they are, or that are not all here."""
    experts, name, dtype = lm.down_projection(layer), lm.module_name(layer), lm.edited_map(layer).dtype
    if dtype not in SELF_CHECK_TOLERANCE:
        raise UnsupportedModelError(
            f"{name} has dtype {dtype}; expected one of {', '.join(map(str, SELF_CHECK_TOLERANCE))} (--dtype float32)"
        )
    if getattr(experts, "has_post_expert_norm", False):
        raise UnsupportedModelError(
            f"{name} norms the output of every expert, so that a change of a weight is no equal change of the output; "
            "expected experts whose outputs are weighted and added"
        )
    if getattr(experts, "_is_expert_parallel", False):
        raise UnsupportedModelError(f"{name} has its experts on several processes; expected all of them in this one")
    if dtype == torch.float64 and experts.config._experts_implementation != "eager":
        raise UnsupportedModelError(
            f"{name} is float64, which {experts.config._experts_implementation!r} experts do not compute with; "
            'expected model.set_experts_implementation("eager")'
        )


def _self_check(lm: RunnableModel) -> None:
    """Hold key × weight + bias against the MLP output in every layer, on a handful of tokens."""
    ids = [(7 * i + 3) % lm.vocab_size for i in range(6)]
    batch, layers = TokenBatch.pad([ids], 0, lm.device), range(lm.n_layers)
    capture = lm.run(batch, keys=layers, mlp_out=layers, stacked=False)
    mixtures = [layer for layer in layers if lm.mixture(layer) is not None]
    # While keys are recorded, experts compute in a function of Emendo's, which is held to their own here.
    own = lm.run(batch, mlp_out=mixtures) if mixtures else capture
    precision = torch.promote_types(lm.dtype, torch.float32)
    for layer in layers:
        routed = layer in capture.routed
        if not (routed or layer in capture.keys) or layer not in capture.mlp_out:
            raise SelfCheckError(
                f"a forward pass does not call {lm.module_name(layer)}, so what enters and leaves it is not seen; "
                "expected every block to call its modules (of BLOOM's configuration: slow_but_exact=False or "
                "pretraining_tp=1)"
            )
        keys = capture.routed[layer].keys if routed else capture.keys[layer]
        if not (keys.isfinite().all() and capture.mlp_out[layer].isfinite().all()):
            raise NumericalError(
                f"{lm.module_name(layer)}: what the model computes is not finite in {lm.dtype}; expected "
                "finite activations. Load it in a type that holds them (--dtype bfloat16 or --dtype float32); if they "
                "are not finite in float32 either, its weights are damaged"
            )
        if routed:
            expected, found = capture.mlp_out[layer].to(precision), own.mlp_out[layer].to(precision)
        else:
            expected, found = _by_weight(lm, layer, keys.to(precision)), capture.mlp_out[layer].to(precision)
        error = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
        tolerance = SELF_CHECK_TOLERANCE[lm.dtype]
        if rounds_inputs(lm.down_projection(layer)):
            tolerance = ROUNDED_INPUTS
        if not error <= tolerance:
            raise SelfCheckError(
                f"{lm.module_name(layer)}: key × weight + bias differs from the module's output by "
                f"{error:.2e} relative (expected at most {tolerance:.0e}); "
                "the module is wrapped, quantised or laid out in a way that Emendo does not know"
            )


def _by_weight(lm: RunnableModel, layer: int, keys: torch.Tensor) -> torch.Tensor:
    """What a dense layer gives at keys, in their precision."""
    bias = lm.down_projection(layer).bias
    expected = keys @ lm.weight(layer).to(keys).T
    return expected if bias is None else expected + bias.detach().to(keys)
