"""Plain transformers: a forward hook and `model.generate`, one condition per batch.

With batch size 1 this is what most scripts do; with the best batch size it is what a careful person writes by hand, and what
everybody else is compared with. `by_condition` also serves peers that steer by wrapping `generate`. What this module does not
know: anything of Crystallized Safety.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.work import Answer, Answers, Condition, Prompt, Work, answer, key

__all__ = ["by_condition", "load", "read_model", "read_vectors"]

Run = Callable[[Work, int | None], Answers]
Steered = Callable[[Condition], AbstractContextManager[Any]]


def load(folder: Path, work: Work) -> Run:
    """A function that does work by one hook per condition."""
    model, vectors = read_model(folder), read_vectors(folder)
    blocks = model.get_decoder().layers

    @contextmanager
    def steered(condition: Condition) -> Iterator[Any]:
        if condition.layer is None:
            yield model
            return
        hook = _hook(condition.dose * vectors[condition.layer], work.positions)
        handle = blocks[condition.layer].register_forward_hook(hook)
        try:
            yield model
        finally:
            handle.remove()

    return lambda part, size: by_condition(part, size, steered=steered)


def read_model(folder: Path) -> Any:
    """The model in float32, ready to generate. `torch_dtype` is the name that old and new transformers both take."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model", torch_dtype=torch.float32, local_files_only=True)
    return model.train(mode=False)


def read_vectors(folder: Path) -> dict[int, Tensor]:
    """The steering vector [d_model] of each layer."""
    return {int(layer): vector for layer, vector in load_file(folder / "vectors.safetensors").items()}


@torch.inference_mode()
def by_condition(work: Work, size: int | None, *, steered: Steered) -> dict[str, Answer]:
    """All rows, one condition after the other; while `steered(condition)` is open it gives what to call `generate` of.

    Prompts of similar length share a batch, so that little is padded.
    """
    ordered = sorted(work.prompts, key=lambda prompt: len(prompt.tokens))
    size = size or len(ordered)
    answers: dict[str, Answer] = {}
    for condition in work.conditions:
        with steered(condition) as model:
            for start in range(0, len(ordered), size):
                prompts = ordered[start : start + size]
                answers |= {
                    key(condition, prompt): one
                    for prompt, one in zip(prompts, _generated(model, work, prompts), strict=True)
                }
    return answers


def _generated(model: Any, work: Work, prompts: Sequence[Prompt]) -> list[Answer]:
    """One left-padded, cached batch."""
    width = max(len(prompt.tokens) for prompt in prompts)
    pads = [width - len(prompt.tokens) for prompt in prompts]
    ids = [[work.pad_id] * pad + list(prompt.tokens) for pad, prompt in zip(pads, prompts, strict=True)]
    out = model.generate(
        torch.tensor(ids),
        attention_mask=torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads]),
        max_new_tokens=work.new_tokens,
        do_sample=False,
        pad_token_id=work.pad_id,
        eos_token_id=list(work.stop_ids),
    )
    return [answer(row[width:].tolist(), work.stop_ids) for row in out]


def _hook(push: Tensor, positions: str) -> Callable[[Any, Any, Any], Any]:
    def add(_block: Any, _inputs: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        if positions == "last-prompt-token-on":
            stream[:, -1] += push
        elif positions == "all" or stream.shape[1] == 1:
            # With a cache every pass after the prompt's has one position, and prompts have more than one.
            stream += push
        return output

    return add
