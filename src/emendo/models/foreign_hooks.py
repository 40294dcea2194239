"""Hooks of others on a model: those that only look are left alone, those that change what it computes are not.

A model is known by its weights, its configuration and its tokenizer, and forward passes of Emendo run the hooks that
are on it. With a hook that steers, masks or replaces activations an edit would be made for the model with the hook and
be kept for its weights alone, and so would second moments and remembered answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from emendo.errors import UnsupportedModelError
from emendo.models.access import is_gate
from emendo.models.runnable import RunnableModel

_OF_THE_LIBRARY = ("transformers.", "torch.nn.utils.", "torch.distributed.")
"""Whose hooks are part of how a model is run, such as those by which transformers collects hidden states."""

_SHOWN = 3
"""Most hooks that a message names."""


class ForeignHooks:
    """What is known of the hooks on one model."""

    def __init__(self) -> None:
        self._harmless: frozenset[int] = frozenset()  # numbers of hooks, which torch gives once

    def check(self, lm: RunnableModel) -> None:
        """Refuse forward hooks and pre-hooks that change what the model computes.

        Where there are any, a few tokens are read with them and without; the answer holds as long as no other joins.

        Raises:
            UnsupportedModelError: They change the logits; names the modules and the hooks.
        """
        found = [(name, *hook) for name, module in lm.model.named_modules() for hook in _foreign(module).items()]
        now = frozenset(number for _, number, _ in found)
        if now <= self._harmless:
            return
        if not torch.equal(_logits(lm, hooked=True), _logits(lm, hooked=False)):
            told = [f"{_named(hook)} on {name or 'the model itself'}" for name, _, hook in found[:_SHOWN]]
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise UnsupportedModelError(
                f"hooks on modules of {lm.name!r} change what it computes (found {', '.join(told)}{more}): an edit "
                "would be made for the model with them, and be kept for its weights alone. Expected a model whose "
                "weights are all that it computes with: take such hooks off first (handle.remove(), of what "
                "register_forward_hook gave), and put them back afterwards. Hooks that only look may stay"
            )
        self._harmless = now


def _foreign(module: nn.Module) -> dict[int, Any]:
    """The hooks of others on a module, by the number that torch gave each."""
    hooks = {**module._forward_pre_hooks, **module._forward_hooks}
    return {
        number: hook
        for number, hook in hooks.items()
        if not is_gate(hook) and not _module_of(hook).startswith(_OF_THE_LIBRARY)
    }


def _module_of(hook: Any) -> str:
    return str(getattr(hook, "__module__", None) or type(hook).__module__)


def _named(hook: Any) -> str:
    name = getattr(hook, "__qualname__", None) or type(hook).__qualname__
    return f"{_module_of(hook)}.{name}"


def _logits(lm: RunnableModel, *, hooked: bool) -> Tensor:
    """Logits of the whole model on a handful of tokens, with its hooks or without those of others."""
    ids = torch.tensor([[(7 * i + 3) % lm.vocab_size for i in range(6)]], device=lm.device)
    with lm.isolated(edited=lm.holds_edits) as own, torch.no_grad():
        for module in [] if hooked else own.model.modules():
            for number in _foreign(module):
                module._forward_pre_hooks.pop(number, None)
                module._forward_hooks.pop(number, None)
        logits: Tensor = own.model(input_ids=ids, use_cache=False, return_dict=True).logits
        return logits
