"""General ability: tasks of lm-evaluation-harness on the model in memory, with the edits that are in it.

Base and edited model answer the same items, so the difference is judged item by item (`compare`): its interval is
far narrower than those of the two scores.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emendo.errors import HarnessError
from emendo.evaluate import bootstrap_interval
from emendo.models import ModelAdapter
from emendo.progress import Progress, Silent
from emendo.versions import versions


def general_ability(
    adapter: ModelAdapter,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    data: str | Path | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run tasks on the model as it is now. Model, tokenizer and random generators are left as they were.

    Args:
        adapter: The model, edited or not; nothing is loaded or copied.
        tasks: Names or YAML files of tasks, as lm-evaluation-harness knows them.
        limit: Most items of each task, from its beginning; None takes all.
        num_fewshot: Examples in front of each item; None leaves it to the task.
        include_path: Folder with further tasks. Its YAML files may name Python functions, which are run.
        data: File that a task of your own reads, handed to it as the entry ``data`` of its metadata.
        batch_size: Sequences in one forward pass.
        seed: Of the choice of examples, of whatever a task samples, and of the bootstrap.
        progress: Told about the stage "harness".

    Returns:
        ``tasks`` by name with version, items, their hash, and each metric with its mean, standard error, 95 % interval
        (bootstrap over items) and value of every item; ``settings``, ``versions`` and ``seconds``. Multiple-choice
        tasks have one metric more than they define, ``choice_nll``: -log p(right choice) among the choices, in nats.

    Raises:
        HarnessError: lm-evaluation-harness is not installed, or a task is unknown or cannot be read.
    """
    lm_eval = _imported()
    progress = progress or Silent()
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise HarnessError(f"{name} must be at least 1, found {value} (--{name.replace('_', '-')})")
    settings = {
        "limit": limit,
        "num_fewshot": num_fewshot,
        "batch_size": batch_size,
        "seed": seed,
        "data_sha256": _file_digest(data) if data is not None else None,
    }
    progress.start("harness", None)
    begin = time.perf_counter()
    try:
        with adapter.quiet(), _seeded(seed), _unheard():
            found = lm_eval.evaluate(
                _live(adapter, batch_size),
                _read_tasks(tasks, include_path, data, num_fewshot, seed),
                limit=limit,
                bootstrap_iters=0,  # the intervals are ours, from the value of each item
            )
    finally:
        progress.finish()
    return {
        "format": "emendo.harness",
        "version": 1,
        "tasks": {name: _task_result(name, found, seed) for name in sorted(found["samples"])},
        "settings": settings,
        "versions": {**versions(), "lm_eval": version("lm_eval")},
        "seconds": time.perf_counter() - begin,
    }


def compare(base: Mapping[str, Any], edited: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Edited against base, item by item.

    Args:
        base: What `general_ability` returned for the unedited model.
        edited: What it returned for the edited one, with the same tasks and settings.

    Returns:
        For each task and metric: both means, the mean difference with its 95 % interval (paired bootstrap over items),
        and how many items went up and down.

    Raises:
        HarnessError: The two are not of the same items.
    """
    rows = []
    for name, task in base["tasks"].items():
        other = edited["tasks"].get(name)
        if other is None or other["items_sha256"] != task["items_sha256"]:
            raise HarnessError(
                f"the two results of task {name!r} are not of the same items; run both with the same tasks, limit, "
                "num_fewshot, data and seed"
            )
        for metric, before in task["metrics"].items():
            after = other["metrics"][metric]
            change = [b - a for a, b in zip(before["items"], after["items"], strict=True)]
            rows.append(
                {
                    "task": name,
                    "metric": metric,
                    "n": task["n"],
                    "base": before["value"],
                    "edited": after["value"],
                    "difference": sum(change) / len(change),
                    "interval": _interval(change, base["settings"]["seed"]),
                    "up": sum(d > 0 for d in change),
                    "down": sum(d < 0 for d in change),
                }
            )
    return rows


def _imported() -> Any:
    try:
        import lm_eval
        import lm_eval.models.huggingface
    except ImportError as error:
        raise HarnessError(
            f"general ability needs lm-evaluation-harness, which cannot be imported ({error}): "
            "pip install 'emendo[harness]'"
        ) from error
    return lm_eval


def _live(adapter: ModelAdapter, batch_size: int) -> Any:
    """The model in memory as lm-evaluation-harness sees one; the tokenizer is a copy, since it sets a pad token."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=adapter.model,
        tokenizer=copy.deepcopy(adapter.tokenizer),
        backend="causal",
        batch_size=batch_size,
        max_length=adapter.max_length,
    )


def _read_tasks(
    tasks: Sequence[str], include_path: str | Path | None, data: str | Path | None, num_fewshot: int | None, seed: int
) -> Any:
    """The tasks with their items, as `lm_eval.evaluate` takes them.

    Raises:
        HarnessError: A task is unknown, cannot be read, or fixes another number of examples.
    """
    manager = _task_manager(tasks, include_path, data)
    try:
        loaded = manager.load(list(tasks))
    except HarnessError:
        raise
    except Exception as error:  # what a task's own code or the hub raises is theirs to choose
        raise HarnessError(
            f"cannot read the tasks {', '.join(tasks)}: {type(error).__name__}: {error}. Built-in tasks fetch their "
            "items from the Hugging Face hub unless they are cached; a task over a local file is read with "
            "--include FOLDER --data FILE"
        ) from error
    for name, task in loaded["tasks"].items():
        fixed = task.get_config("num_fewshot")
        if num_fewshot and fixed == 0:  # which the harness would keep, without a word
            raise HarnessError(
                f"task {name!r} is defined without examples in front, found num_fewshot={num_fewshot}; leave it out "
                "(--num-fewshot), or take num_fewshot out of the task's YAML file"
            )
        task.set_config(key="num_fewshot", value=(fixed or 0) if num_fewshot is None else num_fewshot)
        task.set_fewshot_seed(seed=seed)
    return loaded


def _task_manager(tasks: Sequence[str], include_path: str | Path | None, data: str | Path | None) -> Any:
    """An index that knows all of these tasks.

    Raises:
        HarnessError: It does not; names the first.
    """
    from lm_eval.tasks import TaskManager

    if not tasks:
        raise HarnessError("no task is named; give at least one, such as --tasks mmlu_sample")
    folder = None if include_path is None else Path(include_path).expanduser()
    if folder is not None and not folder.is_dir():
        raise HarnessError(f"no folder at {str(folder)!r}; expected one with task YAML files (--include)")
    metadata = {} if data is None else {"data": str(data)}

    def unknown(manager: Any) -> list[str]:
        return [name for name in tasks if name not in manager.all_tasks and not Path(name).is_file()]

    # Reading the index of the thousands of built-in tasks takes seconds, which the tasks of a folder do not need.
    manager = TaskManager(include_path=folder, include_defaults=False, metadata=metadata)
    if unknown(manager):
        manager = TaskManager(include_path=folder, metadata=metadata)
    if missing := unknown(manager):
        where = f"{str(folder)!r} or the built-in tasks" if folder else "the built-in tasks"
        raise HarnessError(
            f"unknown task {missing[0]!r}: not in {where}. Name a task or a YAML file (--tasks), or the folder that "
            "holds it (--include); `lm_eval ls tasks` prints the built-in ones"
        )
    return manager


def _task_result(name: str, found: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One task: what was asked, and every metric that is a number for each item."""
    filters: dict[str, list[Mapping[str, Any]]] = {}
    for sample in found["samples"][name]:
        filters.setdefault(sample["filter"], []).append(sample)
    metrics = {}
    for label, samples in filters.items():
        for metric in samples[0]["metrics"]:
            items = [_number(sample[metric]) for sample in samples]
            if all(item is not None for item in items):
                metrics[metric if len(filters) == 1 else f"{metric} ({label})"] = _summary(items, seed)
        choices = [_choice_nll(sample) for sample in samples]
        if None not in choices:
            metrics["choice_nll"] = _summary(choices, seed)
    first = next(iter(filters.values()))
    return {
        "version": found["versions"].get(name),
        "n": len(first),
        "n_total": found["n-samples"][name]["original"],
        "num_fewshot": found["n-shot"].get(name),
        "items_sha256": _items_digest(first),
        "metrics": metrics,
    }


def _choice_nll(sample: Mapping[str, Any]) -> float | None:
    """-log p(right choice) of a multiple-choice item, in nats; None for another kind of item.

    p is the softmax over the choices' log-likelihoods. It moves where the share of right answers does not yet.
    """
    right, answers = sample["target"], sample["filtered_resps"]
    if not isinstance(right, int) or not all(isinstance(answer, tuple) and len(answer) == 2 for answer in answers):
        return None
    return float(torch.tensor([answer[0] for answer in answers], dtype=torch.float64).log_softmax(0)[right].neg())


def _summary(items: Sequence[Any], seed: int) -> dict[str, Any]:
    n = len(items)
    stderr = float(np.std(items, ddof=1) / np.sqrt(n)) if n > 1 else None
    return {"value": sum(items) / n, "stderr": stderr, "interval": _interval(items, seed), "items": list(items)}


def _interval(values: Sequence[float], seed: int) -> list[float] | None:
    bounds = bootstrap_interval(values, seed=seed)
    return None if bounds is None else list(bounds)


def _number(value: Any) -> float | None:
    """A metric of one item; None where it is no number of its own (a pair for a corpus-wide quotient, a text)."""
    return float(value) if isinstance(value, (bool, int, float, np.number)) else None


def _items_digest(samples: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over the hashes of item, prompt and target that lm-evaluation-harness gives each item."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update("".join(sample[part] for part in ("doc_hash", "prompt_hash", "target_hash")).encode())
    return digest.hexdigest()


def _file_digest(path: str | Path) -> str:
    try:
        with Path(path).expanduser().open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise HarnessError(f"cannot read {str(path)!r}: {error.strerror}; expected the task's file (--data)") from error


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Tasks draw from the global generators; their streams go on afterwards as if nobody had."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """No bars or log lines of lm-evaluation-harness and `datasets` on the terminal."""
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
