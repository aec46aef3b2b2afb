"""One contestant does one work, in a process of its own: `python -m benchmarks.contest FOLDER POSITIONS NAME SHARE RESULT`.

A fresh process has a peak memory of its own and a model that nobody wrapped before. What is timed is the work alone: not
loading, not a small warm-up, not the trial of batch sizes. An error is not caught; the last line of standard error tells it.
What this module does not know: the other contestants.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.roster import ROSTER, Contestant
from benchmarks.work import Answers, Work

__all__ = ["matmul_rate", "peak_bytes"]

Run = Callable[[Work, int | None], Answers]


def main() -> None:
    folder, contestant = Path(sys.argv[1]), ROSTER[sys.argv[3]]
    work = Work.read(folder / f"{sys.argv[2]}.json")
    torch.set_num_threads(work.threads)
    before = matmul_rate()
    run: Run = getattr(import_module(f"benchmarks.contestants.{contestant.module}"), contestant.load)(folder, work)
    size = _best_size(run, work, contestant)
    part = work.part(float(sys.argv[4]))
    start = time.perf_counter()
    answers = run(part, size)
    seconds = time.perf_counter() - start
    told = {
        "seconds": seconds,
        "n_conditions": len(part.conditions),
        "batch_size": size,
        "peak_bytes": peak_bytes(),
        "flops_per_second": max(before, matmul_rate()),
        "versions": _versions(contestant),
        "answers": {row: asdict(answer) for row, answer in answers.items()},
    }
    Path(sys.argv[5]).write_text(json.dumps(told), "utf-8")


def _best_size(run: Run, work: Work, contestant: Contestant) -> int | None:
    """Warm up, then the batch size that is fastest per row, each tried on as few whole conditions as fill one batch."""
    run(replace(work.steered(1), prompts=work.prompts[:2], new_tokens=2), None)
    most = len(work) if contestant.mixes else len(work.prompts)
    sizes = sorted({min(size, most) for size in contestant.sizes})
    if len(sizes) < 2:
        return sizes[0] if sizes else None
    costs: dict[int, float] = {}
    for size in sizes:
        trial = work.steered(-(-size // len(work.prompts)))
        start = time.perf_counter()
        run(trial, size)
        costs[size] = (time.perf_counter() - start) / len(trial)
    return min(costs, key=costs.__getitem__)


def matmul_rate(side: int = 2048, seconds: float = 1.0) -> float:
    """Operations per second of the fastest float32 matrix product seen within about so many seconds."""
    left, right = torch.rand(side, side), torch.rand(side, side)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def peak_bytes() -> int:
    """The most memory that this process held. macOS tells bytes, others kilobytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _versions(contestant: Contestant) -> dict[str, str]:
    names = ["torch", "transformers", "numpy", *([contestant.package] if contestant.package else [])]
    return {name: version(name) for name in names}


if __name__ == "__main__":
    main()
