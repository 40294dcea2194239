"""Every command and every kind of file with mutated inputs, in one process on a tiny model.

    python -m tests.fuzz_commands --inputs 20000 --seed 0

Each input is a good file or command line made wrong by a draw of its own seed. Wanted of each: an exit code of 0, 1, 2
or 130, no traceback, an end within seconds, and bounded memory. `--only NUMBER` runs a single one again and shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.serving_stand_in import StandIn

SECONDS = 60
"""Of one input; the longest takes some."""

MOST_BYTES = 1536 * 2**20
"""By which the process may grow while the inputs run."""

CODES = (0, 1, 2, 130)


class LateError(BaseException):
    """An input takes too long; no handler of the program may take it for one of its own errors."""


@dataclass
class Bad:
    """An input that did not end as it should.

    Attributes:
        number: Its place.
        kind: What was mutated.
        arguments: The command.
        what: What happened.
    """

    number: int
    kind: str
    arguments: list[str]
    what: str


class Fuzz:
    """Good files in a folder, and inputs made from them.

    Args:
        folder: Where everything is; nothing outside it is written.
        seed: Of all draws.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        from tests.fuzz_seeds import good_files, keep_model_loaded, never_serve

        self.folder, self.seed = folder, seed
        self.good = folder / "good"
        self.model = good_files(self.good)
        keep_model_loaded(self.model)
        never_serve()
        from tests.fuzz_cases import CASES
        from tests.fuzz_models import MODEL_CASES

        self.cases, self.home = (*CASES, *MODEL_CASES), folder / "home"
        self.typed = ""
        self._servers: dict[str, StandIn] = {}
        self.codes: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()

    def server(self, engine: str) -> StandIn:
        """A server of that kind, which runs until the process ends; it has no adapter but llama.cpp's."""
        from emendo.export import write_gguf_adapter
        from emendo.models import load
        from emendo.updates import ModelUpdate
        from tests.serving_stand_in import edited_weights, stand_in

        if engine not in self._servers:
            lm = load(self.model, device="cpu")
            world = contextlib.ExitStack().enter_context(stand_in(engine, lm))
            update = ModelUpdate.load(self.good / "first.safetensors")
            if engine == "llamacpp":
                adapter = write_gguf_adapter(lm, [update], self.folder / "adapters")
                world.adapters[adapter.name] = str(adapter.path)
                world.weights[adapter.name] = edited_weights(lm, [update])
            self._servers[engine] = world
        return self._servers[engine]

    def run(self, number: int, *, show: bool = False) -> Bad | None:
        """Run one input."""
        draw = random.Random(f"{self.seed}/{number}")
        kind, case = draw.choices(
            [(name, make) for name, make, _ in self.cases], [weight for *_, weight in self.cases]
        )[0]
        scratch = self.folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        os.chdir(scratch)
        self.typed = ""
        arguments = case(self, draw, scratch)
        begin = time.perf_counter()
        code, text, what = _called(arguments, self.typed)
        self.kinds[kind] += 1
        self.seconds[kind] += time.perf_counter() - begin
        if isinstance(code, int):
            self.codes[code] += 1
        if show:
            print(kind, arguments, code, text, sep="\n")
        if not what and code not in CODES:
            what = f"exit code {code!r}"
        if not what and "Traceback (most recent" in text:
            what = "a traceback was printed:\n" + text[-3000:]
        if not what and code and not text.strip():
            what = f"exit code {code} without a word"
        return Bad(number, kind, arguments, what) if what else None


def _called(arguments: list[str], typed: str) -> tuple[object, str, str]:
    """Exit code, everything that was printed, and what went wrong.

    Args:
        arguments: The command.
        typed: What stands on standard input.
    """
    from emendo.cli.app import run

    def late(*_: object) -> None:
        raise LateError

    said = io.StringIO()
    stdin, sys.stdin = sys.stdin, io.StringIO(typed)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    code: object = None
    what = ""
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            code = run(list(arguments))
    except LateError:
        what = f"more than {SECONDS} s:\n{traceback.format_exc()[-3000:]}"
    except BaseException:
        what = traceback.format_exc()[-4000:]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        sys.stdin = stdin
    return code, said.getvalue(), what


def peak() -> int:
    """Most bytes that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    """Run the inputs; exit code 1 where one ended badly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--kind", action="append", help="only these kinds; may be repeated")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EMENDO_HOME"] = f"{folder}/home"
        fuzz = Fuzz(Path(folder).resolve(), given.seed)
        fuzz.cases = tuple(case for case in fuzz.cases if given.kind is None or case[0] in given.kind)
        if given.only is not None:
            bad = fuzz.run(given.only, show=True)
            print(bad.what if bad else "ended well")
            os.chdir(here)
            return int(bad is not None)
        begin, start = peak(), time.perf_counter()
        found: list[Bad] = []
        for number in range(given.first, given.first + given.inputs):
            if (bad := fuzz.run(number)) is not None:
                found.append(bad)
                print(f"#{bad.number} {bad.kind} {bad.arguments}\n{bad.what}\n", flush=True)
        os.chdir(here)
    grown = peak() - begin
    print(f"{given.inputs:,} inputs, seed {given.seed}: {time.perf_counter() - start:,.0f} s, {len(found)} ended badly")
    print("exit codes:", dict(sorted(fuzz.codes.items())))
    print("by kind:", {kind: (count, round(fuzz.seconds[kind], 1)) for kind, count in fuzz.kinds.most_common()})
    print(f"memory: {grown / 2**20:,.0f} MiB more at its peak than at first; bound {MOST_BYTES / 2**20:,.0f}")
    return int(bool(found) or grown > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
