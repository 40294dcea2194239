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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emendo.errors import HarnessError
from emendo.evaluate.bootstrap import quantile_interval, resampled_means
from emendo.io.extras import pip_install
from emendo.io.plain_file import check_plain
from emendo.io.versions import versions
from emendo.models import EditableModel
from emendo.progress import Watched, watching

VERSION = 2
"""Of a result. 2: a perplexity is exp(-mean) as its task has it, not a mean, and every metric says its aggregation."""

_RESAMPLES = 1000


@dataclass(frozen=True)
class Aggregation:
    """How a task makes one number of the values of its items: a monotone function of their mean.

    Attributes:
        of_mean: That function.
        slope: Its derivative, from its value.
        sign: Whether the number goes up with the items.
    """

    of_mean: Callable[[Any], Any]
    slope: Callable[[float], float]
    sign: int


AGGREGATIONS = {
    "mean": Aggregation(lambda mean: mean, lambda value: 1.0, 1),
    "exp(-mean)": Aggregation(lambda mean: np.exp(-mean), lambda value: -value, -1),
}


def general_ability(
    lm: EditableModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    data: str | Path | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: Watched = None,
) -> dict[str, Any]:
    """Run tasks on the model as it is now. Model, tokenizer and random generators are left as they were.

    Args:
        lm: The model, edited or not; nothing is loaded or copied.
        tasks: Names or YAML files of tasks, as lm-evaluation-harness knows them.
        limit: Most items of each task, from its beginning; None takes all.
        num_fewshot: Examples in front of each item; None leaves it to the task.
        include_path: Folder with further tasks. Its YAML files may name Python functions, which are run.
        data: File that a task of your own reads, handed to it as the entry ``data`` of its metadata.
        batch_size: Sequences in one forward pass.
        seed: Of the choice of examples, of whatever a task samples, and of the bootstrap.
        progress: Told about the stage "harness".

    Returns:
        ``tasks`` by name with version, items, their hash, and each metric with its value, standard error, 95 % interval
        (bootstrap over items), the value of every item and how the one comes of the others: ``aggregation`` is
        ``"mean"``, or ``"exp(-mean)"`` for a perplexity over log-likelihoods. ``left_out`` names the metrics of a task
        that come of its items in another way, with the reason. ``settings``, ``versions`` and ``seconds``.
        Multiple-choice tasks have one metric more than they define, ``choice_nll``: -log p(right choice) among the
        choices, in nats.

    Raises:
        HarnessError: lm-evaluation-harness is not installed, or a task is unknown or cannot be read.
    """
    lm_eval = _imported()
    progress = watching(progress)
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
        with lm.isolated() as own, _seeded(seed), _unheard():
            loaded = _read_tasks(tasks, include_path, data, num_fewshot, seed)
            found = lm_eval.evaluate(
                _live(own, batch_size),
                loaded,
                limit=limit,
                bootstrap_iters=0,  # the intervals are ours, from the value of each item
            )
    finally:
        progress.finish()
    return {
        "format": "emendo.evaluate.harness",
        "version": VERSION,
        "tasks": {
            name: _task_result(name, found, _aggregations(loaded["tasks"][name]), seed)
            for name in sorted(found["samples"])
        },
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
        For each task and metric: both values, their difference with its 95 % interval (paired bootstrap over items),
        and for how many items the metric went up and down.

    Raises:
        HarnessError: The two are not of the same items, or of an Emendo that aggregated them otherwise.
    """
    if versions_found := {found.get("version") for found in (base, edited)} - {VERSION}:
        raise HarnessError(
            f"found results of version {versions_found.pop()!r}, expected {VERSION}: an earlier Emendo took the mean "
            "of every metric, also where the task does not; run the harness again"
        )
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
            how = AGGREGATIONS[before["aggregation"]]
            change = [how.sign * (b - a) for a, b in zip(before["items"], after["items"], strict=True)]
            interval = _interval(
                [before["items"], after["items"]],
                lambda means, how=how: how.of_mean(means[:, 1]) - how.of_mean(means[:, 0]),  # type: ignore[misc]
                base["settings"]["seed"],
            )
            rows.append(
                {
                    "task": name,
                    "metric": metric,
                    "n": task["n"],
                    "base": before["value"],
                    "edited": after["value"],
                    "difference": after["value"] - before["value"],
                    "interval": interval,
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
            f"general ability needs lm-evaluation-harness, which cannot be imported ({error}): {pip_install('harness')}"
        ) from error
    return lm_eval


def _live(lm: EditableModel, batch_size: int) -> Any:
    """The model in memory as lm-evaluation-harness sees one; the tokenizer is a copy, since it sets a pad token."""
    from lm_eval.models.huggingface import HFLM

    tokenizer = copy.deepcopy(lm.tokenizer)
    if not lm.knows(tokenizer.pad_token_id) and lm.knows(tokenizer.eos_token_id):
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, but it is read
    return HFLM(
        pretrained=lm.model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        max_length=lm.max_length,
        # Otherwise in the model's dtype: 8 bits of a log-probability in bfloat16.
        softmax_dtype="float32" if lm.dtype in (torch.bfloat16, torch.float16) else None,
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


def _aggregations(task: Any) -> dict[str, str]:
    """How the task makes one number of each metric's items: a key of `AGGREGATIONS`, or what it calls its own way."""
    from lm_eval.api import metrics

    known = {metrics.mean: "mean", metrics.perplexity: "exp(-mean)"}
    return {
        metric: known.get(function, str(getattr(function, "__name__", function)))
        for metric, function in task.aggregation().items()
    }


def _task_result(name: str, found: Mapping[str, Any], aggregations: Mapping[str, str], seed: int) -> dict[str, Any]:
    """One task: what was asked, and every metric that the items determine."""
    filters: dict[str, list[Mapping[str, Any]]] = {}
    for sample in found["samples"][name]:
        filters.setdefault(sample["filter"], []).append(sample)
    metrics, left_out = {}, {}
    for label, samples in filters.items():
        suffix = "" if len(filters) == 1 else f" ({label})"
        for metric in samples[0]["metrics"]:
            how = aggregations.get(metric, "mean")  # which is what the harness takes where a task says nothing
            items = [number for sample in samples if (number := _number(sample[metric])) is not None]
            if how not in AGGREGATIONS:
                left_out[metric + suffix] = f"the task makes it of its items by {how!r}, which is no mean of theirs"
            elif len(items) < len(samples):
                left_out[metric + suffix] = "its items are no numbers"
            else:
                metrics[metric + suffix] = _summary(metric, items, how, seed)
        choices = [nll for sample in samples if (nll := _choice_nll(sample)) is not None]
        if len(choices) == len(samples):
            metrics["choice_nll" + suffix] = _summary("choice_nll", choices, "mean", seed)
    first = next(iter(filters.values()))
    return {
        "version": found["versions"].get(name),
        "n": len(first),
        "n_total": found["n-samples"][name]["original"],
        "num_fewshot": found["n-shot"].get(name),
        "items_sha256": _items_digest(first),
        "metrics": metrics,
        "left_out": left_out,
    }


def _choice_nll(sample: Mapping[str, Any]) -> float | None:
    """-log p(right choice) of a multiple-choice item, in nats; None for another kind of item.

    p is the softmax over the choices' log-likelihoods. It moves where the share of right answers does not yet.
    """
    right, answers = sample["target"], sample["filtered_resps"]
    if not isinstance(right, int) or not all(isinstance(answer, tuple) and len(answer) == 2 for answer in answers):
        return None
    if "acc_mutual_info" in sample["metrics"]:  # the choices once more follow, without the question
        answers = answers[: len(answers) // 2]
    if not 0 <= right < len(answers):
        return None
    return float(torch.tensor([answer[0] for answer in answers], dtype=torch.float64).log_softmax(0)[right].neg())


def _summary(metric: str, items: Sequence[float], aggregation: str, seed: int) -> dict[str, Any]:
    """A metric with its spread over items; the standard error of a function of a mean is to first order."""
    if not np.isfinite(items).all():
        raise HarnessError(
            f"{metric} of {int((~np.isfinite(items)).sum())} of {len(items)} items is not finite; the model's weights "
            "or activations overflow: roll an edit back, or load it in bfloat16 or float32 (--dtype)"
        )
    how, n = AGGREGATIONS[aggregation], len(items)
    value = float(how.of_mean(np.float64(sum(items) / n)))
    stderr = float(abs(how.slope(value)) * np.std(items, ddof=1) / np.sqrt(n)) if n > 1 else None
    interval = _interval([items], lambda means: how.of_mean(means[:, 0]), seed)
    return {"value": value, "stderr": stderr, "interval": interval, "items": list(items), "aggregation": aggregation}


def _interval(
    columns: Sequence[Sequence[float]], of_means: Callable[[np.ndarray], np.ndarray], seed: int
) -> list[float] | None:
    """95 % interval (percentile bootstrap over items) of a function of the columns' means; None for one item."""
    table = np.asarray(columns, dtype=np.float64).T
    bounds = quantile_interval(of_means(resampled_means(table, _RESAMPLES, seed)), 0.95) if len(table) > 1 else None
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
        at = Path(path).expanduser()
        check_plain(at)
        with at.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise HarnessError(f"cannot read {str(path)!r}: {error}; expected the task's file (--data)") from error


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
