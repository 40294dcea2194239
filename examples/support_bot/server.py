"""llama.cpp's server in a process of its own: `python server.py MODEL.gguf [ADAPTER.gguf ...]`.

It prints where it listens, and ends when its standard input does, so with the process that started it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class Server:
    """A server that runs.

    Args:
        model: GGUF file.
        adapters: LoRA adapters, which llama.cpp reads at its start only; with scale 0 they do nothing yet.
    """

    def __init__(self, model: Path, adapters: Sequence[Path] = ()) -> None:
        command = [sys.executable, __file__, str(model), *map(str, adapters)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        lines = (line.strip() for line in self.process.stdout)
        self.address = next((line for line in lines if line.startswith("http://")), "")
        if not self.address:
            raise RuntimeError(f"the server ended with {self.process.wait()}; is xllamacpp installed?")

    def end(self) -> None:
        """End it."""
        self.process.communicate()


def main() -> None:
    """Serve until standard input ends."""
    import xllamacpp

    model, *adapters = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = model, ["127.0.0.1"], 0
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.warmup = 1024, 2, 2, False
    params.verbosity, params.cache_ram_mib = 0, 0
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in adapters]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
