"""A stand-in for vLLM, SGLang or llama.cpp's server: their endpoints with a model's own numbers, and every fault."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from emendo.models import EditableModel
from emendo.updates import edited_weight
from emendo.updates.update import ModelUpdate

FAULTS = ("error", "drop", "junk", "redirect", "slow")
"""What can go wrong with an answer."""


@dataclass
class StandIn:
    """State of the server.

    Attributes:
        engine: Which one it plays.
        lm: Its base.
        weights: Edited weights by the name of the adapter; a name that is not there computes as the base.
        address: Where it listens.
        adapters: Path by name of what is loaded.
        scales: llama.cpp's, by name.
        calls: Method, path and body of every request, in order.
        fault: Told of every request; a name of `FAULTS` breaks its answer.
        offset: Added to every log-probability of an adapter.
        key: The API key that it wants.
        known: What has been computed.
        remembered: Tokens of a prompt that llama.cpp has in memory when it is asked again.
    """

    engine: str
    lm: EditableModel
    weights: dict[str, Any] = field(default_factory=dict)
    address: str = ""
    adapters: dict[str, str] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    fault: Callable[[str, Any], str | None] = lambda path, body: None
    offset: float = 0.0
    key: str | None = None
    known: dict[Any, torch.Tensor] = field(default_factory=dict)
    remembered: int = 0

    def kinds(self) -> list[str]:
        """What was asked, in order, several questions of one kind once."""
        found: list[str] = []
        for _, path, body in self.calls:
            kind = kind_of(path, body)
            if found[-1:] != [kind]:
                found.append(kind)
        return found

    def log_probs(self, ids: list[int], adapter: str | None) -> torch.Tensor:
        """[tokens, vocab]: what is said after each token."""
        offset, key = 0.0 if adapter is None else self.offset, (id(self.lm), tuple(ids), adapter)
        if key in self.known:
            return self.known[key] + offset
        with self.lm.isolated(self.weights.get(adapter or "", {}), edited=True) as lm, torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        self.known[key] = logits.double().log_softmax(-1)
        return self.known[key] + offset


def kind_of(path: str, body: Any) -> str:
    """A word for a request."""
    if path in ("/v1/models",) or (path == "/lora-adapters" and body is None):
        return "look"
    if path == "/lora-adapters":
        return "switch"
    if "unload" in path:
        return f"unload {body['lora_name']}"
    if "load" in path:
        return f"load {body['lora_name']}"
    if path == "/props":
        return "slots"
    if path == "/completion" and "lora" not in body:
        return "clear" if "id_slot" in body else "as a client"
    if path == "/completion":
        active = [row for row in body["lora"] if row["scale"]]
        return "ask adapter" if active else "ask base"
    name = body.get("lora_path") if path == "/generate" else body["model"]
    return "ask adapter" if str(name).startswith("emendo-") else "ask base"


def edited_weights(lm: EditableModel, updates: Sequence[ModelUpdate]) -> dict[int, Any]:
    """W₀ + ΣΔ of every edited layer."""
    parts = [part for update in updates for part in update.layers]
    return {
        layer: edited_weight(lm.base_weight(layer), [part for part in parts if part.layer == layer])
        for layer in sorted({part.layer for part in parts})
    }


@contextmanager
def stand_in(engine: str, lm: EditableModel) -> Iterator[StandIn]:
    """A running server on a free port of the loopback device."""
    world = StandIn(engine, lm)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"world": world}))
    world.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield world
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    world: StandIn

    def log_message(self, *args: Any) -> None:
        """No lines on standard error."""

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0)))))

    def _serve(self, body: Any) -> None:
        world = self.world
        world.calls.append((self.command, self.path, body))
        fault = world.fault(self.path, body)
        if world.key is not None and self.headers.get("Authorization") != f"Bearer {world.key}":
            self._answer(401, {"error": {"message": "Unauthorized"}})
        elif fault == "error":
            self._answer(500, {"error": {"message": "out of memory"}})
        elif fault == "drop":
            self.close_connection = True
            self.connection.close()
        elif fault == "junk":
            self._answer(200, "<html>hello</html>")
        elif fault == "redirect":
            self.send_response(307)
            self.send_header("Location", "http://127.0.0.2:9/elsewhere")
            self.end_headers()
        elif fault == "slow":
            time.sleep(1.0)
        else:
            self._answer(*getattr(self, world.engine)(body))

    def _answer(self, status: int, document: Any) -> None:
        content = document if isinstance(document, str) else json.dumps(document)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content.encode())

    # ---- vLLM and SGLang -----------------------------------------------------------------------------------

    def vllm(self, body: Any) -> tuple[int, Any]:
        if self.path == "/v1/completions":
            return self._prompt_scores(body["prompt"], body["model"])
        return self._adapters(body, "/v1")

    def sglang(self, body: Any) -> tuple[int, Any]:
        if self.path == "/generate":
            rows, name = body["input_ids"], body["lora_path"]
            if name is not None and name not in self.world.adapters:
                return 400, {"error": {"message": f"unknown adapter {name}"}}
            values = self.world.log_probs(rows, name)
            logs = [[None, rows[0], None]]
            logs += [[float(values[at, token]), token, None] for at, token in enumerate(rows[1:])]
            return 200, {"text": "", "meta_info": {"input_token_logprobs": logs}}
        return self._adapters(body, "")

    def _prompt_scores(self, ids: list[int], model: str) -> tuple[int, Any]:
        if model != "base" and model not in self.world.adapters:
            return 404, {"error": {"message": f"The model `{model}` does not exist."}}
        values = self.world.log_probs(ids, None if model == "base" else model)
        rows: list[Any] = [None]
        for at, token in enumerate(ids[1:]):
            top = int(values[at].argmax())
            rows.append({str(one): {"logprob": float(values[at, one]), "rank": 1} for one in {top, token}})
        return 200, {"choices": [{"text": "", "prompt_logprobs": rows}]}

    def _adapters(self, body: Any, prefix: str) -> tuple[int, Any]:
        loaded = self.world.adapters
        if self.path == "/v1/models":
            rows = [{"id": "base", "root": "base", "parent": None}]
            return 200, {"data": rows + [{"id": n, "root": path, "parent": "base"} for n, path in loaded.items()]}
        name = body["lora_name"]
        if self.path == f"{prefix}/load_lora_adapter":
            if name in loaded:
                return 400, {"message": f"The lora adapter '{name}' has already been loaded."}
            if not (Path(body["lora_path"]) / "adapter_config.json").is_file():
                return 404, {"message": f"No adapter found for {body['lora_path']}"}
            loaded[name] = body["lora_path"]
            return 200, f"Success: LoRA adapter '{name}' added successfully."
        if self.path == f"{prefix}/unload_lora_adapter" and loaded.pop(name, None):
            return 200, f"Success: LoRA adapter '{name}' removed successfully."
        return 404, {"message": f"The lora adapter '{name}' cannot be found."}

    # ---- llama.cpp -----------------------------------------------------------------------------------------

    def llamacpp(self, body: Any) -> tuple[int, Any]:
        world = self.world
        names = list(world.adapters)
        if self.path == "/props":
            return 200, {"total_slots": 2}
        if self.path == "/completion" and "lora" not in body:
            return 200, {"tokens_evaluated": 9, "timings": {"cache_n": world.remembered, "prompt_n": 9}}
        if self.path == "/completion":
            active = [names[row["id"]] for row in body["lora"] if row["scale"]]
            values = world.log_probs(body["prompt"], active[0] if active else None)[-1]
            token = body["logit_bias"][0][0]
            return 200, {"completion_probabilities": [{"id": token, "logprob": float(values[token])}]}
        if body is not None:
            world.scales.update({names[row["id"]]: float(row["scale"]) for row in body})
            return 200, {"success": True}
        rows = [{"id": i, "path": world.adapters[n], "scale": world.scales.get(n, 0.0)} for i, n in enumerate(names)]
        return 200, rows
