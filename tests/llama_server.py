"""llama.cpp's own server in a process of its own: `python -m tests.llama_server MODEL.gguf [ADAPTER.gguf ...]`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MARK = "listening-at "


@contextmanager
def llama_server(model: Path, adapters: Sequence[Path] = (), *, threads: int = 1, cache_ram: int = 0) -> Iterator[str]:
    """The address of a running server, which is ended with the context; adapters have scale 0 at its start."""
    numbers = (str(threads), str(cache_ram))
    command = [sys.executable, "-m", "tests.llama_server", *numbers, str(model), *map(str, adapters)]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(MARK):
                yield line.removeprefix(MARK).strip()
                return
        raise AssertionError(f"the server ended with {process.wait()}")
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Serve until standard input ends."""
    import xllamacpp

    threads, cache_ram, model, *adapters = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 1024
    params.n_parallel = 2
    params.cpuparams.n_threads = int(threads)
    params.warmup = False
    params.cache_ram_mib = int(cache_ram)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in adapters]
    server = xllamacpp.Server(params)
    print(f"{MARK}{server.listening_address}", flush=True)
    while sys.stdin.read(1):
        time.sleep(0.1)


if __name__ == "__main__":
    main()
