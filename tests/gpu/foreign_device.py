"""A device that is not the CPU, made of CPU memory: what would fail on a GPU for mixed devices fails on it too.

Its tensors hold CPU tensors and say that they are on "foreign:0". Every operation is run on what they hold, after a
check of what CUDA checks: operands are on one device, but for single numbers and for the indices of `x[index]`. It
proves placement, not speed and not the rounding of another device. It registers a backend with torch, for good: use a
process of its own. Run as a script, it plans, applies and takes back edits of tiny models there:

    python tests/gpu/foreign_device.py llama,gpt2 memit,emendo
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from emendo.editing.session import EditSession
from emendo.evaluate import evaluate_records, perplexity
from emendo.methods import method_named
from emendo.models import wrap
from emendo.requests import EditRecord, EditRequest
from emendo.statistics import MomentStore
from tests.conftest import build_tiny

DEVICE = torch.device("privateuseone", 0)

_TRANSFERS = ("_to_copy", "copy_")  # what moves tensors between devices
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")  # their indices may be on the CPU


class ForeignTensor(Tensor):
    """A CPU tensor that says it is elsewhere."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> ForeignTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"ForeignTensor({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    """Factories too, which have no operand to tell them where to run."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Lists(TorchFunctionMode):
    """What moves values between Python lists and a device where no dispatch mode sees it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        if func is Tensor.tolist:
            return args[0].detach().cpu().tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(place, list) for place in places):
                places = tuple(torch.tensor(place) if isinstance(place, list) else place for place in places)
                args = (args[0], places, *args[2:])
        return func(*args, **kwargs)


@contextmanager
def foreign_device() -> Iterator[None]:
    """The context in which `torch.zeros(..., device="foreign")` and `tensor.to("foreign")` work."""
    with _Operations(), _Lists():
        yield


class _Backend:
    """What torch asks of a device's module; nothing here draws random numbers on the device."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: object = 0) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = 0) -> None:
        pass


def register() -> None:
    """Make torch know the device; once in a process."""
    _setup_privateuseone_for_python_backend("foreign", backend_module=_Backend())


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name = func.overloadpacket.__name__
    device = kwargs.get("device")
    target = None if device is None else torch.device(device)
    operands = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    foreign = any(isinstance(tensor, ForeignTensor) for tensor in operands)
    if foreign and name not in _TRANSFERS:
        checked = operands[:1] if name in _INDEXED else operands
        strangers = [t for t in checked if not isinstance(t, ForeignTensor) and t.ndim > 0]
        if strangers:
            raise RuntimeError(
                f"{func}: operands on {DEVICE} and on {strangers[0].device} ({tuple(strangers[0].shape)})"
            )
    if target is not None:
        kwargs = {**kwargs, "device": "cpu"}
    args, kwargs = tree_map_only(ForeignTensor, lambda tensor: tensor.inner, (args, kwargs))
    out = func(*args, **kwargs)
    here = foreign if target is None else target.type == DEVICE.type
    if name == "copy_":
        here = isinstance(operands[0], ForeignTensor)
    return tree_map_only(Tensor, ForeignTensor, out) if here else out


def main(families: str, methods: str) -> None:
    """Edit a tiny model of every family with every method, two edits on one another, and score it."""
    requests = [
        EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
        EditRequest("{}, a native speaker of", "Danielle Darrieux", "Tokyo"),
        EditRequest("The capital of {} is", "Japan", "Bordeaux"),
    ]
    settings: dict[str, Any] = {"target.steps": 3, "target.precision": "float32", "moments.multiple": 4}
    register()
    with foreign_device(), TemporaryDirectory() as folder:
        for family in families.split(","):
            tiny = build_tiny(family)
            lm = wrap(tiny.model.to(DEVICE), tiny.tokenizer, name=tiny.name)
            for method in methods.split(","):
                own = {"preservation.null_space": "energy", "preservation.threshold": 0.3}
                own = settings | (own if method == "alphaedit" else {})
                layers = [1] if method_named(method).n_layers == 1 else [1, 2]
                session = EditSession(lm, store=MomentStore(folder))
                for part in (requests[:2], requests[2:]):
                    session.apply(session.plan(part, method, layers=layers, settings=own).update)
                evaluate_records(lm, [EditRecord(requests[0], target_true="Paris")])
                session.rollback()
                assert all(session.verify_rolled_back().values())
                assert lm.weight(1).device == DEVICE
                print(family, method, flush=True)
            perplexity(lm, "The capital of Japan is Tokyo.")
            lm.generate("The capital of", 4)


if __name__ == "__main__":
    main(*sys.argv[1:])
