"""Transformers without a word on the terminal."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from transformers.utils import logging as transformers_logging

from emendo.errors import EmendoWarning


@contextmanager
def no_log() -> Iterator[None]:
    """Only errors in transformers' log, such as while a model runs; others may write to the terminal."""
    verbosity = transformers_logging.get_verbosity()
    try:
        transformers_logging.set_verbosity_error()
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@contextmanager
def silent_transformers() -> Iterator[None]:
    """No bars or warnings of transformers on the terminal while it loads or saves; its settings come back."""
    bars = transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.disable_progress_bar()
        # The GGUF reader draws bars of its own, straight to standard error.
        with no_log(), warnings.catch_warnings(record=True) as said, redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", EmendoWarning)
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    for own in said:
        warnings.warn_explicit(own.message, own.category, own.filename, own.lineno)
