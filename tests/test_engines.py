"""The engine's tokens and logits are those of the naive way, whatever the mix of rows and whatever is saved."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ARCHITECTURES
from crystallized_safety.engines import Generated, Row, Savings, Scored, ScoreRow, TransformersEngine
from crystallized_safety.engines import batch as batch_module
from crystallized_safety.errors import ModelError
from crystallized_safety.models import LanguageModel, chat_tokens
from naive import HEAD, Asked, Push, draw, naive, naive_logits, naive_logprobs

Tiny = Callable[[str], LanguageModel]
SAVINGS = [Savings(**{one.name: False}) for one in fields(Savings)]
OTHERS = ("gpt2", "gpt_neox", "olmo2", "falcon", "qwen3", "qwen3_moe", "gemma3_text")


def run(
    lm: LanguageModel, rows: list[Row | ScoreRow], batch_size: int = 64, savings: Savings | None = None
) -> dict[str, Generated | Scored]:
    done = [*TransformersEngine(lm, batch_size, savings=savings or Savings()).generate(rows)]
    assert len(done) == len(rows), "every row once"
    return {one.key: one for one in done}


def one_push(lm: LanguageModel, positions: str, *, layer: int = 1, dose: float = 1.0) -> Push:
    vector = torch.randn(lm.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return Push(layer, vector, "add", dose, positions)


@pytest.fixture(autouse=True)
def softmax_in_float64(monkeypatch: pytest.MonkeyPatch):
    """Eager attention (Gemma 2) rounds to float32 inside; without that, what is compared is ours."""
    plain = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype=None: plain(scores, dim=dim))


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *OTHERS])
def test_a_mixed_batch_gives_the_tokens_and_logits_of_the_naive_way(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, architecture: str
):
    """In small batches and large ones, with every saving and without any one of them."""
    lm = tiny(architecture)
    asked = draw(lm, 24, seed=3)
    expected = {str(index): naive(lm, one, 5) for index, one in enumerate(asked)}
    assert len(set(expected.values())) > 12, "the rows must differ, or the comparison says nothing"
    rows = [one.row(str(index), 5) for index, one in enumerate(asked)]
    seen: list[tuple[str, tuple[int, ...], torch.Tensor]] = []
    plain = batch_module.follow

    def follow(flights, logits, **rest):
        seen.extend((one.row.key, one.new, row.clone()) for one, row in zip(flights, logits, strict=True))
        return plain(flights, logits, **rest)

    monkeypatch.setattr(batch_module, "follow", follow)
    for batch_size, savings in [(4, Savings()), (64, Savings()), *((8, one) for one in SAVINGS)]:
        done = run(lm, rows, batch_size, savings)
        assert {key: one.tokens for key, one in done.items()} == expected, savings
    assert len(seen) >= 7 * sum(map(len, expected.values()))
    for key, new, logits in seen[::37]:
        torch.testing.assert_close(logits, naive_logits(lm, asked[int(key)], new), atol=1e-9, rtol=0)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    architecture=st.sampled_from(ARCHITECTURES),
    seed=st.integers(0, 10**6),
    batch_size=st.integers(1, 12),
    n_head=st.integers(0, 4),
    off=st.sets(st.sampled_from([one.name for one in fields(Savings)])),
    kinds=st.lists(st.sampled_from(["greedy", "sampled", "scored"]), min_size=7, max_size=7),
)
def test_any_mix_of_rows_gives_what_each_gives_alone(
    tiny: Tiny, architecture: str, seed: int, batch_size: int, n_head: int, off: set[str], kinds: list[str]
):
    lm = tiny(architecture)
    asked = draw(lm, 7, seed=seed, head=HEAD[:n_head])
    asked_for = [(5, 6, 7), (5, 6, 8), (5, 9), (10,)]
    made = {
        "greedy": lambda one, key: one.row(key, 4),
        "sampled": lambda one, key: one.row(key, 4, temperature=0.8, seed=int(key)),
        "scored": lambda one, key: one.score_row(key, asked_for),
    }
    rows = [made[kind](one, str(index)) for index, (one, kind) in enumerate(zip(asked, kinds, strict=True))]
    done = run(lm, rows, batch_size, Savings(**dict.fromkeys(off, False)))
    for index, (one, kind) in enumerate(zip(asked, kinds, strict=True)):
        came = done[str(index)]
        if kind == "scored":
            expected = [value for some in asked_for for value in naive_logprobs(lm, one, some)]
            assert [value for some in came.logprobs for value in some] == pytest.approx(expected, abs=1e-9, rel=0)
        else:
            heat = {"temperature": 0.8, "seed": index} if kind == "sampled" else {}
            assert came.tokens == naive(lm, one, 4, **heat)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_rows_that_stop_leave_others_enter_and_the_rest_go_on(tiny: Tiny, architecture: str, batch_size: int):
    lm = tiny(architecture)
    asked = draw(lm, 18, seed=5)
    free = run(lm, [one.row(str(index), 8) for index, one in enumerate(asked)])
    stops = {free[str(index)].tokens[index % 7 + 1] for index in range(0, 18, 4)}
    stopping = replace(lm, stop_ids=frozenset(stops))
    rows = [one.row(str(index), 3 + index % 6) for index, one in enumerate(asked)]
    done = run(stopping, rows, batch_size)
    for index, one in enumerate(asked):
        expected = naive(stopping, one, 3 + index % 6)
        assert done[str(index)].tokens == expected
        assert done[str(index)].finished == (len(expected) < 3 + index % 6)
    assert any(one.finished for one in done.values())
    assert not all(one.finished for one in done.values())


@pytest.mark.parametrize(
    ("positions", "widths"), [("all", [4, 1, 1, 1]), ("last-prompt-token-on", [1, 1, 1, 1]), ("generated", [1, 1, 1])]
)
def test_the_hook_fires_on_the_prompt_and_on_every_decode_step(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, positions: str, widths: list[int]
):
    """Four new tokens are a last prompt token and three generated ones; `all` reads the whole prompt at once."""
    import crystallized_safety.residual as residual

    lm, seen = tiny("llama"), []
    plain = residual.edit_stream
    monkeypatch.setattr(
        residual, "edit_stream", lambda stream, **rest: seen.append(stream.shape[1]) or plain(stream, **rest)
    )
    asked = Asked((5, 6, 7, 8), (one_push(lm, positions, dose=0.1),))
    assert len(run(replace(lm, stop_ids=frozenset()), [asked.row("a", 4)])["a"].tokens) == 4
    assert seen == widths


def passes(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what every block is given, as (layer, rows, positions)."""
    shapes: list[tuple[int, ...]] = []
    for layer, block in enumerate(lm.blocks):
        forward = type(block).forward

        def counted(*inputs, _layer=layer, _block=block, _forward=forward, **rest):
            stream = inputs[0] if inputs else rest["hidden_states"]
            shapes.append((_layer, *stream.shape[:2]))
            return _forward(_block, *inputs, **rest)

        monkeypatch.setattr(block, "forward", counted)
    return shapes


def test_a_prompt_that_no_condition_touches_is_read_once_and_so_is_its_head(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
):
    lm = tiny("llama")
    shapes = passes(lm, monkeypatch)
    rows = [
        Asked((*HEAD, *tail), (one_push(lm, "last-prompt-token-on", layer=layer, dose=dose),)).row(
            f"{tail}{layer}{dose}", 2
        )
        for tail in ((5, 6, 7, 8), (9, 10, 11, 12))
        for layer in range(4)
        for dose in (-1.0, 0.0, 1.0)
    ]
    run(lm, rows)
    first = [shape[1:] for shape in shapes if shape[0] == 0]
    assert first[:2] == [(1, 4), (2, 4)], "the head once, then both tails, for 24 rows"
    assert first[2:] == [(24, 1), (16, 1)], (
        "a step for every row, and one more for the 16 that began with a prompt token"
    )


def test_a_condition_of_all_positions_starts_at_its_layer_and_its_head_is_read_once(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
):
    lm = tiny("llama")
    shapes = passes(lm, monkeypatch)
    rows = [
        Asked((*HEAD, *tail), (one_push(lm, "all", layer=2),)).row(f"{tail}", 1)
        for tail in ((5, 6, 7, 8), (9, 10, 11, 12), (13, 14, 15))
    ]
    run(lm, rows)
    by_layer = [[shape[1:] for shape in shapes if shape[0] == layer] for layer in range(4)]
    assert by_layer[0] == by_layer[1] == by_layer[2] == [(1, 4), (3, 4)], "layers 0 to 2 once, without edits"
    assert by_layer[3] == [(1, 4), (3, 4), (1, 4), (3, 4)], "layer 3 again: the head for the condition, then the tails"


def test_scores_share_what_continuations_have_in_common(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    lm = tiny("llama")
    asked = Asked((5, 6, 7, 8), (one_push(lm, "last-prompt-token-on"),))
    shapes = passes(lm, monkeypatch)
    continuations = [(20, 21, 22), (20, 21, 23), (24, 25), (26,)]
    (scored,) = TransformersEngine(lm, 8).generate([asked.score_row("a", continuations)])
    steps = [shape[1:] for shape in shapes if shape[0] == 0]
    assert steps == [(1, 4), (1, 1), (2, 1), (1, 1)], "the prompt, its last token steered, 20 and 24, then 21"
    for came, some in zip(scored.logprobs, continuations, strict=True):
        assert list(came) == pytest.approx(naive_logprobs(lm, asked, some), abs=1e-9, rel=0)


def test_a_sampled_row_does_not_depend_on_its_company_and_seeds_differ(tiny: Tiny):
    lm = tiny("qwen2")
    asked = draw(lm, 6, seed=2)
    rows = [one.row(f"{index}", 8, temperature=1.0, seed=index) for index, one in enumerate(asked)]
    together = run(lm, rows)
    alone = {key: run(lm, [row])[key] for key, row in ((row.key, row) for row in rows)}
    assert together == alone
    for index, one in enumerate(asked):
        assert together[str(index)].tokens == naive(lm, one, 8, temperature=1.0, seed=index)
    same = [asked[0].row(str(seed), 8, temperature=1.0, seed=seed) for seed in range(6)]
    assert len({one.tokens for one in run(lm, same).values()}) > 1


def test_sampling_draws_tokens_as_often_as_they_are_likely(tiny: Tiny):
    """A model whose first token is one of a few: shares within four standard errors."""
    lm = tiny("llama")
    asked = Asked((5, 6, 7, 8), ())
    hot = 0.7
    shares = torch.softmax(naive_logits(lm, asked, ()).double() / hot, dim=-1)
    n = 600
    done = run(lm, [asked.row(str(seed), 1, temperature=hot, seed=seed) for seed in range(n)], 300)
    likely = shares.topk(3)
    for share, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
        seen = sum(one.tokens[:1] == (token,) or (one.finished and token in lm.stop_ids) for one in done.values()) / n
        assert abs(seen - share) < 4 * (share * (1 - share) / n) ** 0.5 + 1e-9
    assert likely.values[0] < 0.99, "a certain token would say nothing"


def test_a_settled_row_stops_there_and_says_so(tiny: Tiny):
    lm = replace(tiny("llama"), stop_ids=frozenset())
    rows = [one.row(str(index), 6) for index, one in enumerate(draw(lm, 6, seed=4))]
    free = run(lm, rows)
    engine = TransformersEngine(lm, 4)
    done = {one.key: one for one in engine.generate(rows, lambda key, new: key == "2" and len(new) == 3)}
    assert done.pop("2") == Generated("2", free["2"].tokens[:3], finished=False, settled=True)
    assert done == {key: one for key, one in free.items() if key != "2"}


def test_where_memory_runs_out_no_row_is_lost_and_the_user_is_told(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    lm = tiny("llama")
    rows = [one.row(str(index), 5) for index, one in enumerate(draw(lm, 21, seed=6))]
    expected = run(lm, rows)
    forward = type(lm.model).forward

    def scarce(*inputs, **rest):
        if rest["input_ids"].shape[0] > 5 and rest["input_ids"].shape[1] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(lm.model, *inputs, **rest)

    monkeypatch.setattr(lm.model, "forward", scarce)
    told: list[str] = []
    done = [*TransformersEngine(lm, 16, told.append).generate(rows)]
    assert {one.key: one for one in done} == expected
    assert len(done) == len(rows)
    assert [line.split(";")[0] for line in told] == [
        "memory ran out with 16 rows together",
        "memory ran out with 8 rows together",
    ]


def test_where_memory_runs_out_while_prompts_are_read_no_row_is_lost(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    lm = tiny("llama")
    rows = [one.row(str(index), 5) for index, one in enumerate(draw(lm, 21, seed=6))]
    expected = run(lm, rows)
    forward, passes_left = type(lm.model).forward, [7]

    def scarce(*inputs, **rest):
        if rest["input_ids"].shape[1] > 1:
            passes_left[0] -= 1
            if passes_left[0] == 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(lm.model, *inputs, **rest)

    monkeypatch.setattr(lm.model, "forward", scarce)
    told: list[str] = []
    assert {one.key: one for one in TransformersEngine(lm, 16, told.append).generate(rows)} == expected
    assert len(told) == 1


def test_other_failures_are_not_taken_for_a_lack_of_memory(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    lm = tiny("llama")

    def broken(**_rest):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(lm.model, "forward", broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        run(lm, [Asked((5, 6, 7), ()).row("a", 2)])


def test_the_models_own_attention_and_output_layer_are_back_after_a_failure(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
):
    lm = tiny("llama")
    before = lm.model.config._attn_implementation
    monkeypatch.setattr(batch_module, "follow", lambda *_, **__: 1 / 0)
    for positions in ("all", "last-prompt-token-on"):  # the first fails after a read prompt, the second after a step
        with pytest.raises(ZeroDivisionError):
            run(lm, [Asked((5, 6, 7), (one_push(lm, positions),)).row("a", 2)])
    assert lm.model.config._attn_implementation == before
    assert "forward" not in lm.model.lm_head.__dict__
    assert all("forward" not in block.__dict__ and not block._forward_hooks for block in lm.blocks)


def test_no_rows_are_no_work(tiny: Tiny):
    assert [*TransformersEngine(tiny("llama")).generate([])] == []


def test_real_weights_in_float32_batched_equal_one_by_one(smollm2: LanguageModel):
    prompts = ["Name a colour.", "How far away is the moon from the earth?", "Hello"]
    rows = [Row(prompt, chat_tokens(smollm2, prompt), (), 12) for prompt in prompts]
    together = run(smollm2, rows)
    alone = {row.key: run(smollm2, [row])[row.key] for row in rows}
    assert together == alone
    assert all(one.tokens for one in together.values())


def test_where_one_row_does_not_fit_the_user_is_told_in_a_sentence(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    lm = tiny("llama")

    def full(**_rest):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ..."
        )

    asked = draw(lm, 9, seed=6)
    rows = [*(one.row(str(index), 5) for index, one in enumerate(asked)), asked[0].score_row("s", [(5,), (6, 7), (8,)])]
    monkeypatch.setattr(lm.model, "forward", full)
    told: list[str] = []
    with pytest.raises(ModelError, match="must have memory for one row, but it ran out"):
        [*TransformersEngine(lm, 8, told.append).generate(rows)]
    assert [line.split(";")[0] for line in told] == [
        "memory ran out with 8 rows together",
        "memory ran out with 4 rows together",
    ]


STARVED = """
import resource, sys, torch
sys.path[:0] = ["tests", "."]
import conftest
from naive import draw
from crystallized_safety.engines import TransformersEngine
from crystallized_safety.models import from_parts, load
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
torch.manual_seed(7)
model = AutoModelForCausalLM.from_config(conftest.tiny_config("llama"), dtype=torch.float64)
lm = from_parts(model, load("smollm2-135m").tokenizer, "tiny")
rows = [one.row(str(index), 4) for index, one in enumerate(draw(lm, 3000, seed=1))]
whole = {one.key: one.tokens for one in TransformersEngine(lm, 64).generate(rows)}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)
told = []
starved = {one.key: one.tokens for one in TransformersEngine(lm, 3000, told.append).generate(rows)}
assert starved == whole, "a row was lost or changed"
print(told)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
def test_a_process_that_really_runs_out_of_memory_finishes_with_smaller_batches():
    """3000 rows' logits are 1.2 GB; the process may take 0.6 GB more than it has."""
    done = subprocess.run(
        [sys.executable, "-c", STARVED], capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "memory ran out with" in done.stdout
