"""How long the same sweep takes: ours, a well-made batch, one prompt at a time, and peers, all in one run.

    make bench                          a short run, everybody, under five minutes
    python -m benchmarks.sweep          the whole of it, hours
    python -m benchmarks.sweep --curve  how our cost grows with rows and with layers

Peers live in environments of their own, made by the command at the head of requirements.txt and of requirements-nnsight.txt
beside this file; a peer that is not installed is shown with that command.

The same prompts, layers, doses and number of new tokens for everyone, greedy, float32, CPU. Every contestant runs in a process
of its own, one after the other. Seconds are this machine's; ratios within a table count. Who has long may run a share of the
conditions, which the column `ran` tells, and is scaled. What this does not measure: GPUs, larger models, other operators. Not for Windows.
This process imports the standard library alone, so that its memory does not count as its children's.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.limit import Parameters
from benchmarks.roster import ROSTER, Contestant
from benchmarks.table import aligned, figures, table
from benchmarks.work import Plan, Work

ROOT = Path(__file__).parent.parent
DOSES = (-3.0, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0)
POSITIONS = ("last-prompt-token-on", "all", "generated")
SHORT = {
    "models": ["smollm2-135m"],
    "positions": ["last-prompt-token-on"],
    "prompts": 16,
    "layers": 2,
    "doses": [-2.0, -1.0, 1.0, 2.0],
    "one_share": 0.1,
    "peer_share": 0.35,
}


def main() -> None:
    asked = _asked(sys.argv[1:])
    runs: list[dict[str, Any]] = []
    for model in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            runs += _curve(model, Path(folder), asked) if asked.curve else _contest(model, Path(folder), asked)
    if asked.json:
        machine = {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()}
        asked.json.write_text(json.dumps({"machine": machine, "runs": runs}, indent=2) + "\n", "utf-8")


def _asked(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--models", nargs="+", default=["smollm2-135m", "qwen2.5-coder-0.5b"], help="aliases of crystallized-safety")
    add("--positions", nargs="+", default=list(POSITIONS[:2]), choices=POSITIONS, help="where the vector is added")
    add("--prompts", type=int, default=32)
    add("--layers", type=int, default=6, help="how many layers are steered")
    add("--doses", nargs="+", type=float, default=list(DOSES), help="multiples of the difference in means")
    add("--new-tokens", type=int, default=24)
    add("--contestants", nargs="+", default=list(ROSTER), choices=list(ROSTER))
    add("--peer-python", nargs="+", type=Path, metavar="PATH", default=None, help="interpreters that hold the peers")
    add("--one-share", type=float, default=0.04, help="share of conditions that the one-by-one contestant runs")
    add("--base-share", type=float, default=1.0, help="share of conditions that the well-made batch runs")
    add("--peer-share", type=float, default=0.25, help="share of conditions that each peer runs")
    add("--threads", type=int, default=os.cpu_count())
    add("--short", action="store_true", help="a smaller sweep of one small model; other flags still count")
    add("--curve", action="store_true", help="instead: our time by number of rows and by number of layers")
    add("--json", type=Path, metavar="PATH", help="also write the figures here")
    if "--short" in words:
        parser.set_defaults(**SHORT)
    return parser.parse_args(words)


def _contest(model: str, folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    _prepare(model, folder, asked, n_layers=asked.layers, doses=asked.doses, positions=asked.positions)
    parameters = Parameters(**json.loads((folder / "parameters.json").read_text("utf-8")))
    runs = []
    for positions in asked.positions:
        work = Work.read(folder / f"{positions}.json")
        told = {name: _told(ROSTER[name], folder, work, asked) for name in asked.contestants}
        print(table(told, work, parameters), end="\n\n", flush=True)
        results = {
            name: {"failed": one} if isinstance(one, str) else asdict(figures(name, told, work, parameters))
            for name, one in told.items()
        }
        sizes = {"prompts": len(work.prompts), "conditions": len(work.conditions), "new_tokens": work.new_tokens}
        head = {"model": model, "positions": positions, "threads": work.threads, "parameters": asdict(parameters)}
        runs.append({**head, **sizes, "contestants": results})
    return runs


def _told(contestant: Contestant, folder: Path, work: Work, asked: argparse.Namespace) -> dict[str, Any] | str:
    """What one contestant wrote, or why it did not."""
    python = _interpreter(contestant, asked.peer_python)
    if python is None:
        venv, requirements = contestant.venv, contestant.requirements
        return f"not installed: python3 -m venv {venv} && {venv}/bin/python -m pip install -r {requirements}"
    shares = {"one": asked.one_share, "base": asked.base_share, "peer": asked.peer_share, "full": 1.0}
    share = shares[contestant.group]
    if contestant.mixes:  # too few conditions would not fill its batches
        share = max(share, 2 * max(contestant.sizes) / len(work))
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    words = [str(folder), work.positions, contestant.name, str(share), str(result)]
    start = time.perf_counter()
    failure = _run(python, "benchmarks.contest", words, offline=True)
    _say(f"  {contestant.name}, {work.positions}: {failure or 'done'}, {time.perf_counter() - start:.0f} s")
    return f"failed: {failure}" if failure else json.loads(result.read_text("utf-8"))


def _interpreter(contestant: Contestant, given: Sequence[Path] | None) -> Path | None:
    """Ours, or the first given one that holds the peer's package, by default that of the peer's own environment."""
    if contestant.package is None:
        return Path(sys.executable)
    probe = f"import importlib.metadata as held; held.version({contestant.package!r})"
    for python in given or [ROOT / contestant.venv / "bin" / "python"]:
        if python.exists() and subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0:
            return python.absolute()
    return None


def _run(python: Path, module: str, words: Sequence[str], *, offline: bool) -> str:
    """Run a module of this folder and wait; empty, or the last line that it said before it failed."""
    environment = {**os.environ, **({"HF_HUB_OFFLINE": "1"} if offline else {}), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [python, "-m", module, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return said[-1] if said else f"ended with {done.returncode}"


def _prepare(model: str, folder: Path, asked: argparse.Namespace, **what: Any) -> None:
    sizes = {"n_prompts": asked.prompts, "new_tokens": asked.new_tokens, "threads": asked.threads}
    plan = Plan(model=model, **sizes, **what)
    _say(f"{model}: preparing")
    if failure := _run(
        Path(sys.executable), "benchmarks.prepare", [str(folder), json.dumps(asdict(plan))], offline=False
    ):
        raise SystemExit(f"{model} could not be prepared: {failure}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _curve(model: str, folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    positions = asked.positions[0]
    _prepare(model, folder, asked, n_layers=8, doses=DOSES, positions=(positions,))
    result = folder / "curve.json"
    words = [str(folder), positions, "8" if asked.short else "32", str(result)]
    if failure := _run(Path(sys.executable), "benchmarks.curve", words, offline=True):
        raise SystemExit(f"{model} could not be measured: {failure}")
    points = json.loads(result.read_text("utf-8"))
    lines = [_curve_line(one) for one in points]
    head = ["more", "rows", "conditions", "layers", "tokens", "seconds", "ms/row", "ms/token"]
    print(f"{model}, {positions}: ours, {asked.threads} threads\n{aligned([head, *lines])}\n", flush=True)
    return [{"model": model, "positions": positions, "threads": asked.threads, "curve": points}]


def _curve_line(one: dict[str, Any]) -> list[str]:
    counts = [str(one[name]) for name in ("rows", "conditions", "layers", "tokens")]
    per_row, per_token = (1000 * one["seconds"] / one[unit] for unit in ("rows", "tokens"))
    return [one["series"], *counts, f"{one['seconds']:.1f}", f"{per_row:.0f}", f"{per_token:.1f}"]


if __name__ == "__main__":
    main()
