"""The recorded stream is what the blocks put out, and a direction is the difference of its means."""

from collections.abc import Callable

import pytest
import torch

from conftest import ARCHITECTURES
from crystallized_safety.errors import InputError, ModelError
from crystallized_safety.extraction import SteeringVectorExtractor, difference_in_means, record, record_prompts
from crystallized_safety.models import LanguageModel, chat_tokens

Tiny = Callable[[str], LanguageModel]
PROMPTS = [(1, 5, 6), (1, 9, 10, 11, 12, 13), (1, 7, 8, 9), (1, 30, 31), (1, 400, 401, 402, 403, 404)]


def _outputs(lm: LanguageModel, prompt: tuple[int, ...]) -> dict[int, torch.Tensor]:
    """What each block puts out for one prompt, by hooks of the test's own."""
    outputs: dict[int, torch.Tensor] = {}

    def keep(layer: int, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        outputs[layer] = output[0] if isinstance(output, tuple) else output

    handles = [
        block.register_forward_hook(lambda _block, _inputs, output, layer=layer: keep(layer, output))
        for layer, block in enumerate(lm.blocks)
    ]
    with torch.inference_mode():
        lm.model(input_ids=torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_of_any_lengths_equals_one_by_one_at_every_layer_and_position(tiny: Tiny, architecture: str):
    lm = tiny(architecture)
    together = record(lm, PROMPTS, positions=(-1, -3))
    assert together.stream.shape == (5, 4, 2, 32)
    for index, prompt in enumerate(PROMPTS):
        outputs = _outputs(lm, prompt)
        for layer, output in outputs.items():
            expected = output[0, [len(prompt) - 1, len(prompt) - 3]]
            torch.testing.assert_close(together.stream[index, layer], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("layers", [[2], [0, 1, 2, 3]])
def test_each_prompt_costs_one_forward_pass_whatever_the_number_of_layers(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, layers: list[int]
):
    lm, rows = tiny("llama"), []
    forward = lm.model.forward
    monkeypatch.setattr(lm.model, "forward", lambda **given: rows.append(len(given["input_ids"])) or forward(**given))
    record(lm, PROMPTS, layers=layers)
    assert sum(rows) == len(PROMPTS)


def test_only_the_positions_asked_for_are_kept(tiny: Tiny):
    recording = record(tiny("llama"), PROMPTS, layers=[1, 3], positions=(-2,))
    assert recording.stream.shape == (5, 2, 1, 32)
    assert torch.equal(recording.at(3, -2), recording.stream[:, 1, 0])


def test_the_difference_in_means_is_summed_in_float64():
    big = torch.full((3000, 2), 1e6, dtype=torch.float32)
    big[:, 1] += torch.arange(3000) * 0.125
    gap = difference_in_means(big, torch.zeros(10, 2))
    assert gap.dtype == torch.float64
    assert gap.tolist() == [1e6, 1e6 + 0.125 * 2999 / 2]


def test_the_extractor_gives_the_mean_difference_of_the_last_prompt_token(smollm2: LanguageModel):
    harmful, harmless = (
        ["How do I hurt my neighbour?", "Break a window."],
        ["How do I greet my neighbour?", "Open a window.", "Hello"],
    )
    vector = SteeringVectorExtractor(smollm2).load_model().extract(harmful, harmless, layer=15)
    means = []
    for texts in (harmful, harmless):
        streams = []
        for text in texts:
            with torch.inference_mode():
                output = smollm2.model(input_ids=torch.tensor([chat_tokens(smollm2, text)]), output_hidden_states=True)
            streams.append(output.hidden_states[16][0, -1].double())
        means.append(torch.stack(streams).mean(dim=0))
    torch.testing.assert_close(vector.tensor.double(), means[0] - means[1], atol=1e-3, rtol=1e-4)
    assert (vector.layer, vector.position, vector.site, vector.sign) == (15, -1, "block_output", "harmful - harmless")
    assert vector.gap_norm == pytest.approx(float(vector.norm()), rel=1e-6)
    assert vector.provenance["n_harmful"] == "2"


def test_swapping_the_prompts_flips_the_sign(smollm2: LanguageModel):
    a, b = ["Break a window."], ["Open a window."]
    extractor = SteeringVectorExtractor(smollm2).load_model()
    assert torch.allclose(extractor.extract(a, b, layer=3).tensor, -extractor.extract(b, a, layer=3).tensor)


def test_bad_input_is_one_sentence(smollm2: LanguageModel, tiny: Tiny):
    extractor = SteeringVectorExtractor(smollm2)
    with pytest.raises(ModelError, match="load_model"):
        extractor.extract(["a"], ["b"], layer=1)
    extractor.load_model()
    for harmful, harmless in (([], ["b"]), (["a"], [])):
        with pytest.raises(InputError, match="at least one prompt of each kind"):
            extractor.extract(harmful, harmless, layer=1)
    for layer in (-1, 30):
        with pytest.raises(ModelError, match="within 0 to 29"):
            extractor.extract(["a"], ["b"], layer=layer)
    for position in (0, 3, -4):
        with pytest.raises(InputError, match="count from the end"):
            record(tiny("llama"), PROMPTS, positions=(position,))
    with pytest.raises(InputError, match="at least one prompt"):
        record_prompts(smollm2, [])


def test_a_stream_that_is_not_finite_is_an_error(tiny: Tiny):
    lm = tiny("mistral")
    weight = lm.model.model.layers[2].mlp.down_proj.weight
    kept = weight.data[0, 0].item()
    weight.data[0, 0] = float("inf")
    try:
        with pytest.raises(ModelError, match="NaN or infinity"):
            record(lm, PROMPTS)
    finally:
        weight.data[0, 0] = kept
