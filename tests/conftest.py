"""Real small models for every test: tiny ones of five architectures from configs, and SmolLM2 with its real weights."""

import os
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from crystallized_safety.models import LanguageModel, from_parts, load

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start; this one is told below

OWN_SHAPE: dict[str, dict[str, object]] = {
    "gemma2": {"head_dim": 8, "sliding_window": 7},
    "gemma3_text": {"head_dim": 8, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "mistral": {"sliding_window": 7},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False, "tie_word_embeddings": False},
}
"""What an architecture needs besides the common shape; windows are shorter than the prompts of the tests."""

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
        "gpt2": GPT2Config,
        "gpt_neox": GPTNeoXConfig,
        "olmo2": Olmo2Config,
        "falcon": FalconConfig,
        "qwen3": Qwen3Config,
        "qwen3_moe": Qwen3MoeConfig,
        "gemma3_text": Gemma3TextConfig,
    }
    return configs[architecture](**{**shape, **OWN_SHAPE.get(architecture, {})})


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
        if architecture.endswith("moe"):
            model.set_experts_implementation("eager")  # the others know no float64
        return from_parts(model, smollm2.tokenizer, f"tiny-{architecture}")

    return build


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run in parallel processes; small models are faster on one thread each."""
    torch.set_num_threads(1)
