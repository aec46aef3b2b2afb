"""The engine's tokens are those of the naive way: one row at a time, the whole sequence anew each step, one plain hook."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from conftest import ARCHITECTURES
from crystallized_safety.engines import Generated, Row, TransformersEngine
from crystallized_safety.interventions import edit
from crystallized_safety.models import LanguageModel

Tiny = Callable[[str], LanguageModel]


@dataclass(frozen=True)
class Asked:
    """A row as a person would say it, so that the reference shares no code with the engine."""

    tokens: tuple[int, ...]
    layer: int
    vector: torch.Tensor
    operator: str
    dose: float
    positions: str

    def row(self, key: str, max_new_tokens: int) -> Row:
        one = edit(self.vector, layer=self.layer, operator=self.operator, dose=self.dose, positions=self.positions)
        return Row(key, self.tokens, (one,) if one.acts else (), max_new_tokens)


def naive(lm: LanguageModel, asked: Asked, max_new_tokens: int) -> tuple[int, ...]:
    unit, length = asked.vector / asked.vector.norm(), asked.vector.norm()
    first = {"all": 0, "last-prompt-token-on": len(asked.tokens) - 1, "generated": len(asked.tokens)}[asked.positions]

    def hook(_block: object, _inputs: object, output: object) -> object:
        stream = (output[0] if isinstance(output, tuple) else output).clone()
        for position in range(first, stream.shape[1]):
            along = stream[0, position] @ unit
            if asked.operator == "add":
                stream[0, position] += asked.dose * asked.vector
            elif asked.operator == "ablate":
                stream[0, position] -= asked.dose * along * unit
            else:
                stream[0, position] += (asked.dose * length - along) * unit
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handle = lm.blocks[asked.layer].register_forward_hook(hook)
    tokens = list(asked.tokens)
    try:
        with torch.inference_mode():
            while len(tokens) < len(asked.tokens) + max_new_tokens:
                token = int(lm.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
                if token in lm.stop_ids:
                    break
                tokens.append(token)
    finally:
        handle.remove()
    return tuple(tokens[len(asked.tokens) :])


def draw(lm: LanguageModel, n: int, seed: int) -> list[Asked]:
    """Rows of every operator and position, a few prompts of different lengths, layers and doses at random."""
    generator = random.Random(seed)
    prompts = [tuple(generator.randrange(3, 40000) for _ in range(length)) for length in (2, 5, 9, 9, 14)]
    vectors = [
        torch.randn(lm.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3)
    ]
    kinds = [
        (operator, positions)
        for operator in ("add", "ablate", "clamp")
        for positions in ("all", "last-prompt-token-on", "generated")
    ]
    return [
        Asked(
            tokens=generator.choice(prompts),
            layer=generator.randrange(lm.n_layers),
            vector=generator.choice(vectors),
            operator=kinds[index % len(kinds)][0],
            dose=generator.choice([-4.0, -1.0, 0.0, 1.0, 4.0]),
            positions=kinds[index % len(kinds)][1],
        )
        for index in range(n)
    ]


def generate(lm: LanguageModel, rows: list[Row], batch_size: int = 64) -> dict[str, Generated]:
    done = [*TransformersEngine(lm, batch_size).generate(rows)]
    assert len(done) == len(rows)
    return {one.key: one for one in done}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_mixed_batch_gives_the_tokens_of_the_naive_way(tiny: Tiny, architecture: str, batch_size: int):
    lm = tiny(architecture)
    asked = draw(lm, 27, seed=3)
    done = generate(lm, [one.row(str(index), 6) for index, one in enumerate(asked)], batch_size)
    expected = {str(index): naive(lm, one, 6) for index, one in enumerate(asked)}
    assert {key: one.tokens for key, one in done.items()} == expected
    assert len(set(expected.values())) > 15, "the rows must differ, or the comparison says nothing"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_rows_that_stop_leave_others_enter_and_the_rest_go_on(tiny: Tiny, architecture: str, batch_size: int):
    lm = tiny(architecture)
    asked = draw(lm, 18, seed=5)
    free = generate(lm, [one.row(str(index), 8) for index, one in enumerate(asked)])
    stops = {free[str(index)].tokens[index % 7 + 1] for index in range(0, 18, 4)}
    stopping = replace(lm, stop_ids=frozenset(stops))
    rows = [one.row(str(index), 3 + index % 6) for index, one in enumerate(asked)]
    done = generate(stopping, rows, batch_size)
    for index, one in enumerate(asked):
        expected = naive(stopping, one, 3 + index % 6)
        assert done[str(index)].tokens == expected
        assert done[str(index)].finished == (len(expected) < 3 + index % 6)
    assert any(one.finished for one in done.values())
    assert not all(one.finished for one in done.values())


@pytest.mark.parametrize(
    ("positions", "calls"), [("all", 1 + 1 + 3), ("last-prompt-token-on", 1 + 3), ("generated", 3)]
)
def test_the_hook_fires_on_the_prompt_and_on_every_decode_step(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, positions: str, calls: int
):
    """Four new tokens are four steps: the last prompt token, then three generated ones; `all` has the prefill too."""
    import crystallized_safety.residual as residual

    lm, seen = tiny("llama"), []
    plain = residual.edit_stream
    monkeypatch.setattr(
        residual, "edit_stream", lambda stream, **rest: seen.append(stream.shape[1]) or plain(stream, **rest)
    )
    asked = Asked((5, 6, 7, 8), 1, torch.ones(lm.d_model, dtype=torch.float64), "add", 0.1, positions)
    assert len(generate(replace(lm, stop_ids=frozenset()), [asked.row("a", 4)])["a"].tokens) == 4
    assert len(seen) == calls
    assert seen == [3] * (positions == "all") + [1] * (len(seen) - (positions == "all"))


def test_a_prompt_that_no_condition_touches_is_prefilled_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    lm, shapes = tiny("llama"), []
    forward = lm.model.forward
    monkeypatch.setattr(
        lm.model, "forward", lambda **rest: shapes.append(tuple(rest["input_ids"].shape)) or forward(**rest)
    )
    vector = torch.ones(lm.d_model, dtype=torch.float64)
    rows = [
        Asked(tokens, layer, vector, "add", dose, "last-prompt-token-on").row(f"{tokens}{layer}{dose}", 2)
        for tokens in ((5, 6, 7, 8), (9, 10, 11, 12))
        for layer in range(4)
        for dose in (-1.0, 0.0, 1.0)
    ]
    generate(lm, rows)
    assert shapes[0] == (2, 3), "24 rows of two prompts are two prefills"
    assert shapes[1] == (24, 1)


def test_real_weights_in_float32_batched_equal_one_by_one(smollm2: LanguageModel):
    from crystallized_safety.models import chat_tokens

    prompts = ["Name a colour.", "How far away is the moon from the earth?", "Hello"]
    rows = [Row(prompt, chat_tokens(smollm2, prompt), (), 12) for prompt in prompts]
    together = generate(smollm2, rows)
    alone = {row.key: generate(smollm2, [row])[row.key] for row in rows}
    assert together == alone
    assert all(one.tokens for one in together.values())
