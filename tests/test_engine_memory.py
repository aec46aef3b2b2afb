"""How many rows fit, what a row costs, and how rows are planned into chunks of one prefix."""

from collections.abc import Callable

import psutil
import pytest
import torch

from crystallized_safety.engines import Savings, memory
from crystallized_safety.engines.memory import is_out_of_memory, rows_that_fit
from crystallized_safety.engines.queue import Queue
from crystallized_safety.models import FixedShape, LanguageModel, plan_step
from naive import Asked, Push

Tiny = Callable[[str], LanguageModel]
CPU = torch.device("cpu")


def test_a_token_costs_its_keys_and_values_and_a_row_its_own_tokens(tiny: Tiny):
    lm = tiny("llama")
    push = Push(1, torch.ones(lm.d_model, dtype=torch.float64), "add", 1.0, "all")
    rows = [Asked((5, 6, 7, tail, 9), (push,)).row(str(tail), 6) for tail in (20, 21)]
    queue = Queue(lm, rows, Savings(), resumes=True)
    with torch.inference_mode():
        assert queue.token_bytes == 4 * 2 * 2 * 8 * 8, "layers × (keys, values) × heads × width × bytes"
    assert queue.width == 6 + 2, "new tokens, and what follows the head of three that both prompts share"
    assert queue.peak_width == queue.width + 2


def test_rows_fill_half_of_the_free_memory_and_no_more_than_the_weights(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    lm = tiny("llama")
    row = {"width": 10, "token_bytes": 2**20, "n_tokens": 0}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2 * 70 * 2**20})())
    assert rows_that_fit(lm, **row) == 7, "70 of 140 MB, 10 a row"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**40})())
    assert rows_that_fit(lm, **row) == 25, "the weights are small, so 256 MB"
    assert rows_that_fit(lm, width=1, token_bytes=1, n_tokens=0) == memory._MOST_ROWS
    assert rows_that_fit(lm, width=10**6, token_bytes=2**20, n_tokens=0) == 1


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_running_out(error: Exception, short: bool):
    assert is_out_of_memory(error) is short


@pytest.mark.parametrize("fixed", [None, FixedShape(n_rows=16, own_width=9, prefix_width=12)])
@pytest.mark.parametrize(
    "prefixes", [[0] * 11, list(range(11)), [0] * 8 + [1, 2, 2], [3, 0, 3, 0, 3, 0, 3, 0, 3, 0, 5]]
)
def test_every_row_is_found_in_a_chunk_of_its_prefix(prefixes: list[int], fixed: FixedShape | None):
    columns = [index % 5 for index in range(11)]
    plan = plan_step(prefixes=prefixes, lengths=[7] * 11, columns=columns, device=CPU, fixed=fixed)
    n_chunks, size = plan.members.shape
    named = list(range(n_chunks)) if plan.chunks is None else plan.chunks.tolist()
    for row, prefix in enumerate(prefixes):
        place = int(plan.places[row])
        assert named[place // size] == prefix
        assert int(plan.members[place // size, place % size]) == row
    assert plan.columns.tolist()[:11] == columns
    if fixed:
        assert (len(plan.places), plan.own_width, plan.prefix_width) == (16, 9, 12)
        assert n_chunks & (n_chunks - 1) == size & (size - 1) == 0, "sizes are powers of two, so that few differ"
    else:
        assert n_chunks * size <= 3 * 11, "most places are filled"
