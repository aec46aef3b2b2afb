"""A decode step can be captured and replayed: it is a function of tensors whose shapes are few.

There is no GPU here, so that the capture is a recording of the step's tensor operations, replayed on the same memory, which
fails where a CUDA graph would: where Python looks at a value, or memory has moved.
"""

from collections.abc import Callable

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from crystallized_safety.engines import Savings, TransformersEngine
from crystallized_safety.engines import transformers as engine_module
from crystallized_safety.engines.steps import padded_rows
from crystallized_safety.errors import ModelError
from crystallized_safety.models import LanguageModel
from naive import draw, naive

Tiny = Callable[[str], LanguageModel]


def recording(calls: list[str]):
    def capture(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        recorded = make_fx(step)()
        calls.append("capture")

        def replay() -> torch.Tensor:
            calls.append("replay")
            return recorded()

        return replay

    return capture


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "phi3", "gpt_neox"])
def test_replayed_steps_give_the_tokens_of_the_naive_way(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, architecture: str
):
    lm, calls = tiny(architecture), []
    asked = draw(lm, 26, seed=12)
    monkeypatch.setattr(engine_module, "cuda_graphs", lambda: recording(calls))
    monkeypatch.setattr(engine_module, "_can_capture", lambda _: True)
    engine = TransformersEngine(lm, 12, graphs=True)
    done = {one.key: one.tokens for one in engine.generate([one.row(str(i), 6) for i, one in enumerate(asked)])}
    assert done == {str(index): naive(lm, one, 6) for index, one in enumerate(asked)}
    assert calls.count("replay") > calls.count("capture") > 0


def test_captured_steps_have_few_sizes():
    sizes = [padded_rows(n, 256) for n in range(1, 257)]
    assert all(n <= size <= 256 for n, size in enumerate(sizes, start=1))
    assert len(set(sizes)) == 7
    assert all(size <= max(2 * n, 256 // 16) for n, size in enumerate(sizes, start=1))
    assert padded_rows(7, 7) == 7


def test_graphs_without_a_cuda_device_are_refused(tiny: Tiny):
    lm = tiny("llama")
    with pytest.raises(ModelError, match="CUDA graphs need a model on a CUDA device"):
        list(TransformersEngine(lm, graphs=True, savings=Savings()).generate([]))
