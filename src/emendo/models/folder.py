"""What a model folder must be before transformers sees it: plain files, weights as safetensors, nothing outside it.

transformers follows names that the files of a folder give: an index names shards, a configuration names weights. It
takes any path, and reads what does not end in ``.safetensors`` as a pickle.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from emendo.errors import InputError, ModelNotFoundError
from emendo.io.plain_file import check_plain, read_plain_text
from emendo.io.strict_json import check_depth
from emendo.models.declared import check_config_numbers, check_token_ids

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"

SETTINGS = (CONFIG, INDEX, "generation_config.json", TOKENIZER, TOKENIZER_CONFIG)
"""JSON files whose names transformers knows without being told."""

_READ = (".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".bin", ".pt")
"""Kinds of file that a reader of models opens."""

_TOKENIZERS: tuple[str, ...] = ("tokenizer*.json", "*tokenizer*.model", "tekken*", "*.tiktoken", "tiktoken*")
_TOKENIZERS += ("*vocab*", "merges.txt", "*sentencepiece*", "*spm*", "*spiece*", "*bpe*")


def check_folder(folder: Path, name: str, config: dict[str, Any]) -> list[Path]:
    """Refuse a folder whose weights are no safetensors of its own, or that has no tokenizer.

    Args:
        folder: A folder that `check_settings` has looked at.
        name: How errors name it.
        config: What that found.

    Returns:
        The files with the weights.

    Raises:
        ModelNotFoundError: A file is none that a model folder has, or names one outside.
    """
    weights = [folder / file for file in weight_files(folder, name, config)]
    if not any(path for pattern in _TOKENIZERS for path in folder.glob(pattern) if path.name != TOKENIZER_CONFIG):
        raise refused(
            name,
            "it has weights and no tokenizer; expected tokenizer.json beside them. Copy the tokenizer's files from the "
            f"model that it was made of, or let transformers write them: {in_python(_SAVE_TOKENIZER, name)}",
        )
    return weights


_SAVE_TOKENIZER = 'from transformers import AutoTokenizer as T; T.from_pretrained("ORIGINAL").save_pretrained({0})'
_CONVERT = (
    "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
    "[c.from_pretrained({0}).save_pretrained({1}) for c in (M, T)]"
)


def check_settings(folder: Path, name: str) -> dict[str, Any]:
    """Refuse JSON files of a model that name other files, or numbers without measure; gives its configuration.

    Args:
        folder: Holds those of `SETTINGS` that the model has.
        name: How errors name the model.

    Raises:
        ModelNotFoundError: See above; or it is an adapter.
    """
    check_beside(folder, name)
    config = _json(folder / CONFIG, name)
    _check_names(config.get("configuration_files"), CONFIG, "configuration_files", name)
    for key, value in _pairs(config):
        if key.endswith("_implementation") and "/" in str(value):
            raise refused(
                name,
                f"{CONFIG} sets {key} to {value!r}, which is code from the hub; expected one that transformers has, "
                f"such as 'sdpa'. Take {key} out of the file",
            )
    _attempt(name, CONFIG, check_config_numbers, config)
    if (folder / TOKENIZER_CONFIG).exists():
        tokenizer_config = _json(folder / TOKENIZER_CONFIG, name)
        _check_names(tokenizer_config.get("fast_tokenizer_files"), TOKENIZER_CONFIG, "fast_tokenizer_files", name)
    for path in sorted(folder.glob("tokenizer*.json")):
        if path.name != TOKENIZER_CONFIG:
            _attempt(name, path.name, lambda at: check_token_ids(read_plain_text(at)), path)
    return config


def check_beside(folder: Path, name: str) -> None:
    """Refuse a folder with links, pipes or devices among what a reader of models opens, and one with an adapter.

    Args:
        folder: Of the model, or of its GGUF file.
        name: How errors name the model.

    Raises:
        ModelNotFoundError: Names the file.
    """
    with_templates = [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*")]
    for path in sorted(path for path in with_templates if path.suffix in _READ):
        check_link(path, folder, name)
    if (folder / ADAPTER_CONFIG).exists():
        raise _is_adapter(folder, name)


def weight_files(folder: Path, name: str, config: dict[str, Any]) -> list[str]:
    """The names of the files that hold the weights, as transformers chooses them: plain names of safetensors.

    Args:
        folder: Holds them, or of a hub repository as yet only their index.
        name: How errors name the model.
        config: Its configuration.

    Raises:
        ModelNotFoundError: There are none, they are pickles, or a name leads elsewhere.
    """
    first = config.get("transformers_weights")
    if first is not None:
        _check_names([first], CONFIG, "transformers_weights", name, (".safetensors", ".safetensors.index.json"))
    first = first or (WEIGHTS if (folder / WEIGHTS).exists() else INDEX)
    if not (folder / first).exists():
        raise no_weights(folder, name)
    if not first.endswith(".index.json"):
        return [first]
    index = _json(folder / first, name)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or not isinstance(index.get("metadata"), dict):
        raise refused(name, f"{first} has no metadata and weight_map, which says in which file each tensor is")
    _check_names(list(shards.values()), first, "weight_map", name, (".safetensors",))
    return sorted(set(shards.values()))


def check_link(path: Path, folder: Path, name: str) -> None:
    """Refuse a file of a model folder that is none, or a link that leads out of the folder.

    Links into the ``blobs`` of the hub's cache are how that keeps its snapshots.

    Raises:
        ModelNotFoundError: Says what it is.
    """
    try:
        root, target = folder.resolve(), path.resolve(strict=True)
        check_plain(target)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise refused(name, f"{path.name}: {error}; expected a plain file") from error
    blobs = root.parent.parent / "blobs"
    cached = root.parent.name == "snapshots" and target.parent == blobs
    if not cached and not target.is_relative_to(root):
        raise refused(
            name,
            f"{path.name} is a link to {str(target)!r}, outside of the folder; expected a folder with files of its "
            f"own: cp -rL {shlex.quote(name)} NEW, and give NEW",
        )


def refused(name: str, why: str) -> ModelNotFoundError:
    """The error for a model whose files cannot be used."""
    return ModelNotFoundError(f"cannot load {name!r}: {why} (--model)")


def in_python(code: str, *values: str) -> str:
    """A command that runs a line of Python: its places filled with texts, quoted for a shell."""
    return f"python -c {shlex.quote(code.format(*map(json.dumps, values)))}"


def conversion(name: str) -> str:
    """The command that makes safetensors of a model's pickles, its tokenizer with them."""
    new = f"{Path(name).name}-safetensors"
    return f"{in_python(_CONVERT, name, new)}, and give {new}"


def no_weights(folder: Path, name: str) -> ModelNotFoundError:
    """The error for a model without safetensors."""
    pickles = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
    indexed = (folder / "pytorch_model.bin.index.json").exists()
    if not pickles and not indexed:
        return refused(name, f"no weights in the folder; expected {WEIGHTS} or {INDEX}")
    return ModelNotFoundError(
        f"the weights in {name!r} are pickles ({[*pickles, 'pytorch_model.bin.index.json'][0]}), which can run code "
        "when they are read; expected safetensors. If you trust the folder, convert it with transformers: "
        f"{conversion(name)} (--model)"
    )


def _is_adapter(folder: Path, name: str) -> ModelNotFoundError:
    base = _json(folder / ADAPTER_CONFIG, name).get("base_model_name_or_path")
    base = base if isinstance(base, str) and base else "BASE"
    new = f"{Path(name).name}-merged"
    code = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; from peft import PeftModel as P; "
        "P.from_pretrained(M.from_pretrained({0}), {1}).merge_and_unload().save_pretrained({2}); "
        "T.from_pretrained({0}).save_pretrained({2})"
    )
    return ModelNotFoundError(
        f"{name!r} holds a PEFT adapter ({ADAPTER_CONFIG}), which is no model of its own; expected the base model "
        f"({base!r}), or the two merged: {in_python(code, base, name, new)}, and give {new} (--model)"
    )


def _check_names(
    values: Any, file: str, key: str, name: str, endings: tuple[str, ...] = (".json", ".safetensors")
) -> None:
    """Names that a file gives of other files: plain ones, of files beside it."""
    if values is None:
        return
    for value in values if isinstance(values, list) else [values]:
        if not isinstance(value, str) or Path(value).name != value or "\\" in value or not value.endswith(endings):
            raise refused(
                name,
                f"{file} names {str(value)[:200]!r} ({key}); expected the plain name of a file of the folder that "
                f"ends in {' or '.join(endings)}. Reading another kind can run code, and a path leads elsewhere",
            )


def _json(path: Path, name: str) -> dict[str, Any]:
    value = _attempt(name, path.name, lambda at: json.loads(read_plain_text(at)), path)
    _attempt(name, path.name, check_depth, value)
    if not isinstance(value, dict):
        raise refused(name, f"{path.name} holds a {type(value).__name__}, expected a JSON object")
    return value


def _attempt(name: str, file: str, read: Any, argument: Any) -> Any:
    """What a reader makes of a file; what it complains of, with the file's name."""
    try:
        return read(argument)
    except InputError:
        raise
    except RecursionError as error:
        raise refused(name, f"{file}: nested too deep") from error
    except (OSError, ValueError) as error:
        raise refused(name, f"{file}: {error}") from error


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value and of those inside it, with what it holds."""
    parts: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict):
        yield from value.items()
    for part in parts:
        yield from _pairs(part)
