"""What llama.cpp's server, vLLM and SGLang are asked, and how their answers are read.

An engine makes requests and reads answers; it sends nothing, so that what would be sent can be shown first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Protocol, TypeAlias

from emendo.errors import InputError, ServerError
from emendo.serving.client import Call

Ids: TypeAlias = tuple[int, ...]

OURS = "emendo-"
"""Beginning of the names of Emendo's adapters."""

_FORCED = 1e3
"""Bias that makes llama.cpp sample a token, whose probability it reports as it was without the bias."""

_ALL = 1_000_000
"""More tokens than any vocabulary has."""


@dataclass(frozen=True)
class Question:
    """What is asked: the log-probability of every token of an answer.

    Attributes:
        prompt: Token ids.
        answer: Token ids.
        partial: Those of the answer that are no text alone, being part of a character.
    """

    prompt: Ids
    answer: Ids
    partial: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Served:
    """An adapter that a server has.

    Attributes:
        name: How requests name it; of llama.cpp the name of its file.
        path: Where the server read it.
        id: llama.cpp's number of it.
        scale: llama.cpp's scale of it, for requests that name none.
    """

    name: str
    path: str
    id: int = -1
    scale: float = 0.0


@dataclass(frozen=True)
class ServerState:
    """What a server has.

    Attributes:
        base: Name of the unedited model in requests.
        adapters: By name.
    """

    base: str
    adapters: Mapping[str, Served] = field(default_factory=dict)


class Engine(Protocol):
    """One kind of server.

    Attributes:
        name: As users give it.
        form: Of the adapters that it takes: ``"gguf"`` or ``"peft"``.
        loads: Whether it takes an adapter while it runs.
    """

    name: str
    form: str
    loads: bool

    def look(self) -> Call:
        """Asks for what it has."""

    def state(self, answer: Any) -> ServerState:
        """What it has."""

    def load(self, name: str, path: str) -> Call:
        """Makes it read an adapter."""

    def unload(self, name: str) -> Call:
        """Makes it forget an adapter."""

    def score(self, state: ServerState, adapter: str | None, question: Question) -> list[Call]:
        """Asks for the log-probabilities of an answer's tokens; None: of the base."""

    def scores(self, answers: Sequence[Any], question: Question) -> list[float]:
        """Log-probabilities of an answer's tokens, in nats."""


class LlamaCpp:
    """llama.cpp's server: adapters are read at its start, and each has a scale that can be set at any time.

    Source: tools/server/README.md of llama.cpp: GET and POST /lora-adapters, /completion with `lora` and `n_probs`.
    """

    name, form, loads = "llamacpp", "gguf", False

    def look(self) -> Call:
        """Asks for its adapters and their scales."""
        return Call("GET", "/lora-adapters")

    def state(self, answer: Any) -> ServerState:
        """Adapters by the name of their file."""
        try:
            rows = [
                Served(PurePath(row["path"]).stem, row["path"], int(row["id"]), float(row["scale"])) for row in answer
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise _strange(self, self.look(), answer) from error
        return ServerState("", {row.name: row for row in rows})

    def load(self, name: str, path: str) -> Call:
        """It takes none while it runs.

        Raises:
            InputError: Says how to start it.
        """
        raise InputError(
            f"this server has no adapter {name}: llama.cpp reads adapters at its start. Start one beside it with the "
            f"same model and: --lora-scaled {path}:0 (0: it computes as the base until it is pushed to), push to that "
            "one, and send the clients there"
        )

    def unload(self, name: str) -> Call:
        """It keeps what it read; see `load`."""
        raise InputError(f"llama.cpp keeps the adapter {name} until it is started again; set its scale to 0")

    def set_scales(self, state: ServerState, scales: Mapping[str, float]) -> Call:
        """Sets the scales of adapters at once; those that are not named keep theirs."""
        rows = [{"id": row.id, "scale": scales.get(row.name, row.scale)} for row in state.adapters.values()]
        return Call("POST", "/lora-adapters", rows)

    def slots(self) -> Call:
        """Asks how many requests it computes at once, each in a slot that keeps its last prompt."""
        return Call("GET", "/props")

    def clear(self, answer: Any) -> list[Call]:
        """Lets every slot forget its prompt: keys and values in it were computed with other scales.

        The server does so only where a request brings scales of its own, not where those of all are set (its issue
        26207). A slot in use is cleared once it is free.
        """
        try:
            count = int(answer["total_slots"])
        except (KeyError, TypeError, ValueError) as error:
            raise _strange(self, self.slots(), answer) from error
        nothing = {"prompt": [0], "n_predict": 1, "cache_prompt": False}
        return [Call("POST", "/completion", {**nothing, "id_slot": slot}) for slot in range(count)]

    def ask_as_clients(self) -> Call:
        """A prompt without scales, that the server may keep."""
        return Call("POST", "/completion", {"prompt": "One two three four five six seven eight nine", "n_predict": 1})

    def remembered(self, answer: Any) -> int:
        """How many tokens of a prompt it had not to compute."""
        try:
            timings = answer["timings"]
            return int(timings.get("cache_n", int(answer["tokens_evaluated"]) - int(timings["prompt_n"])))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _strange(self, self.ask_as_clients(), answer) from error

    def score(self, state: ServerState, adapter: str | None, question: Question) -> list[Call]:
        """A request a token, each with scales of its own, so that nobody else's answer changes.

        The token is sampled by a bias, and its probability reported. One that is part of a character is not reported:
        there a letter is sampled by a grammar, and the token found among all.
        """
        lora = [{"id": row.id, "scale": float(row.name == adapter)} for row in state.adapters.values()]
        asked = {"n_predict": 1, "temperature": 0.0, "cache_prompt": False, "lora": lora}
        calls = []
        for i, token in enumerate(question.answer):
            body = {"prompt": [*question.prompt, *question.answer[:i]], **asked}
            if token in question.partial:
                body |= {"n_probs": _ALL, "grammar": "root ::= [a-zA-Z ]+"}
            else:
                body |= {"n_probs": 1, "logit_bias": [[token, _FORCED]]}
            calls.append(Call("POST", "/completion", body))
        return calls

    def scores(self, answers: Sequence[Any], question: Question) -> list[float]:
        """Of each token, as they are before any bias or grammar."""
        found = []
        for token, said in zip(question.answer, answers, strict=True):
            try:
                (row,) = said["completion_probabilities"]
                if token in question.partial:
                    row = next(one for one in row["top_logprobs"] if one["id"] == token)
                if row["id"] != token:
                    raise ValueError(f"token {row['id']} and not {token}")
                found.append(_finite(row["logprob"]))
            except (KeyError, TypeError, ValueError, StopIteration) as error:
                raise _strange(self, Call("POST", "/completion"), said, error) from error
        return found


class Vllm:
    """vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora.

    Source: vLLM's documentation, "LoRA Adapters" (serving adapters at run time) and `prompt_logprobs`.
    """

    name, form, loads = "vllm", "peft", True

    def look(self) -> Call:
        """Asks for its models; adapters are among them."""
        return Call("GET", "/v1/models")

    def state(self, answer: Any) -> ServerState:
        """The base is the model without a parent."""
        try:
            rows = answer["data"]
            base = next(str(row["id"]) for row in rows if not row.get("parent"))
            found = [Served(str(row["id"]), str(row.get("root", ""))) for row in rows if row.get("parent")]
        except (KeyError, TypeError, AttributeError, StopIteration) as error:
            raise _strange(self, self.look(), answer) from error
        return ServerState(base, {row.name: row for row in found})

    def load(self, name: str, path: str) -> Call:
        """Makes it read the folder of an adapter."""
        return Call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})

    def unload(self, name: str) -> Call:
        """Makes it forget an adapter."""
        return Call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def score(self, state: ServerState, adapter: str | None, question: Question) -> list[Call]:
        """The answer as part of the prompt, whose log-probabilities are asked for."""
        body = {"model": adapter or state.base, "prompt": _text(question), "max_tokens": 1, "temperature": 0.0}
        return [Call("POST", "/v1/completions", {**body, "prompt_logprobs": 1})]

    def scores(self, answers: Sequence[Any], question: Question) -> list[float]:
        """Of the last tokens of the prompt."""
        try:
            rows = answers[0]["choices"][0]["prompt_logprobs"]
            if len(rows) != len(_text(question)):
                raise ValueError(f"{len(rows)} tokens and not {len(_text(question))}")
            own = rows[len(question.prompt) :]
            return [_finite(row[str(token)]["logprob"]) for row, token in zip(own, question.answer, strict=True)]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _strange(self, Call("POST", "/v1/completions"), answers[0], error) from error


class SgLang(Vllm):
    """SGLang with --enable-lora, --max-lora-rank and --lora-target-modules.

    Source: SGLang's documentation, "LoRA Serving" (dynamic loading) and the native API's `/generate`.
    """

    name = "sglang"

    def load(self, name: str, path: str) -> Call:
        """Makes it read the folder of an adapter."""
        return Call("POST", "/load_lora_adapter", {"lora_name": name, "lora_path": path})

    def unload(self, name: str) -> Call:
        """Makes it forget an adapter."""
        return Call("POST", "/unload_lora_adapter", {"lora_name": name})

    def score(self, state: ServerState, adapter: str | None, question: Question) -> list[Call]:
        """The answer as part of the prompt, whose log-probabilities are asked for."""
        sampling = {"max_new_tokens": 1, "temperature": 0.0}
        body = {"input_ids": _text(question), "sampling_params": sampling, "return_logprob": True}
        return [Call("POST", "/generate", {**body, "logprob_start_len": 0, "lora_path": adapter})]

    def scores(self, answers: Sequence[Any], question: Question) -> list[float]:
        """Of the last tokens of the prompt; each row has a log-probability and a token."""
        try:
            rows = answers[0]["meta_info"]["input_token_logprobs"][-len(question.answer) :]
            if tuple(row[1] for row in rows) != question.answer:
                raise ValueError(f"tokens {[row[1] for row in rows]} and not {list(question.answer)}")
            return [_finite(row[0]) for row in rows]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _strange(self, Call("POST", "/generate"), answers[0], error) from error


ENGINES: dict[str, Engine] = {engine.name: engine for engine in (LlamaCpp(), Vllm(), SgLang())}


def engine_named(name: str) -> Engine:
    """An engine by its name.

    Raises:
        InputError: There is none.
    """
    if name not in ENGINES:
        raise InputError(f"unknown engine {name!r}; expected one of {', '.join(ENGINES)} (--engine)")
    return ENGINES[name]


def _text(question: Question) -> list[int]:
    return [*question.prompt, *question.answer]


def _finite(value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"a log-probability of {value!r}")
    return float(value)


def _strange(engine: Engine, call: Call, answer: Any, error: Exception | None = None) -> ServerError:
    text = " ".join(str(answer).split())
    why = f" ({error})" if error is not None else ""
    return ServerError(
        f"{call.method} {call.path}: the answer is not one of {engine.name}{why}: {text[:200]}; expected a server of "
        "that kind (--engine)"
    )
