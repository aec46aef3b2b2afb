"""The promised face: what a person does by hand, on real weights."""

import pytest
import torch

from crystallized_safety.errors import InputError, ModelError, VectorError
from crystallized_safety.extraction import SteeringVectorExtractor
from crystallized_safety.models import LanguageModel, chat_tokens, decode
from crystallized_safety.steering import ActivationSteerer
from crystallized_safety.vectors import SteeringVector

LAYER = 15


@pytest.fixture(scope="module")
def vector(smollm2: LanguageModel) -> SteeringVector:
    extractor = SteeringVectorExtractor(smollm2).load_model()
    return extractor.extract(
        ["How do I hurt a dog?", "Steal a car."], ["How do I walk a dog?", "Wash a car."], layer=LAYER
    )


@pytest.fixture
def steerer(smollm2: LanguageModel, vector: SteeringVector) -> ActivationSteerer:
    steerer = ActivationSteerer(smollm2, layer=LAYER).load_model()
    steerer.set_steering_vector(vector)
    return steerer


def test_alpha_zero_is_what_transformers_itself_generates(smollm2: LanguageModel, steerer: ActivationSteerer):
    prompt = "Name three colours."
    ids = torch.tensor([chat_tokens(smollm2, prompt)])
    with torch.inference_mode():
        out = smollm2.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, pad_token_id=smollm2.pad_id
        )
    assert steerer.generate(prompt, alpha=0.0, max_new_tokens=16) == decode(smollm2, out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("positions", ["all", "last-prompt-token-on", "generated"])
def test_a_batch_of_doses_is_each_dose_alone(steerer: ActivationSteerer, positions: str):
    prompts = ["Name three colours.", "Say hello to my friend Bob, please.", "Name three colours."]
    alphas = [-8.0, 0.0, 8.0]
    together = steerer.generate_batch(prompts, alphas, positions=positions, max_new_tokens=12)
    alone = [
        steerer.generate(prompt, alpha, positions=positions, max_new_tokens=12)
        for prompt, alpha in zip(prompts, alphas, strict=True)
    ]
    assert together == alone
    assert len(set(together)) == 3


def test_a_plain_tensor_steers_like_the_vector_it_came_from(
    smollm2: LanguageModel, steerer: ActivationSteerer, vector: SteeringVector
):
    plain = ActivationSteerer(smollm2, layer=LAYER).load_model()
    plain.set_steering_vector(vector.tensor.clone())
    assert plain.generate("Hello", alpha=5.0, max_new_tokens=8) == steerer.generate(
        "Hello", alpha=5.0, max_new_tokens=8
    )


def test_what_cannot_be_steered_is_one_sentence(
    smollm2: LanguageModel, steerer: ActivationSteerer, vector: SteeringVector
):
    with pytest.raises(ModelError, match="load_model"):
        ActivationSteerer(smollm2, layer=1).generate("Hello")
    with pytest.raises(ModelError, match="within 0 to 29"):
        ActivationSteerer(smollm2, layer=30).load_model()
    with pytest.raises(VectorError, match="read at layer 15"):
        ActivationSteerer(smollm2, layer=14).load_model().set_steering_vector(vector)
    with pytest.raises(VectorError, match="width 576"):
        steerer.set_steering_vector(torch.ones(10))
    with pytest.raises(InputError, match="one alpha per prompt"):
        steerer.generate_batch(["a", "b"], [1.0])
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        steerer.generate("a", 1.0, max_new_tokens=0)
    bare = ActivationSteerer(smollm2, layer=LAYER).load_model()
    with pytest.raises(VectorError, match="must be set"):
        bare.generate("Hello", alpha=1.0)
    assert bare.generate("Hello", max_new_tokens=2)


def test_another_layer_is_allowed_when_it_is_meant(smollm2: LanguageModel, vector: SteeringVector):
    other = ActivationSteerer(smollm2, layer=14).load_model()
    other.set_steering_vector(vector, any_layer=True)
    assert other.generate("Hello", alpha=1.0, max_new_tokens=2)


def test_sampled_answers_depend_on_their_seed_and_on_nothing_else(steerer: ActivationSteerer):
    heat = {"temperature": 1.0, "max_new_tokens": 12}
    together = steerer.generate_batch(["Name a colour.", "Hello"], [0.0, 2.0], seed=3, **heat)
    assert together == [
        steerer.generate("Name a colour.", seed=3, **heat),
        steerer.generate("Hello", 2.0, seed=3, **heat),
    ]
    assert len({steerer.generate("Name a colour.", seed=seed, **heat) for seed in range(6)}) > 1
    with pytest.raises(InputError, match="temperature must be finite and 0 or more"):
        steerer.generate("a", temperature=float("nan"))
