"""Real small models for every test: tiny ones of five architectures from configs, and SmolLM2 with its real weights."""

import os
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
)

from crystallized_safety.models import LanguageModel, from_parts, load

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start; this one is told below

ARCHITECTURES = ("llama", "mistral", "qwen2", "gemma2", "phi3")


def tiny_config(architecture: str) -> PretrainedConfig:
    """Four layers, width 32, grouped-query attention, a vocabulary as large as SmolLM2's tokenizer."""
    shape = {
        "vocab_size": 49152,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.4,
        "pad_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    configs: dict[str, Callable[..., PretrainedConfig]] = {
        "llama": LlamaConfig,
        "mistral": MistralConfig,
        "qwen2": Qwen2Config,
        "gemma2": Gemma2Config,
        "phi3": Phi3Config,
    }
    extra = {"head_dim": 8} if architecture == "gemma2" else {}
    return configs[architecture](**shape, **extra)


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    """SmolLM2-135M-Instruct with its real weights and tokenizer, through the real loading path."""
    return load("smollm2-135m")


@pytest.fixture(scope="session")
def tiny(smollm2: LanguageModel) -> Callable[[str], LanguageModel]:
    """A random float64 model of an architecture, with SmolLM2's tokenizer; the same one each time."""

    @lru_cache
    def build(architecture: str) -> LanguageModel:
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture), dtype=torch.float64)
        return from_parts(model, smollm2.tokenizer, f"tiny-{architecture}")

    return build


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run in parallel processes; small models are faster on one thread each."""
    torch.set_num_threads(1)
