"""A separate model over shared weights: changes to its modules are seen by nobody else.

Reading and moving activations needs hooks, another attention function, evaluation mode, and weights that are tried out.
On the modules that others run their forward passes through, each of these would change what the others get. So all of
it is done on modules of our own. They hold the same parameters, not copies, except those that are going to be written;
there is nothing to put back afterwards, and nothing that an interrupt could leave behind.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from emendo.errors import UnsupportedModelError
from emendo.models.packed_weights import is_packed

_PLAIN = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, Tensor, nn.Parameter})
"""Types of attributes that hold no module."""


def isolated_modules(model: Any, written: Collection[Tensor] = ()) -> Any:
    """The same model in modules of its own: in evaluation mode, without gradients of parameters.

    Hooks, buffers and attributes are the model's, so the outputs are, bit for bit. Configurations are copies.

    Args:
        model: The model; nothing of it is changed.
        written: Parameters that the result gets copies of. All others are shared.
    """
    modules = list(model.modules())
    counterparts = _Counterparts(modules, written)
    for module in modules:
        vars(counterparts.modules[id(module)]).update(counterparts.state(module))
    return counterparts.modules[id(model)]


def check_parameters(model: nn.Module) -> None:
    """Refuse parameters that can neither be written nor be given their flags back.

    Raises:
        UnsupportedModelError: A parameter is an inference tensor.
    """
    made = next((name for name, parameter in model.named_parameters() if parameter.is_inference()), None)
    if made is not None:
        raise UnsupportedModelError(
            f"{made} was made under torch.inference_mode(), where torch lets nobody write to it later; expected "
            "ordinary parameters. Build or load the model outside inference_mode()"
        )


def _counterpart(parameter: Tensor, *, copy: bool) -> Tensor:
    """A parameter over the same numbers, or a copy of them; of few-bit weights the object itself, which has scales."""
    if is_packed(parameter):
        return parameter
    return nn.Parameter(parameter.detach().clone() if copy else parameter.detach(), requires_grad=False)


class _Counterparts:
    """What stands for each module and parameter of a model."""

    def __init__(self, modules: Sequence[nn.Module], written: Collection[Tensor]) -> None:
        copied = {id(parameter) for parameter in written}
        found = {id(part): part for module in modules for part in module._parameters.values() if part is not None}
        self.modules = {id(module): type(module).__new__(type(module)) for module in modules}
        self.parameters = {key: _counterpart(part, copy=key in copied) for key, part in found.items()}
        self.configs: dict[int, Any] = {}

    def state(self, module: nn.Module) -> dict[str, Any]:
        """The attributes of a module's counterpart."""
        state = {name: value if type(value) in _PLAIN else self.of(value) for name, value in vars(module).items()}
        state["_parameters"] = {
            name: None if parameter is None else self.parameters[id(parameter)]
            for name, parameter in module._parameters.items()
        }
        state["training"] = False
        if "_compiled_call_impl" in state:  # it runs the modules that it was made of
            state["_compiled_call_impl"] = None
        return state

    def of(self, value: Any) -> Any:
        """An attribute with counterparts in the place of modules: itself, or a copy, where it holds none.

        A model that is spread over devices has a `forward` of its own on each module, which knows that module.
        """
        if type(value) in _PLAIN:
            return value
        if isinstance(value, dict):  # of hooks, buffers, parts: what comes to one of them later must not come to both
            found = value.copy()
            for name, part in value.items():
                if type(part) not in _PLAIN:
                    found[name] = self.of(part)
            return found
        if isinstance(value, nn.Module):
            return self.modules.get(id(value), value)
        if isinstance(value, PretrainedConfig):
            return copy.deepcopy(value, self.configs)
        if type(value) in (list, tuple):
            return type(value)(self.of(part) for part in value)
        if isinstance(value, MethodType):
            return MethodType(value.__func__, self.of(value.__self__)) if self._is_ours(value.__self__) else value
        if type(value) is partial:
            return self._partial(value)
        if isinstance(value, FunctionType) and value.__closure__:
            return self._closure(value)
        return value

    def _is_ours(self, value: Any) -> bool:
        return isinstance(value, nn.Module) and id(value) in self.modules

    def _partial(self, value: Any) -> Any:
        keywords = {name: self.of(part) for name, part in value.keywords.items()}
        made = partial(self.of(value.func), *map(self.of, value.args), **keywords)
        vars(made).update(vars(value))
        return made

    def _closure(self, function: FunctionType) -> Any:
        """A function that was defined inside another one and took modules from there."""
        cells = function.__closure__ or ()
        own = tuple(self._cell(cell) for cell in cells)
        if own == cells:
            return function
        made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, own)
        made.__kwdefaults__ = function.__kwdefaults__
        vars(made).update(vars(function))
        return made

    def _cell(self, cell: CellType) -> CellType:
        """The variable itself, unless it holds a module or something bound to one: others may write to it."""
        try:
            held = cell.cell_contents
        except ValueError:  # not assigned yet
            return cell
        bound = held.__self__ if isinstance(held, MethodType) else held
        return CellType(self.of(held)) if self._is_ours(bound) else cell
