"""The commands that measure a model into a run folder, and go on from there when they are called again.

What this module does not know: how anything is measured.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from crystallized_safety.cli.arguments import Dtype, Model, slug
from crystallized_safety.cli.showing import progress_bar, say

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["run_command", "screen_command", "sweep_command"]


def run_command(
    model: Model,
    *,
    preset: str = "quick",
    output: Path | None = None,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    prompts: Path | None = None,
    cache: Path | None = None,
    decide_early: bool = False,
) -> None:
    """Measure one model: is a refusal direction readable, and is it controllable? Ends in a verdict and a report.

    Running the same command again resumes and does no work twice.

    Args:
        model: Alias (see `crystallized models`), Hugging Face id, local folder or .gguf file.
        preset: quick, full, or a YAML file of the same form as configs/sweeps/quick.yaml.
        output: Folder of the run; None: results/MODEL-PRESET.
        seed: Seed of the bootstrap and of the random directions.
        dtype: Precision of the weights; auto is float32 on a CPU and bfloat16 on a GPU.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: Largest number of rows decoded together; None: as many as fit into memory.
        prompts: A JSONL file of matched pairs in place of the packaged ones.
        cache: Folder for model weights; None: $CRYSTALLIZED_CACHE or the user's cache folder.
        decide_early: Stop an answer where its label can no longer change; the completion says so. Not for judges that want all.
    """
    from crystallized_safety.report import write_run_report
    from crystallized_safety.study import StudyConfig, run_study

    folder = output or Path("results") / f"{slug(model)}-{slug(preset)}"
    config = StudyConfig(model, preset, folder, seed, dtype, device, batch_size, prompts, cache, decide_early)
    with progress_bar() as progress:
        summary = run_study(config, report=say, progress=progress)
    path = write_run_report(folder)
    print(summary.verdict.sentence)
    for note in (*summary.verdict.notes, *summary.warnings):
        print(f"  {note}")
    print(f"verdict: readable={summary.verdict.readable} steerable={summary.verdict.steerable} report={path}")


def sweep_command(
    model: Model,
    *,
    layers: tuple[int, ...] = (),
    kappas: tuple[float, ...] = (-2.0, 2.0),
    position: int = -1,
    preset: str = "quick",
    output: Path | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    prompts: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Layer-wise steering: rates with intervals at many layers and doses, without a verdict.

    Args:
        model: Alias, Hugging Face id, local folder or .gguf file.
        layers: 0-based decoder blocks; None: all.
        kappas: Doses in gap units; negative ones are tried on harmful prompts, positive ones on harmless prompts.
        position: Prompt token at which the direction is read, counted from the end; −1 is the last.
        preset: Where the number of prompts and tokens comes from.
        output: Folder of the run; None: results/MODEL-sweep.
        dtype: Precision of the weights.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: Largest number of rows decoded together; None: as many as fit into memory.
        prompts: A JSONL file of matched pairs in place of the packaged ones.
        cache: Folder for model weights.
    """
    from crystallized_safety.report import dose_table
    from crystallized_safety.study import StudyConfig, SweepConfig, run_layer_sweep

    folder = output or Path("results") / f"{slug(model)}-sweep"
    study = StudyConfig(model, preset, folder, 0, dtype, device, batch_size, prompts, cache)
    with progress_bar() as progress:
        points = run_layer_sweep(SweepConfig(study, layers, kappas, position), report=say, progress=progress)
    _show(dose_table(points), folder)


def screen_command(
    model: Model,
    *,
    layers: tuple[int, ...] = (),
    kappas: tuple[float, ...] = (-2.0, 2.0),
    position: int = -1,
    preset: str = "quick",
    output: Path | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    prompts: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Log-odds of refusal with intervals at many layers and doses, before a token is generated, without a verdict.

    Args:
        model: Alias, Hugging Face id, local folder or .gguf file.
        layers: 0-based decoder blocks; None: all.
        kappas: Doses in gap units; each is tried on harmful and on harmless prompts.
        position: Prompt token at which the direction is read, counted from the end; −1 is the last.
        preset: Where the number of prompts and the steered positions come from.
        output: Folder of the run; None: results/MODEL-screen.
        dtype: Precision of the weights.
        device: auto, cpu, cuda, cuda:1, mps.
        batch_size: Largest number of openers read together; None: as many as fit into memory.
        prompts: A JSONL file of matched pairs in place of the packaged ones.
        cache: Folder for model weights; None: $CRYSTALLIZED_CACHE or the user's cache folder.
    """
    from crystallized_safety.report import screen_table
    from crystallized_safety.study import StudyConfig, SweepConfig, run_screen

    folder = output or Path("results") / f"{slug(model)}-screen"
    study = StudyConfig(model, preset, folder, 0, dtype, device, batch_size, prompts, cache)
    with progress_bar() as progress:
        points = run_screen(SweepConfig(study, layers, kappas, position), report=say, progress=progress)
    _show(screen_table(points), folder)


def _show(table: "pd.DataFrame", folder: Path) -> None:
    """Print a table and leave it in the folder."""
    from crystallized_safety.store import write_whole

    write_whole(folder / "table.csv", table.to_csv(index=False))
    print(table.to_string(index=False))
    print(f"table: {folder / 'table.csv'}")
