"""How our cost grows: `python -m benchmarks.curve FOLDER POSITIONS N_CONDITIONS RESULT`.

Two series, in one process and one run: more and more rows, where the cost should be linear, and always the same rows spread
over more and more layers, where it should be flat. What this module does not know: other contestants.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.contestants import ours
from benchmarks.work import Condition, Work

__all__ = ["by_layers", "by_rows"]


def main() -> None:
    folder = Path(sys.argv[1])
    work = Work.read(folder / f"{sys.argv[2]}.json")
    torch.set_num_threads(work.threads)
    run = ours.load(folder, work)
    run(replace(work.steered(1), prompts=work.prompts[:2], new_tokens=2), None)
    points = []
    for series, part in [*by_rows(work, int(sys.argv[3])), *by_layers(work)]:
        start = time.perf_counter()
        answers = run(part, None)
        seconds = time.perf_counter() - start
        points.append(
            {
                "series": series,
                "rows": len(part),
                "conditions": len(part.conditions),
                "layers": len({one.layer for one in part.conditions}),
                "seconds": seconds,
                "tokens": sum(len(one.tokens) + one.finished for one in answers.values()),
            }
        )
    Path(sys.argv[4]).write_text(json.dumps(points), "utf-8")


def by_rows(work: Work, n_conditions: int) -> Iterator[tuple[str, Work]]:
    """An eighth, a quarter, half and all of so many steered conditions, in an order drawn by a fixed seed."""
    steered = [one for one in work.conditions if one.layer is not None]
    drawn = random.Random(0).sample(steered, n_conditions)
    for share in (8, 4, 2, 1):
        yield "rows", replace(work, conditions=tuple(drawn[: n_conditions // share]))


def by_layers(work: Work) -> Iterator[tuple[str, Work]]:
    """Every dose once, spread over 1, 2, 4, … layers."""
    steered = {(one.layer, one.dose): one for one in work.conditions if one.layer is not None}
    layers, doses = (sorted(set(axis)) for axis in zip(*steered, strict=True))
    n_layers = 1
    while n_layers <= min(len(layers), len(doses)):
        chosen = [layers[index * len(layers) // n_layers] for index in range(n_layers)]
        kept: list[Condition] = [steered[chosen[index % n_layers], dose] for index, dose in enumerate(doses)]
        yield "layers", replace(work, conditions=tuple(kept))
        n_layers *= 2


if __name__ == "__main__":
    main()
