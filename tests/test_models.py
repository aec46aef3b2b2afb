"""A loaded model and its chat template: real weights and a real tokenizer, and tiny models of seven architectures."""

import copy
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.utils import logging as transformers_logging

import crystallized_safety.models as public
from crystallized_safety.errors import ModelError
from crystallized_safety.models import (
    LanguageModel,
    chat_tokens,
    decode,
    find_blocks,
    from_parts,
    load,
    n_post_instruction,
    template_sha256,
    tokenizer_sha256,
    weights_fingerprint,
)
from crystallized_safety.models.registry import registry

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {
    "vocab_size": 64,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 2,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEOX = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL, head_dim=8),
    "phi3": Phi3Config(**SMALL),
    "gpt2": GPT2Config(**GPT),
    "gpt_neox": GPTNeoXConfig(**NEOX),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=3, num_experts_per_tok=1),
}
CHATML = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
QUESTION = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Splits at spaces and, like Llama's, puts a BOS in front of its own accord."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "x", "User:", "Assistant:", "hello", "there", "Be", "kind"]
    rules = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rules.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=rules, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


@pytest.fixture
def tiny(word_tokenizer) -> LanguageModel:
    torch.manual_seed(0)
    return from_parts(AutoModelForCausalLM.from_config(CONFIGS["llama"]), word_tokenizer, "tiny")


def with_template(lm: LanguageModel, template: str | None) -> LanguageModel:
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = template
    return from_parts(lm.model, tokenizer, "changed")


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_blocks_are_the_modules_that_write_the_residual_stream(kind, word_tokenizer) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind])
    lm = from_parts(model, word_tokenizer, kind)
    assert (lm.n_layers, len(lm.blocks), lm.d_model) == (3, 3, 16)
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: seen.append(out if torch.is_tensor(out) else out[0]))
        for block in lm.blocks
    ]
    with torch.no_grad():
        states = model(torch.tensor([[1, 5, 7]]), output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    assert [tuple(out.shape) for out in seen] == [(1, 3, 16)] * 3
    # The last entry of hidden_states is read after the final norm, the others are the blocks' outputs.
    for layer in (0, 1):
        torch.testing.assert_close(seen[layer], states[layer + 1], rtol=0, atol=0)


def test_blocks_of_a_vision_model_are_those_of_its_text_decoder() -> None:
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(text_config=CONFIGS["llama"], vision_config=vision, image_token_index=3)
    model = LlavaForConditionalGeneration(config)
    assert type(find_blocks(model)[0]).__name__ == "LlamaDecoderLayer"


@pytest.mark.parametrize("where", ["", "model", "model.layers.0"])
def test_other_lists_of_the_same_length_are_not_taken_for_blocks(where) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    size = 99 if where != "model" else 1
    model.get_submodule(where).a_decoy = nn.ModuleList(nn.Linear(size, size) for _ in range(3))
    assert find_blocks(model) is model.model.layers


def test_a_model_without_a_list_of_blocks_is_refused(word_tokenizer) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    model.model.layers = nn.Sequential(*model.model.layers)
    with pytest.raises(ModelError, match="3 decoder blocks in one module list, but LlamaForCausalLM does not"):
        from_parts(model, word_tokenizer, "odd")


def test_a_model_in_memory_is_frozen_and_named(tiny) -> None:
    assert not tiny.model.training
    assert not any(weight.requires_grad for weight in tiny.model.parameters())
    assert (tiny.name, tiny.source, tiny.sha256, tiny.has_chat_template) == ("tiny", "memory", None, False)
    assert (tiny.dtype, tiny.device, tiny.pad_id, tiny.stop_ids) == (torch.float32, torch.device("cpu"), 0, {2})


def test_the_real_model_is_what_the_registry_says(smollm2) -> None:
    entry = registry()["smollm2-135m"]
    assert (smollm2.n_layers, smollm2.d_model, smollm2.sha256) == (entry.n_layers, entry.d_model, entry.sha256)
    assert (smollm2.name, smollm2.dtype, smollm2.device.type) == ("smollm2-135m", torch.float32, "cpu")
    assert smollm2.source in {str(source) for source in entry.sources}
    assert sum(weight.numel() for weight in smollm2.model.parameters()) == 134_515_008
    assert {smollm2.tokenizer.decode([token]) for token in smollm2.stop_ids} == {"<|im_end|>", "<|endoftext|>"}


def test_the_real_model_answers(smollm2) -> None:
    ids = chat_tokens(smollm2, "What is the capital of France?")
    mask = torch.ones(1, len(ids), dtype=torch.long)
    out = smollm2.model.generate(
        torch.tensor([ids]), attention_mask=mask, max_new_tokens=16, do_sample=False, pad_token_id=smollm2.pad_id
    )
    answer = decode(smollm2, out[0, len(ids) :].tolist())
    assert "Paris" in answer
    assert "<|im_end|>" not in answer


def test_a_dtype_can_be_chosen_and_a_second_load_says_nothing(smollm2, capfd) -> None:
    lines: list[str] = []
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    again = load("smollm2-135m", dtype="bfloat16", report=lines.append)
    assert again.dtype == torch.bfloat16
    assert (again.source, again.sha256, lines) == (smollm2.source, smollm2.sha256, [])
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_a_folder_is_loaded_by_its_path_and_a_broken_one_is_refused(tiny, tmp_path) -> None:
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    lm = load(str(tmp_path))
    assert (lm.source, lm.n_layers) == (f"folder {tmp_path}", 3)
    assert chat_tokens(lm, "hello there") == chat_tokens(tiny, "hello there")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="must hold a causal language model"):
        load(str(tmp_path))


def test_a_device_that_is_not_there_is_named_before_anything_is_loaded() -> None:
    with pytest.raises(ModelError, match="device 'tpu9' must be one that torch can use"):
        load("llama-70b", device="tpu9")


def test_chat_tokens_are_the_template_with_its_default_system_message(smollm2) -> None:
    expected = smollm2.tokenizer(CHATML + QUESTION, add_special_tokens=False)["input_ids"]
    assert chat_tokens(smollm2, "Why?") == tuple(expected)


def test_a_system_message_replaces_the_default(smollm2) -> None:
    text = "<|im_start|>system\nBe brief.<|im_end|>\n" + QUESTION
    expected = smollm2.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert chat_tokens(smollm2, "Why?", "Be brief.") == tuple(expected)


@pytest.mark.parametrize(
    "head", ["{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}", ""]
)
def test_a_template_that_refuses_or_drops_the_system_message_gets_it_in_the_user_turn(smollm2, head) -> None:
    lm = with_template(smollm2, head + "{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}")
    assert decode(lm, chat_tokens(lm, "Why?", "Be brief.")) == "[Be brief.\n\nWhy?]"
    assert decode(lm, chat_tokens(lm, "Why?")) == "[Why?]"


@pytest.mark.parametrize("n_written", [0, 1, 2])
def test_there_is_exactly_one_bos_whatever_template_and_tokenizer_do(tiny, n_written) -> None:
    lm = with_template(tiny, "{{ bos_token + ' ' }}" * n_written + "{{ messages[0].content }}")
    assert lm.has_chat_template
    assert chat_tokens(lm, "hello there") == (1, 7, 8)


def test_a_model_that_has_no_bos_gets_none(tiny) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    lm = from_parts(tiny.model, tokenizer, "no bos")
    assert chat_tokens(lm, "hello there") == (5, 7, 8, 6)


def test_without_a_chat_template_the_plain_one_is_used(tiny) -> None:
    assert not tiny.has_chat_template
    assert chat_tokens(tiny, "hello there") == (1, 5, 7, 8, 6)
    assert chat_tokens(tiny, "hello", "Be kind") == (1, 5, 9, 10, 7, 6)


def test_braces_in_a_prompt_are_text(smollm2) -> None:
    plain = with_template(smollm2, None)
    assert decode(plain, chat_tokens(plain, "f'{x}' {prompt}")) == "User: f'{x}' {prompt}\n\nAssistant:"


def test_post_instruction_tokens_are_the_templates_tail(smollm2) -> None:
    tail = smollm2.tokenizer("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    assert n_post_instruction(smollm2) == len(tail) == 6
    for prompt, last in (("Why?", "?"), ("Count to 7", "7"), ("Say yes", "yes")):
        ids = chat_tokens(smollm2, prompt)
        assert list(ids[-6:]) == tail
        assert smollm2.tokenizer.decode([ids[-7]]).strip() == last
    plain = with_template(smollm2, None)
    assert smollm2.tokenizer.decode(chat_tokens(plain, "Why?")[-n_post_instruction(plain) :]).strip() == "Assistant:"


def test_decoding_keeps_spaces_and_drops_special_tokens(smollm2) -> None:
    text = "It 's  odd , isn 't it ?"
    ids = smollm2.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert decode(smollm2, [*ids, *smollm2.stop_ids]) == text


def test_known_end_of_turn_markers_and_every_listed_eos_stop(tiny) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>", "<end_of_turn>"]})
    model = copy.deepcopy(tiny.model)
    model.generation_config.eos_token_id = [2, 4]
    added = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<end_of_turn>"])
    assert from_parts(model, tokenizer, "t").stop_ids == {2, 4, *added}


def test_fingerprints_change_with_what_they_name_and_with_nothing_else(tiny, smollm2) -> None:
    assert weights_fingerprint(smollm2) == f"gguf-sha256:{smollm2.sha256}"
    other = copy.deepcopy(tiny.model)
    same = from_parts(other, tiny.tokenizer, "same")
    assert weights_fingerprint(same) == weights_fingerprint(tiny)
    other.model.layers[2].mlp.down_proj.weight.data[0, 0] += 1
    assert weights_fingerprint(same) != weights_fingerprint(tiny)
    before = tokenizer_sha256(tiny)
    tiny.tokenizer(["hello", "hello there"], padding=True)
    assert tokenizer_sha256(tiny) == before
    assert template_sha256(with_template(tiny, "a")) != template_sha256(with_template(tiny, "b"))
    assert len({tokenizer_sha256(tiny), tokenizer_sha256(smollm2)}) == 2


def test_every_public_name_exists_and_importing_costs_no_torch() -> None:
    assert all(getattr(public, name) is not None for name in public.__all__)
    code = "import sys, crystallized_safety.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError):
        _ = public.nothing
