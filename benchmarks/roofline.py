"""The least time of one decode step on a device, from what the device does at most, measured in the same run.

What this module does not know: attention's own operations, activations, logits, launch overhead. Leaving these out makes the
roofline lower and everybody's share of it smaller. A copy reads and writes; a device that reads faster than it copies could come
out slightly above the roofline.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["Least", "Rates", "cached_positions", "least_step", "mean_prefixes", "measured_rates", "synchronize"]


@dataclass(frozen=True)
class Rates:
    """What a device did at most: operations of a matrix product and bytes read or written, both per second."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Least:
    """The least seconds of one step, and which of the two bounds it."""

    seconds: float
    bound: Literal["compute", "memory"]


def least_step(
    *, rows: int, parameters: int, element_bytes: int, positions: float, position_bytes: int, rates: Rates
) -> Least:
    """max(2·P·B ÷ flops, (P·bytes + KV bytes read) ÷ bandwidth) for B `rows` of one token each.

    P `parameters` are those that a token goes through, blocks and output head; the input embedding is a look-up and multiplies
    nothing. `positions` is how many cached positions are read, of all rows together, each of `position_bytes` (Williams et al.
    2009, "Roofline", with the traffic of one decode step).
    """
    compute = 2 * parameters * rows / rates.flops
    memory = (parameters * element_bytes + positions * position_bytes) / rates.bytes
    return Least(compute, "compute") if compute > memory else Least(memory, "memory")


def cached_positions(*, rows: int, prefixes: float, prompt_tokens: int, new_tokens: int) -> float:
    """How many cached positions a decode step reads, on average over the steps that give the tokens 2 … `new_tokens`.

    The prompt but its last token is a prefix, read once for each of `prefixes`: as many as there are distinct prompts in the
    batch where rows share them, as many as rows where they do not. Step i reads i positions of every row's own, the last prompt
    token and the new ones before the token it reads: `new_tokens` ÷ 2 on average.
    """
    return prefixes * (prompt_tokens - 1) + rows * new_tokens / 2


def mean_prefixes(*, prompts: int, conditions: int, batch: int) -> float:
    """How many distinct prompts a batch holds on average, when the rows of all conditions stand in the order of their prompts."""
    rows = prompts * conditions
    starts = range(0, rows, batch)
    ends = [min(start + batch, rows) - 1 for start in starts]
    return sum(end // conditions - start // conditions + 1 for start, end in zip(starts, ends, strict=True)) / len(ends)


def measured_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The fastest large square matrix product in `dtype`, and the fastest large copy; small ones on a CPU, to be quick."""
    large = device.type == "cuda"
    side, size = (8192, 2**31) if large else (768, 2**26)
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    product = torch.empty_like(left)
    products = _fastest(lambda: torch.mm(left, right, out=product), device, seconds=1.0 if large else 0.2)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copies = _fastest(lambda: target.copy_(source), device, seconds=1.0 if large else 0.2)
    return Rates(flops=2 * side**3 / products, bytes=2 * size / copies)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fastest(work: Callable[[], object], device: torch.device, *, seconds: float) -> float:
    """Seconds of the fastest of as many calls as fit; the first one, which warms up, does not count."""
    best, end = float("inf"), time.perf_counter() + seconds
    work()
    while best == float("inf") or time.perf_counter() < end:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
