"""The tokenizer of a model's files, also where there is no ``tokenizer.json``: only SentencePiece's or tiktoken's file.

transformers converts such a file, and not always to a tokenizer that splits text as the file says. So what it makes of
a SentencePiece file is held to SentencePiece itself.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import decoders, pre_tokenizers
from transformers import AutoTokenizer

from emendo.errors import EmendoWarning
from emendo.io.extras import pip_install
from emendo.models.folder import TOKENIZER_CONFIG, refused

_WHOLE = ("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt")
"""Files that hold a tokenizer as transformers reads it, without another library."""

_PROBES = ("The Eiffel Tower is 330 m high.", "naïve Erklärung: «été», 'so'", "Это башня в 巴黎 です 😀", "one\ntwo")
"""Texts that two readers of one file have to split alike."""


def read_tokenizer(folder: Path, name: str, place: str, **options: Any) -> Any:
    """The tokenizer of a model.

    Args:
        folder: Of the model's files; of a hub repository the folder of its cache.
        name: How errors name the model.
        place: The folder or the hub id.
        options: Such as the revision.

    Raises:
        ModelNotFoundError: A package that reads its file is missing, or what transformers makes of the file is another
            tokenizer.
        Exception, PanicException: The library in Rust behind it raises these on damaged files.
    """
    _check_packages(folder, name)
    with _tiktoken_reads_files():
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    _check_packages(folder, name)  # of a repository, whose files are there only now
    if (file := own_file(folder)) is None or _is_tiktoken(file):
        return tokenizer
    _hold_to_sentencepiece(tokenizer, file, name)
    _note_start(tokenizer, file, name)
    return tokenizer


def own_file(folder: Path) -> Path | None:
    """SentencePiece's or tiktoken's own file of a tokenizer, where nothing else of it is in a folder."""
    if any((folder / file).exists() for file in _WHOLE):
        return None
    found = (folder / "tokenizer.model", *sorted(folder.glob("*.model")), *sorted(folder.glob("*.tiktoken")))
    return next((path for path in found if path.is_file()), None)


def _check_packages(folder: Path, name: str) -> None:
    if (file := own_file(folder)) is None:
        return
    needed = ("tiktoken",) if _is_tiktoken(file) else ("sentencepiece", "protobuf")
    missing = [package for package in needed if not _is_there(package)]
    if missing:
        kind = "tiktoken" if _is_tiktoken(file) else "SentencePiece"
        raise refused(
            name,
            f"its tokenizer is a {kind} file ({file.name}) and there is no tokenizer.json; reading it needs "
            f"{' and '.join(missing)}: {pip_install('sentencepiece')}",
        )


def _is_there(package: str) -> bool:
    module = "google.protobuf" if package == "protobuf" else package
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _is_tiktoken(file: Path) -> bool:
    """Lines of a token in base64 and its rank; SentencePiece's files begin with a byte below a space."""
    with file.open("rb") as opened:
        line = opened.readline(4096).split()
    return file.suffix == ".tiktoken" or (len(line) == 2 and line[1].isdigit())


@contextmanager
def _tiktoken_reads_files() -> Iterator[None]:
    """Tiktoken keeps what it read under the path it was read from, and gives that for another file at the path."""
    name = "TIKTOKEN_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = ""
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def _hold_to_sentencepiece(tokenizer: Any, file: Path, name: str) -> None:
    import sentencepiece

    original = sentencepiece.SentencePieceProcessor(model_file=str(file))
    if _differs(tokenizer, original) and not _names_a_class(tokenizer):
        _put_space_first(tokenizer.backend_tokenizer)
    if (text := _differs(tokenizer, original)) is not None:
        found, expected = _pieces(tokenizer, text), original.id_to_piece(original.encode(text))
        raise refused(
            name,
            f"{type(tokenizer).__name__} makes of its {file.name} another tokenizer: it splits {text!r} into "
            f"{' '.join(found[:8])} …, SentencePiece into {' '.join(expected[:8])} …. Expected a tokenizer.json; or "
            f'write {{"tokenizer_class": "TokenizersBackend"}} into its {TOKENIZER_CONFIG}, so that the file alone '
            "says how text is split",
        )


def _differs(tokenizer: Any, original: Any) -> str | None:
    """A text that the two split otherwise."""
    return next(
        (text for text in _PROBES if _pieces(tokenizer, text) != original.id_to_piece(original.encode(text))), None
    )


def _pieces(tokenizer: Any, text: str) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"]))


def _names_a_class(tokenizer: Any) -> bool:
    """Whether the tokenizer is of a class of its own, and not what transformers makes of a file alone."""
    return type(tokenizer).__name__ != "TokenizersBackend"


def _put_space_first(core: Any) -> None:
    """A file alone is converted without the space that SentencePiece puts before the first word."""
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)


def _note_start(tokenizer: Any, file: Path, name: str) -> None:
    """SentencePiece's file does not say whether texts begin with a token; the settings beside it may be missing."""
    if tokenizer.bos_token is not None and "add_bos_token" not in tokenizer.init_kwargs:
        warnings.warn(
            f"{name!r}: neither {file.name} nor {TOKENIZER_CONFIG} says whether texts begin with "
            f"{tokenizer.bos_token}; they are read without it. Most models of this kind were trained with it: if this "
            f'one was, write {{"add_bos_token": true}} into its {TOKENIZER_CONFIG}',
            EmendoWarning,
            stacklevel=2,
        )
