"""nnsight: one `generate` trace per batch, one `invoke` per condition in it, so that a batch mixes layers and doses.

What this module does not know: text; token ids go in as they are, and nnsight pads them.
"""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from nnsight import TransformersModel
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.contestants.plain import read_model, read_vectors
from benchmarks.work import Answer, Answers, Condition, Prompt, Work, answer, key

__all__ = ["load"]

Rows = list[tuple[Condition, Prompt]]


def load(folder: Path, _work: Work) -> Callable[[Work, int | None], Answers]:
    """A function that does work through nnsight."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", local_files_only=True)
    model = TransformersModel(read_model(folder), task="text-generation", tokenizer=tokenizer)
    vectors = read_vectors(folder)

    def run(part: Work, size: int | None) -> Answers:
        prompts = sorted(part.prompts, key=lambda prompt: len(prompt.tokens))
        rows = [(condition, prompt) for condition in part.conditions for prompt in prompts]
        size = size or len(rows)
        answers: dict[str, Answer] = {}
        for start in range(0, len(rows), size):
            answers |= _batch(model, part, rows[start : start + size], vectors)
        return answers

    return run


@torch.inference_mode()
def _batch(model: Any, work: Work, rows: Rows, vectors: dict[int, Tensor]) -> Answers:
    settings = {"max_new_tokens": work.new_tokens, "do_sample": False, "pad_token_id": work.pad_id}
    with model.generate(**settings, eos_token_id=list(work.stop_ids)) as tracer:
        for condition, group in groupby(rows, key=lambda row: row[0]):
            with tracer.invoke([list(prompt.tokens) for _, prompt in group]):
                if condition.layer is not None:
                    push = condition.dose * vectors[condition.layer]
                    for _ in tracer.iter[1:] if work.positions == "generated" else tracer.iter[:]:
                        if work.positions == "last-prompt-token-on":
                            model.model.layers[condition.layer].output[:, -1] += push
                        else:
                            model.model.layers[condition.layer].output[:] += push
        with tracer.invoke():
            out = tracer.result.save()
    width = max(len(prompt.tokens) for _, prompt in rows)
    return {key(*row): answer(new[width:].tolist(), work.stop_ids) for row, new in zip(rows, out, strict=True)}
