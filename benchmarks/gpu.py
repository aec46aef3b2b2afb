"""How fast a GPU decodes steered rows: ours, a well-made batch of 32, larger batches, transformers' continuous batching.

    python -m benchmarks.gpu                                    Llama-3.1-8B's shape with random weights, one GPU
    python -m benchmarks.gpu --shape tiny --batches 4 8         a small shape, on a CPU too

One process and one model. Every contestant is warmed up, then timed with all new tokens and with one; the difference is the
decoding of the others, free of reading prompts and of setting up. No token stops a row. Beside the speed stands the share of the
roofline: the least time of a step by the rates that this device showed in this run, over the time it took.

What this does not know: real weights, so what is written is noise, and the column `= plain`, the share of tokens equal to plain
`generate`'s, is low in bfloat16, where ties of noise fall otherwise; with --dtype float32 it should be (nearly) 100 %. Rows of different
lengths, which a queue fills up and a fixed batch waits for. Peak memory on a CPU is that of the whole process so far.
"""

import argparse
import gc
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.contest import peak_bytes
from benchmarks.contestants.decoding import HEAD, Case, Report, Run, captured_graphs, cases, continuous, ours, plain
from benchmarks.gpu_table import Failed, Result, table
from benchmarks.prepare import counted
from benchmarks.random_model import SHAPES, build
from benchmarks.roofline import Rates, cached_positions, least_step, mean_prefixes, measured_rates, synchronize
from benchmarks.work import Answers
from crystallized_safety.engines.memory import is_out_of_memory
from crystallized_safety.models import LanguageModel

__all__ = ["CONTESTANTS", "TOO_SHORT", "main"]

TOO_SHORT = "too few new tokens to be timed"
"""Said where all new tokens took no longer than one."""


@dataclass(frozen=True)
class Contestant:
    """`shares` says that rows of one prompt read its cached positions once together, `steers` that each row has its condition."""

    title: str
    opened: Callable[[LanguageModel, Case, Report], AbstractContextManager[Run]]
    shares: bool = False
    steers: bool = True
    cuda_only: bool = False


CONTESTANTS = {
    "plain": Contestant("plain generate, hook", plain),
    "continuous": Contestant("transformers' continuous batching, unsteered", continuous, steers=False),
    "ours": Contestant("ours", ours, shares=True),
    "graphs": Contestant("ours, CUDA graphs", captured_graphs, shares=True, cuda_only=True),
}


@dataclass(frozen=True, eq=False)
class _Timed:
    """Seconds of all rows with all their new tokens and with one each, and what came of the former."""

    whole: float
    first: float
    answers: Answers
    peak_bytes: int
    notes: tuple[str, ...]


def main(words: Sequence[str] | None = None) -> None:
    asked = _asked(words)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if asked.device == "auto" else asked.device)
    fallback = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, fallback if asked.dtype == "auto" else asked.dtype)
    rates = measured_rates(device, dtype)
    lm = build(asked.shape, device, dtype)
    results = [
        one
        for case in cases(
            lm,
            asked.batches,
            rounds=asked.rounds,
            prompt_tokens=asked.prompt_tokens,
            new_tokens=asked.new_tokens,
            n_layers=asked.layers_steered,
        )
        for one in _contest(lm, case, asked, rates)
    ]
    work = f"prompts of {asked.prompt_tokens} tokens, {asked.new_tokens} new ones, {asked.rounds} × batch rows"
    print(f"{lm.name}, {str(dtype).removeprefix('torch.')}, {_machine(device)}: {work}")
    print(table(results, {name: one.title for name, one in CONTESTANTS.items()}, rates))
    if asked.json:
        asked.json.write_text(json.dumps(_told(results, lm, asked, rates), indent=2) + "\n", "utf-8")


def _asked(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="llama-8b")
    add("--device", choices=["auto", "cuda", "cpu"], default="auto")
    add("--dtype", choices=["auto", "bfloat16", "float16", "float32", "float64"], default="auto")
    add(
        "--batches",
        nargs="+",
        type=int,
        default=[32, 64, 128, 256, 512],
        help="the smallest is what others are compared with",
    )
    add("--prompt-tokens", type=int, default=40)
    add("--new-tokens", type=int, default=64)
    add("--layers-steered", type=int, default=6)
    add("--rounds", type=int, default=3, help="rows are so many times the batch")
    add("--repeats", type=int, default=2, help="of each timing the fastest of so many counts")
    add("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    add("--json", type=Path, metavar="PATH", help="also write the figures here")
    asked = parser.parse_args(words)
    if any(batch % min(asked.batches) for batch in asked.batches):
        parser.error(f"every batch must be a multiple of the smallest, {min(asked.batches)}, but {asked.batches} came")
    if asked.prompt_tokens < HEAD + 2 or asked.new_tokens < 2:
        parser.error(
            f"prompts must have {HEAD + 2} tokens or more and 2 new ones or more follow, so that steps can be timed"
        )
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use, but there is none; try --device cpu --shape tiny")
    return asked


def _contest(lm: LanguageModel, case: Case, asked: argparse.Namespace, rates: Rates) -> Iterator[Result | Failed]:
    """All contestants on the same rows."""
    expected: Answers | None = None
    for name in (one for one in CONTESTANTS if one in asked.contestants):
        start = time.perf_counter()
        timed = _tried(lm, case, CONTESTANTS[name], asked.repeats)
        why = timed if isinstance(timed, str) else "done"
        print(f"  batch {case.batch}, {name}: {why}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        if isinstance(timed, str):
            yield Failed(name, case.batch, timed)
            continue
        if name == "plain":
            expected = timed.answers
        yield _result(lm, case, name=name, timed=timed, expected=expected, rates=rates)


def _tried(lm: LanguageModel, case: Case, contestant: Contestant, repeats: int) -> _Timed | str:
    """The timing, or why there is none; a long run goes on with the next contestant, with the traceback on standard error."""
    if contestant.cuda_only and lm.device.type != "cuda":
        return "CUDA only"
    try:
        timed = _timed(lm, case, contestant, repeats)
    except Exception as error:  # whatever a contestant raises is its result
        traceback.print_exc()
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{'out of memory' if is_out_of_memory(error) else type(error).__name__}: {first}"
    return timed if timed.whole > timed.first else TOO_SHORT


def _timed(lm: LanguageModel, case: Case, contestant: Contestant, repeats: int) -> _Timed:
    notes: list[str] = []
    gc.collect()
    if lm.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(lm.device)
    with contestant.opened(lm, case, notes.append) as run:
        answers = run(case.mixed.new_tokens)  # warms up
        whole = min(_seconds(run, case.mixed.new_tokens, lm.device) for _ in range(repeats))
        first = min(_seconds(run, 1, lm.device) for _ in range(repeats))
    peak = torch.cuda.max_memory_allocated(lm.device) if lm.device.type == "cuda" else peak_bytes()
    return _Timed(whole, first, answers, peak, tuple(dict.fromkeys(notes)))


def _seconds(run: Run, new_tokens: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run(new_tokens)
    synchronize(device)
    return time.perf_counter() - start


def _result(
    lm: LanguageModel, case: Case, *, name: str, timed: _Timed, expected: Answers | None, rates: Rates
) -> Result:
    work, contestant = case.mixed, CONTESTANTS[name]
    config, element_bytes, parameters = lm.model.config, lm.dtype.itemsize, counted(lm.model)
    prompts = mean_prefixes(prompts=len(work.prompts), conditions=len(work.conditions), batch=case.batch)
    least = least_step(
        rows=case.batch,
        parameters=parameters.blocks + parameters.head,
        element_bytes=element_bytes,
        positions=cached_positions(
            rows=case.batch,
            prefixes=prompts if contestant.shares else case.batch,
            prompt_tokens=len(work.prompts[0].tokens),
            new_tokens=work.new_tokens,
        ),
        position_bytes=2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * element_bytes,
        rates=rates,
    )
    steps = len(work) / case.batch * (work.new_tokens - 1)
    decoding = timed.whole - timed.first
    return Result(
        contestant=name,
        batch=case.batch,
        rows=len(work),
        tokens_per_second=len(work) * (work.new_tokens - 1) / decoding,
        whole_per_second=len(work) * work.new_tokens / timed.whole,
        step_seconds=decoding / steps,
        least=least,
        peak_bytes=timed.peak_bytes,
        equal=_equal(timed.answers, expected) if expected and contestant.steers else None,
        notes=timed.notes,
    )


def _equal(answers: Answers, expected: Answers) -> float:
    """The share of tokens that are equal, of the rows that both have; all rows are as long."""
    pairs = [
        one == another
        for name in answers.keys() & expected.keys()
        for one, another in zip(answers[name].tokens, expected[name].tokens, strict=True)
    ]
    return sum(pairs) / len(pairs)


def _told(
    results: Sequence[Result | Failed], lm: LanguageModel, asked: argparse.Namespace, rates: Rates
) -> dict[str, Any]:
    """Everything, as JSON can hold it."""
    options = {name: value for name, value in vars(asked).items() if name != "json"}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "machine": {"device": _machine(lm.device), **versions},
        "dtype": str(lm.dtype).removeprefix("torch."),
        "asked": options,
        "parameters": asdict(counted(lm.model)),
        "rates": asdict(rates),
        "results": [
            {**asdict(one), **({"of_roofline": one.of_roofline} if isinstance(one, Result) else {})} for one in results
        ],
    }


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
