"""Time and memory of every stage of an edit on models of GPT-J-6B and Llama-3-8B shape, with random weights.

    python benchmarks/large_models.py --shape llama3-8b --device cuda --dtype bfloat16 --out large_models-llama3-8b.json

Nothing is downloaded: the model is made from its configuration on the device, the tokenizer from a few invented facts.
What random weights leave out is what depends on what a model knows: losses mean nothing, so every target search makes
the same number of evaluations (loss_threshold and kl_threshold are 0, argmax_steps is none) and only its time is kept.
Second moments are counted over few tokens, fewer than keys have components; a ridge stands in for the missing ones
where they are factorised. `solve` has moments of its own, as in benchmarks/solve.py. `tokens_per_fact` is how many
tokens a search runs for a fact in each evaluation: 25.5 for CounterFact facts with SmolLM2's tokenizer, other here.

*Cost* and floor are as in benchmarks/targets.py, with matrix products in the model's dtype on its device.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import moments as moments_benchmark
from benchmarks import solve as solve_benchmark
from benchmarks.machine import describe_machine, gemm_gflops, peak_memory_mib
from benchmarks.targets import measure
from emendo import EditableModel, EditRequest, wrap
from emendo.editing.contexts import prefix_contexts
from emendo.editing.keys import extract_keys
from emendo.editing.pipeline import plan_edit
from emendo.editing.value_search import search_values
from emendo.errors import InfeasibleError
from emendo.methods import ResolvedMethod, resolve_method
from emendo.shapes import Moment
from emendo.solve import PreparedLayer, prepare
from emendo.statistics import MomentSpec, collect_moments

_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_LLAMA3 = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
_GPTJ = {"n_embd": 4096, "n_layer": 28, "n_head": 16, "n_positions": 2048, "rotary_dim": 64, "vocab_size": 50400}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gptj-6b": ("gptj", {**_GPTJ, "tie_word_embeddings": False}),
    "llama3-8b": ("llama", {**_LLAMA3, "tie_word_embeddings": False}),
    "tiny": (
        "llama",
        {
            **_LLAMA3,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 2000,
            "max_position_embeddings": 128,
        },
    ),
    "tiny-gptj": (
        "gptj",
        {**_GPTJ, "n_embd": 64, "n_layer": 8, "n_head": 4, "n_positions": 128, "rotary_dim": 8, "vocab_size": 2000},
    ),
}
"""model_type and settings of every shape; the tiny ones show that the benchmark runs."""

_FIRST = "Alina Bruno Clara Dario Edith Felix Greta Hugo Irma Jonas Karin Ludwig Marta Niels Olga Pavel"
_MIDDLE = "Maria Anton Louise Peter Sophie Karl Helene Viktor"
_LAST = "Andersen Bellini Castellan Dubrovsky Eriksson Fontaine Grimaldi Hoffmann Ivanova Jansen Keller Lindqvist"
_PROMPTS = ("{} was born in the city of", "{}, who works in the field of", "The native language of {} is", "{} died in")
_TARGETS = ("Vienna", "physics", "Italian", "Lisbon")
NAMES = tuple(" ".join(parts) for parts in product(*(names.split() for names in (_FIRST, _MIDDLE, _LAST))))

FIXED_LENGTH = {"target.loss_threshold": 0.0, "target.argmax_steps": None, "target.kl_threshold": 0.0}
"""Stop rules that never hold."""

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_BATCHES = [1, 10, 100, 1000]


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    device, dtype = torch.device(arguments.device), _DTYPES[arguments.dtype]
    stages = Stages(device)
    lm = stages.run("build", lambda: build(arguments.shape, device, dtype, invented(arguments.n)))
    requests, contexts = invented(arguments.n), prefix_contexts(lm, "fixed", 0)
    settings = {**FIXED_LENGTH, "target.steps": arguments.steps, "contexts.scheme": "fixed"}
    settings |= {"target.batch_size": arguments.batch_size}
    method = resolve_method(arguments.method, lm, layers=arguments.layers, settings=settings)
    search_values(lm, requests[:2], contexts, method.config.layers[-1], replace(method.config.target, steps=2))
    tiny = arguments.shape.startswith("tiny")
    rate = partial(gemm_gflops, dtype, 256 if tiny else 2048 if device.type == "cpu" else 8192, device=device)
    document = {
        "benchmark": "large_models",
        "machine": describe_machine(),
        "setting": {**vars(arguments), "out": None, "layers": list(method.config.layers), "contexts": len(contexts)},
        "parameters": sum(parameter.numel() for parameter in lm.model.parameters()),
        "notes": __doc__.split("\n\n")[2].replace("\n", " "),
        **edit(lm, requests, contexts, method, arguments.tokens, stages, rate),
    }
    del lm  # the solver is measured without the model beside it
    document["solve"] = stages.run("solve", lambda: bench_solver(document["d_in"], arguments.batches, device, tiny))
    document["stages"] = stages.found
    text = json.dumps(document, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="bfloat16")
    parser.add_argument("-n", type=int, default=24, help="requests (default: %(default)s)")
    parser.add_argument("--method", default="memit", help="default: %(default)s, which no two keys can make infeasible")
    parser.add_argument("--layers", type=int, nargs="+", help="default: those of the method for the model")
    parser.add_argument("--steps", type=int, default=25, help="evaluations of a target search (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=24, help="requests searched together (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16384, help="keys of the second moments (default: %(default)s)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=_BATCHES, help="n of the solves (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.n <= len(NAMES):
        parser.error(f"-n {arguments.n}: there are names for 1 to {len(NAMES)} requests")
    return arguments


def edit(
    lm: EditableModel,
    requests: list[EditRequest],
    contexts: tuple[str, ...],
    method: ResolvedMethod,
    tokens: int,
    stages: Stages,
    rate: Callable[[], float],
) -> dict[str, Any]:
    """Every stage of one edit on its own, then the whole plan; the model comes out as it went in."""
    config = method.config
    layers = list(config.written_layers)
    stages.run("weights digest", lm.weights_digest)  # a session takes it before it writes
    spec = MomentSpec(tokens=tokens)
    found = stages.run("second moments", lambda: collect_moments(lm, layers, spec))
    searched = stages.run("targets", lambda: measure(lm, requests, contexts, config.layers[-1], config.target, 1, rate))
    stages.run("keys", lambda: extract_keys(lm, requests, contexts, layers, config.keys.average))
    means = {layer: moment.mean() for layer, moment in found.items()}
    del found
    prepared, ridge = stages.run("prepare", lambda: with_ridge(means, method))
    whole: dict[str, Any] = {"preservation_ridge": ridge}
    try:
        plan = stages.run("plan", lambda: plan_edit(lm, requests, method, prepared))
        whole |= {"seconds": plan.seconds, "update_mib": plan.update.nbytes / 2**20}
    except InfeasibleError as error:  # keys of random weights may be too much alike for equality
        whole["refused"] = str(error)
    flops = moments_benchmark.floor_flops(lm, layers, tokens)
    seconds = {name: stage["seconds"] for name, stage in stages.found.items()}
    return {
        "d_in": lm.d_in(layers[0]),
        "second_moments": {
            "tokens": tokens,
            "tokens_per_second": tokens / seconds["second moments"],
            "floor_gflop": {name: value / 1e9 for name, value in flops.items()},
        },
        # What the loss came to says nothing with random weights.
        "targets": {name: value for name, value in searched.items() if name not in ("nll", "argmax_share")},
        "keys": {"seconds_per_fact": seconds["keys"] / len(requests), "layers": len(layers)},
        "prepare": {"seconds_per_layer": seconds["prepare"] / len(layers)},
        "plan": whole,
    }


def with_ridge(means: dict[int, Moment], method: ResolvedMethod) -> tuple[dict[int, PreparedLayer], float]:
    """The factorised metrics of moments that are short of tokens, all with one ridge: a hundredth of their mean."""
    preservation = method.config.preservation
    mean = max(float(moment.diagonal().mean()) for moment in means.values())
    ridge = max(preservation.ridge, 0.01 * max(preservation.weight, 1.0) * mean)
    preservation = replace(preservation, ridge=ridge)
    return {layer: prepare(moment, preservation) for layer, moment in means.items()}, ridge


def bench_solver(d_in: int, batches: list[int], device: torch.device, tiny: bool) -> dict[str, Any]:
    """As benchmarks/solve.py does it, at the model's width."""
    solve_benchmark.prepare(solve_benchmark.random_moment(256, device), solve_benchmark.Preservation())  # not timed
    rate = solve_benchmark.gemm_rate(256 if tiny else 2048, device)
    return {"gemm_float64_gflops": rate, **solve_benchmark.bench_layer(d_in, batches, rate, device)}


class Stages:
    """Wall time and peak memory of one stage after another.

    On a CPU memory is the largest resident size of the process so far; on a GPU, what its tensors took at most in this
    stage, the model included.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.found: dict[str, dict[str, float]] = {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        begin = time.perf_counter()
        result = work()
        if on_gpu:
            torch.cuda.synchronize(self.device)
        stage = {"seconds": time.perf_counter() - begin, "peak_rss_mib": peak_memory_mib()}
        if on_gpu:
            stage["peak_cuda_mib"] = torch.cuda.max_memory_allocated(self.device) / 2**20
        self.found[name] = stage
        print(
            f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in stage.items()), file=sys.stderr, flush=True
        )
        return result


def invented(n: int) -> list[EditRequest]:
    """Facts about people who do not exist."""
    # 97 has no factor in common with the number of names: none comes twice, and neighbours share no part.
    names = [NAMES[97 * index % len(NAMES)] for index in range(n)]
    return [
        EditRequest(_PROMPTS[index % len(_PROMPTS)], name, _TARGETS[index % len(_TARGETS)])
        for index, name in enumerate(names)
    ]


def build(shape: str, device: torch.device, dtype: torch.dtype, requests: list[EditRequest]) -> EditableModel:
    """A model of a shape with random weights, made on the device."""
    model_type, settings = SHAPES[shape]
    config = AutoConfig.for_model(model_type, **settings, **_TOKENS)
    tokenizer = build_tokenizer(config.vocab_size, requests)
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return wrap(model.eval(), tokenizer, name=f"random-{shape}")


def build_tokenizer(vocab_size: int, requests: list[EditRequest]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the requests, with as many entries as the model has rows."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([f"{request.text} {request.target}." for request in requests], trainer)
    # The rest of the vocabulary is never in a text; sampled text is made of tokens, not of characters.
    definition = json.loads(core.to_str())
    vocabulary = definition["model"]["vocab"]
    vocabulary |= {f"<unused {index}>": index for index in range(len(vocabulary), vocab_size)}
    core = Tokenizer.from_str(json.dumps(definition))
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")


if __name__ == "__main__":
    main()
