"""From a name to an editable model: a hub id, a local folder, a GGUF file, "demo" or "world:FAMILY"."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from emendo.arguments import checked
from emendo.errors import InputError, ModelNotFoundError
from emendo.io.extras import pip_install
from emendo.models import demo
from emendo.models.architecture import refuse_own_code, resolve_architecture
from emendo.models.declared import GGUF_GROWTH, check_model_size
from emendo.models.editable import EditableModel
from emendo.models.folder import check_beside, check_folder, check_settings, no_weights, refused, weight_files
from emendo.models.gguf_header import check_gguf
from emendo.models.hub_files import fetch_settings, fetch_weights, has_safetensors
from emendo.models.quantisation import FewBits
from emendo.models.silence import silent_transformers
from emendo.models.sources import DEMO, find_source
from emendo.models.tokenizer_files import read_tokenizer
from emendo.models.worlds.store import trained_folder
from emendo.progress import Watched, watching

UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError, ArithmeticError),
    ImportError,
    *(SafetensorError, StrictDataclassError, struct.error),
)
"""What readers of configurations, checkpoints and GGUF files raise on files that are absent or damaged."""

PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Maps of devices that accelerate makes itself."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@checked
def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    load_in: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    progress: Watched = None,
) -> EditableModel:
    """Load a causal language model for editing.

    Args:
        name: A Hugging Face hub id, a folder with a saved model, a ``.gguf`` file, ``"demo"``, or ``"world:FAMILY"``, a
            small model of that architecture that knows invented facts and is trained when it is first asked for.
        device: ``"auto"`` (CUDA if there is one, else CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"auto"`` (the checkpoint's own; float32 for GGUF), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        load_in: Quantise the linear maps while they are loaded: ``"nf4"``, ``"fp4"``, ``"int8"`` (bitsandbytes),
            ``"torchao-int8"`` or ``"torchao-fp8"``. A folder that was saved in few bits needs nothing said.
        device_map: Where each module goes, for a model that no single device holds: a map as accelerate takes it, or
            ``"auto"``. Nothing may be offloaded: all weights must be in the memory of a device.
        progress: Told about the stage "loading"; True: a bar.

    Raises:
        ModelNotFoundError: Nothing loadable under that name.
        UnsupportedModelError: The family cannot be edited.
        InputError: Unknown device, dtype or way to quantise, or both a device and a map of devices.
    """
    progress = watching(progress)
    if device_map is not None and device != "auto":
        raise InputError(f"found device {device!r} and a device_map; expected one of them (leave out --device)")
    if device_map is not None:
        _check_device_map(device_map)
    target = None if device_map is not None else _device(device)
    options = {"dtype": dtype_named(dtype), "device_map": device_map}
    few_bits = FewBits(load_in, target)
    if (source := find_source(str(name))).kind == "world":
        trained_folder(source.place, progress)
    progress.start("loading", None)
    try:
        with silent_transformers(), _kept_rng():
            model, tokenizer = _load_pair(str(name), options, few_bits)
            if not few_bits.settled(model) and target is not None:
                model.to(target)
        return EditableModel(model, tokenizer, name=str(name))
    finally:
        progress.finish()


@checked
def wrap(model: Any, tokenizer: Any, name: str = "") -> EditableModel:
    """An editable model over a model and tokenizer that are already loaded; both stay as they are.

    Args:
        model: A transformers causal LM; what torch.compile(model) made of one stands for it.
        tokenizer: Its fast tokenizer.
        name: How reports and files name the model.

    Raises:
        UnsupportedModelError: The family, weights or tokenizer cannot be edited.
        SelfCheckError: The wrapper disagrees with the model.
        NumericalError: What the model computes is not finite.
    """
    return EditableModel(model, tokenizer, name=name)


def _load_pair(name: str, options: dict[str, Any], few_bits: FewBits) -> tuple[Any, Any]:
    source = find_source(name)
    if source.kind == "world":
        return _from_pretrained(str(trained_folder(source.place)), options, few_bits, name)
    if source.kind == "demo":
        return _load_demo(options, few_bits)
    if source.kind == "gguf":
        few_bits.refuse_gguf(name)
        return _load_gguf(Path(source.place), options, name)
    return _from_pretrained(source.place, options, few_bits, name)


def _from_pretrained(place: str, options: dict[str, Any], few_bits: FewBits, name: str = "") -> tuple[Any, Any]:
    """A model and its tokenizer from a folder or a hub id; `name` is how errors name it."""
    name = name or place
    try:
        folder, commit, said, config = read_config(place, name)
        pinned = {} if commit is None else {"revision": commit}
        spec = resolve_architecture(config)
        options = few_bits.options(options, config, name)
        auto = AutoModelForCausalLM if spec.wrapper is None else AutoModelForImageTextToText
        weights = check_folder(folder, name, said) if commit is None else []
        # Before what is long: gigabytes are fetched and read after it.
        tokenizer = _guarded(name, lambda: read_tokenizer(folder, name, place, **pinned))
        if commit is not None:
            weights = _fetched(place, name, folder, commit, said)
        if weights:
            check_model_size(auto, config, weights, few_bits.growth(config))
        model, found = auto.from_pretrained(
            place,
            **_with_dtype(options, "auto"),
            **(pinned if weights else {}),
            trust_remote_code=False,
            use_safetensors=True,
            weights_only=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
            output_loading_info=True,
        )
    except (InputError, torch.OutOfMemoryError):
        raise
    except UNREADABLE as error:
        raise cannot_load(name, error) from error
    # transformers fills missing tensors with random numbers and only warns.
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in found["mismatched_keys"]}
    if missing := sorted({*found["missing_keys"], *mismatched}):
        raise ModelNotFoundError(
            f"cannot load {name!r}: {len(missing)} tensors are missing or of another shape than its config.json says, "
            f"{missing[0]} for one; expected a complete checkpoint of a causal LM (--model)"
        )
    return model, tokenizer


def read_config(place: str, name: str) -> tuple[Path, str | None, dict[str, Any], Any]:
    """What the files of a model say, and its configuration; nothing is allocated or followed that was not checked.

    Args:
        place: A folder or a hub id.
        name: How errors name it.

    Returns:
        The folder, the commit (of a hub id), ``config.json`` as it stands, and the configuration.

    Raises:
        InputError: It is refused.
        OSError, ValueError, ...: What readers of configurations raise (`UNREADABLE`).
    """
    # So an unsupported family is refused before gigabytes are fetched.
    folder, commit = (Path(place), None) if Path(place).is_dir() else fetch_settings(place)
    said = check_settings(folder, name)
    refuse_own_code(said)
    pinned = {} if commit is None else {"revision": commit}
    # Without an explicit False, transformers would ask on the terminal whether to run a folder's own code.
    return folder, commit, said, AutoConfig.from_pretrained(place, trust_remote_code=False, **pinned)


def _guarded(name: str, read: Callable[[], Any]) -> Any:
    """What a reader of tokenizers gives, tried once: settings of wrong types are found when they are used.

    The library in Rust behind it raises Exception itself, or panics.
    """
    try:
        tokenizer = read()
        tokenizer.decode(tokenizer("The tower", return_attention_mask=False)["input_ids"])
        return tokenizer
    except InputError:
        raise
    except Exception as error:
        raise cannot_load(name, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise cannot_load(name, ValueError(f"its tokenizer's files are damaged ({error})")) from error


def _fetched(place: str, name: str, folder: Path, commit: str, said: dict[str, Any]) -> list[Path]:
    """The checked files with a repository's weights; none where the hub may have converted its pickles."""
    if said.get("transformers_weights") is None and not has_safetensors(place, commit, folder):
        if is_offline_mode():
            raise no_weights(folder, name)
        return []
    return fetch_weights(place, commit, weight_files(folder, name, said))


def _with_dtype(options: dict[str, Any], default: torch.dtype | str) -> dict[str, Any]:
    """What `from_pretrained` takes: a map of devices only where there is one, as it needs accelerate."""
    given = {name: value for name, value in options.items() if value is not None}
    return {"dtype": default, **given}


def cannot_load(name: str, error: Exception) -> ModelNotFoundError:
    """The error about a model whose files cannot be read."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "custom code" in lines[0]:
        return refused(
            name,
            "its tokenizer is code of its own (auto_map), which is never run; expected a tokenizer.json and a "
            "tokenizer_class that transformers has, such as PreTrainedTokenizerFast, in tokenizer_config.json",
        )
    # Some say in the first line only where something is wrong, and what it is in the next.
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return ModelNotFoundError(
        f"cannot load {name!r}: {first} Expected a hub id that is reachable, a local folder, a .gguf file, or "
        "'demo' (--model)"
    )


def read_gguf_config(path: Path, name: str = "") -> tuple[dict[str, Any], Any]:
    """Where a GGUF file's parts are read from, as transformers takes it, and its configuration.

    Args:
        path: The file.
        name: How errors name it.

    Raises:
        ModelNotFoundError: A package that reads it is missing.
        InputError: It is refused.
        OSError, ValueError, ...: What readers of GGUF files raise (`UNREADABLE`).
    """
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelNotFoundError(
            f"reading {path.name} needs the packages gguf and accelerate: {pip_install('demo')}"
        ) from error
    # The tokenizer's settings are read from whatever else lies in the file's folder.
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "trust_remote_code": False}
    check_gguf(path)
    check_beside(path.parent, name or str(path))
    return where, AutoConfig.from_pretrained(**where)


def _load_gguf(path: Path, options: dict[str, Any], name: str = "") -> tuple[Any, Any]:
    name = name or str(path)
    try:
        where, config = read_gguf_config(path, name)
        resolve_architecture(config)
        check_model_size(AutoModelForCausalLM, config, [path], GGUF_GROWTH)
        model = AutoModelForCausalLM.from_pretrained(**where, **_with_dtype(options, torch.float32))
        tokenizer = _guarded(name, lambda: AutoTokenizer.from_pretrained(**where))
    except (InputError, torch.OutOfMemoryError):
        raise
    except UNREADABLE as error:
        raise cannot_load(name, error) from error
    # The loaded weights are plain floats; a left-over quantisation entry would make saving and reloading fail.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    return model, tokenizer


def _load_demo(options: dict[str, Any], few_bits: FewBits) -> tuple[Any, Any]:
    folder = demo.verified_demo_folder()
    if folder is None:
        path = demo.demo_gguf()
        if path is None:
            return _demo_from_hub(options, few_bits)
        with demo.converting():
            folder = demo.verified_demo_folder()
            if folder is None:
                folder = demo.store_demo_folder(*_load_gguf(path, {"dtype": torch.float32}))
    return _from_pretrained(str(folder), options, few_bits, DEMO)


def _demo_from_hub(options: dict[str, Any], few_bits: FewBits) -> tuple[Any, Any]:
    try:
        return _from_pretrained(demo.HUB_ID, _with_dtype(options, torch.float32), few_bits)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"the demo model is not installed and {demo.HUB_ID} cannot be fetched. Get it with: {demo.how_to_install()}"
        ) from error


def _check_device_map(device_map: str | Mapping[str, Any]) -> None:
    """Every place that a map names is one that weights can go to; what it offloads is refused once it is loaded."""
    if isinstance(device_map, str) and device_map in PLACEMENTS:
        return
    for place in [device_map] if isinstance(device_map, str) else device_map.values():
        if place not in ("disk", "meta"):
            name = f"cuda:{place}" if isinstance(place, int) else str(place)  # as accelerate reads a number
            expected = "cpu, cuda or cuda:N (device_map)"
            _named_device(name, expected if isinstance(device_map, Mapping) else f"{', '.join(PLACEMENTS)}, {expected}")


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _named_device(device, "auto, cpu, cuda or cuda:N (--device)")


def _named_device(device: str, expected: str) -> torch.device:
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}; expected {expected}") from error
    if target.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is not supported; expected {expected}")
    if target.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"found device {device!r}, but no CUDA device is available here; use --device cpu")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"no device {device!r}: this machine has {torch.cuda.device_count()} CUDA device(s); expected {expected}"
        )
    return target


def dtype_named(dtype: str) -> torch.dtype | None:
    """The dtype of that name; None for ``"auto"``.

    Raises:
        InputError: Unknown dtype.
    """
    if dtype == "auto":
        return None
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; expected auto, {', '.join(DTYPES)} (--dtype)")
    return DTYPES[dtype]


@contextmanager
def _kept_rng() -> Iterator[None]:
    """Loading initialises modules, which draws random numbers; the caller's stream must not notice."""
    with torch.random.fork_rng():
        yield
