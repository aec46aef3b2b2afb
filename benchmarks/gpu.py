"""How fast a GPU decodes steered rows: ours, a well-made batch of 32, larger batches, transformers' continuous batching.

    python -m benchmarks.gpu                                    Llama-3.1-8B's shape with random weights, one GPU
    python -m benchmarks.gpu --shape tiny --batches 4 8         a small shape, on a CPU too

One process and one model. Every contestant is warmed up, then timed with all new tokens and with one; the difference is the
decoding of the others, free of reading prompts and of setting up. No token stops a row. Beside the speed stands the share of the
roofline: the least time of a step by the rates that this device showed in this run, over the time it took.

What this does not know: real weights, so what is written is noise, and the column `= plain`, the share of tokens equal to plain
`generate`'s, is low in bfloat16, where ties of noise fall otherwise; with --dtype float32 it should be 100 %. Rows of different
lengths, which a queue fills up and a fixed batch waits for. Peak memory on a CPU is that of the whole process so far.
"""

import argparse
import gc
import json
import math
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.contest import peak_bytes
from benchmarks.contestants.decoding import Case, Run, captured_graphs, continuous, ours, plain
from benchmarks.prepare import conditions, counted, layers
from benchmarks.roofline import Rates, cached_positions, least_step, mean_prefixes, measured_rates, synchronize
from benchmarks.table import aligned
from benchmarks.work import Answers, Prompt, Work
from crystallized_safety.engines.memory import is_out_of_memory
from crystallized_safety.models import LanguageModel, from_parts

__all__ = ["CONTESTANTS", "Result", "build", "cases", "main"]

SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "initializer_range": 0.02,
    },
    "tiny": {
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
    },
}
HEAD = 24
"""Tokens that all prompts begin with, as a chat template does."""


@dataclass(frozen=True)
class Contestant:
    """`shares` says that rows of one prompt read its cached positions once together, `steers` that each row has its condition."""

    title: str
    opened: Callable[[LanguageModel, Case], AbstractContextManager[Run]]
    shares: bool = False
    steers: bool = True
    cuda_only: bool = False


CONTESTANTS = {
    "plain": Contestant("plain generate, hook", plain),
    "continuous": Contestant("transformers' continuous batching, unsteered", continuous, steers=False),
    "ours": Contestant("ours", ours, shares=True),
    "graphs": Contestant("ours, CUDA graphs", captured_graphs, shares=True, cuda_only=True),
}


@dataclass(frozen=True)
class Result:
    """One contestant at one batch size. `tokens_per_second` is of decoding, `whole_per_second` with prompts and set-up.

    `equal` is the share of tokens equal to plain generate's, None for who does not steer.
    """

    contestant: str
    batch: int
    rows: int
    tokens_per_second: float
    whole_per_second: float
    step_seconds: float
    least_seconds: float
    bound: str
    peak_bytes: int
    equal: float | None
    notes: tuple[str, ...]

    @property
    def of_roofline(self) -> float:
        """The least time of a step over the time it took."""
        return self.least_seconds / self.step_seconds


@dataclass(frozen=True)
class Failed:
    """One contestant at one batch size without a measurement, and why."""

    contestant: str
    batch: int
    why: str


def main(words: Sequence[str] | None = None) -> None:
    asked = _asked(words)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if asked.device == "auto" else asked.device)
    fallback = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, asked.dtype if asked.dtype != "auto" else fallback)
    rates = measured_rates(device, dtype)
    lm = build(asked.shape, device, dtype)
    results = list(_results(lm, asked, rates))
    print(_table(results, lm, asked, rates))
    if asked.json:
        asked.json.write_text(json.dumps(_told(results, lm, asked, rates), indent=2) + "\n", "utf-8")


def build(shape: str, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """A model of that shape with random normal weights, made on the device, with a tokenizer of two words and no stop token."""
    config = LlamaConfig(**SHAPES[shape], bos_token_id=None, eos_token_id=None, pad_token_id=0, use_cache=True)
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    words = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    return from_parts(model, tokenizer, f"{shape}, random weights")


def cases(
    lm: LanguageModel,
    batches: Sequence[int],
    *,
    rounds: int,
    prompt_tokens: int,
    new_tokens: int,
    n_layers: int,
) -> Iterator[Case]:
    """For each batch size `rounds` × batch rows; a condition has as many prompts as the smallest batch has rows."""
    drawn, n_prompts, vocabulary = random.Random(0), min(batches), lm.model.config.vocab_size
    head, *tails = (
        tuple(drawn.randrange(2, vocabulary) for _ in range(length))
        for length in (HEAD, *[prompt_tokens - HEAD] * max(batches))
    )
    prompts = tuple(Prompt(f"prompt {index}", (*head, *tail)) for index, tail in enumerate(tails))
    chosen = sorted(set(layers(lm.n_layers, n_layers)))
    generator = torch.Generator().manual_seed(0)
    vectors = {one: torch.randn(lm.d_model, generator=generator) / math.sqrt(lm.d_model) for one in chosen}
    for batch in batches:
        n_conditions = rounds * batch // n_prompts
        doses = [0.5 * (1 + index) for index in range(-(-n_conditions // len(chosen)))]
        _, *steered = conditions(chosen, doses)
        whole = Work(
            model=lm.name,
            n_layers=lm.n_layers,
            positions="last-prompt-token-on",
            prompts=prompts[:batch],
            conditions=tuple(steered[:rounds]),
            new_tokens=new_tokens,
            stop_ids=(),
            pad_id=lm.pad_id,
            threads=torch.get_num_threads(),
        )
        mixed = replace(whole, prompts=prompts[:n_prompts], conditions=tuple(steered[:n_conditions]))
        yield Case(batch, whole, mixed, vectors)
