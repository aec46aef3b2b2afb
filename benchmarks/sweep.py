"""How long the same sweep takes: our queue of rows, a well-made batch per condition, one prompt at a time with a hook.

    make bench

The same prompts, layers, doses and number of new tokens for everyone, greedy, float32, in one process and one run; ratios count,
seconds do not. What this does not measure: peers' libraries, GPUs, larger models.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from crystallized_safety.engines import Row, TransformersEngine
from crystallized_safety.extraction import SteeringVectorExtractor
from crystallized_safety.interventions import edit
from crystallized_safety.models import LanguageModel, chat_tokens, load
from crystallized_safety.prompts import load_prompts, select

MODEL, N_PROMPTS, LAYERS, KAPPAS, NEW_TOKENS = "smollm2-135m", 16, (12, 18), (-2.0, -1.0, 1.0, 2.0), 24
Tokens = dict[tuple[int, float, int], tuple[int, ...]]


@contextmanager
def hooked(lm: LanguageModel, layer: int, push: torch.Tensor) -> Iterator[None]:
    """Add `push` to the last token of every forward pass: last-prompt-token-on, the way most scripts do it."""

    def hook(_block: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        output[:, -1] += push
        return output

    handle = lm.blocks[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def generated(lm: LanguageModel, prompts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """One left-padded, cached batch through transformers' own generate."""
    width = max(map(len, prompts))
    ids = torch.tensor([[lm.pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = lm.model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=lm.pad_id
    )
    return [cut(lm, row[width:].tolist()) for row in out]


def cut(lm: LanguageModel, tokens: list[int]) -> tuple[int, ...]:
    """Tokens before the first stop token."""
    ends = [index for index, token in enumerate(tokens) if token in lm.stop_ids]
    return tuple(tokens[: ends[0]] if ends else tokens)


def main() -> None:
    lm = load(MODEL)
    packaged = load_prompts()
    texts = [
        [one.text for one in select(packaged, label=label, split="extract", limit=16)]
        for label in ("harmful", "harmless")
    ]
    vectors = {layer: SteeringVectorExtractor(lm).load_model().extract(*texts, layer=layer).tensor for layer in LAYERS}
    prompts = [
        chat_tokens(lm, one.text) for one in select(packaged, label="harmful", split="calibrate", limit=N_PROMPTS)
    ]
    conditions = [(layer, kappa) for layer in LAYERS for kappa in KAPPAS]

    def ours() -> Tokens:
        rows = [
            Row(
                f"{layer} {kappa} {index}",
                tokens,
                (edit(vectors[layer], layer=layer, operator="add", dose=kappa, positions="last-prompt-token-on"),),
                NEW_TOKENS,
            )
            for layer, kappa in conditions
            for index, tokens in enumerate(prompts)
        ]
        done = {one.key: one.tokens for one in TransformersEngine(lm).generate(rows)}
        return {
            (layer, kappa, index): done[f"{layer} {kappa} {index}"]
            for layer, kappa in conditions
            for index in range(len(prompts))
        }

    def batched() -> Tokens:
        done: Tokens = {}
        for layer, kappa in conditions:
            with hooked(lm, layer, kappa * vectors[layer]):
                done |= {(layer, kappa, index): tokens for index, tokens in enumerate(generated(lm, prompts))}
        return done

    def one_by_one() -> Tokens:
        done: Tokens = {}
        for layer, kappa in conditions[:2]:
            with hooked(lm, layer, kappa * vectors[layer]):
                done |= {(layer, kappa, index): generated(lm, [prompt])[0] for index, prompt in enumerate(prompts)}
        return done

    contestants: dict[str, Callable[[], Tokens]] = {
        "one prompt at a time (2 conditions, scaled)": one_by_one,
        "well-made batch, one per condition": batched,
        "rows carry their condition (ours)": ours,
    }
    generated(lm, prompts[:2])
    times, tokens = {}, {}
    for name, contestant in contestants.items():
        start = time.perf_counter()
        tokens[name] = contestant()
        times[name] = (time.perf_counter() - start) * len(conditions) * len(prompts) / len(tokens[name])
    base = times["well-made batch, one per condition"]
    print(
        f"{MODEL}, {len(prompts)} prompts × {len(conditions)} conditions × {NEW_TOKENS} new tokens, {torch.get_num_threads()} threads"
    )
    print(f"{'contestant':46}{'seconds':>9}{'rows/s':>8}{'speed':>7}  tokens equal to ours")
    for name, seconds in times.items():
        reference = tokens["rows carry their condition (ours)"]
        equal = sum(one == reference[key] for key, one in tokens[name].items()) / len(tokens[name])
        print(
            f"{name:46}{seconds:9.1f}{len(conditions) * len(prompts) / seconds:8.2f}{base / seconds:6.2f}×  {equal:.0%} of rows"
        )


if __name__ == "__main__":
    main()
