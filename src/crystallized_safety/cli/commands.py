"""The command line: parse, call one function, show what came. `--help` never imports torch.

What this module does not know: how anything is measured. An error that the user can mend is one sentence and exit code 2.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from crystallized_safety.cli.showing import progress_bar, say
from crystallized_safety.errors import CrystallizedError, InputError

if TYPE_CHECKING:
    from crystallized_safety.records import DosePoint

__all__ = ["app", "main"]

app = tyro.extras.SubcommandApp()
Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
Model = Annotated[str, tyro.conf.Positional]


@app.command(name="run")
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

    folder = output or Path("results") / f"{_slug(model)}-{_slug(preset)}"
    config = StudyConfig(model, preset, folder, seed, dtype, device, batch_size, prompts, cache, decide_early)
    with progress_bar() as progress:
        summary = run_study(config, report=say, progress=progress)
    path = write_run_report(folder)
    print(summary.verdict.sentence)
    for note in (*summary.verdict.notes, *summary.warnings):
        print(f"  {note}")
    print(f"verdict: readable={summary.verdict.readable} steerable={summary.verdict.steerable} report={path}")


@app.command(name="extract")
def extract_command(
    model: Model,
    *,
    layer: int,
    output: Path | None = None,
    position: int = -1,
    harmful: Path | None = None,
    harmless: Path | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    cache: Path | None = None,
) -> None:
    """Extract a steering vector: the difference in means of harmful and harmless prompts at one layer.

    Args:
        model: Alias, Hugging Face id, local folder or .gguf file.
        layer: 0-based decoder block whose output is read.
        output: Where to save it, .safetensors or .pt; None: data/vectors/MODEL-layerN.safetensors.
        position: Prompt token that is read, counted from the end; −1 is the last.
        harmful: Text file, one prompt a line, in place of the packaged prompts; needs --harmless too.
        harmless: Text file, one prompt a line.
        dtype: Precision of the weights.
        device: auto, cpu, cuda, cuda:1, mps.
        cache: Folder for model weights.
    """
    from crystallized_safety.extraction import SteeringVectorExtractor
    from crystallized_safety.models import load
    from crystallized_safety.vectors import check_suffix, save_vector

    path = check_suffix(output or Path("data/vectors") / f"{_slug(model)}-layer{layer}.safetensors")
    texts = _extraction_texts(harmful, harmless)
    lm = load(model, dtype=dtype, device=device, cache=cache, report=say)
    vector = SteeringVectorExtractor(lm).load_model().extract(*texts, layer=layer, position=position)
    save_vector(vector, path)
    print(
        f"{path}: layer {layer}, position {position}, length {vector.gap_norm:.3f}, {vector.delta(1.0):.1%} of the residual norm"
    )


@app.command(name="steer")
def steer_command(
    model: Model,
    prompt: Annotated[str, tyro.conf.Positional],
    *,
    layer: int,
    vector: Path | None = None,
    alphas: tuple[float, ...] = (-2.0, 0.0, 2.0),
    operator: Literal["add", "ablate", "clamp"] = "add",
    positions: Literal["all", "last-prompt-token-on", "generated"] = "all",
    max_new_tokens: int = 48,
    dtype: Dtype = "auto",
    device: str = "auto",
    cache: Path | None = None,
) -> None:
    """Answer one prompt under several doses, side by side. Negative doses suppress refusal, positive ones enhance it.

    Args:
        model: Alias, Hugging Face id, local folder or .gguf file.
        prompt: What the user asks.
        layer: 0-based decoder block whose output is edited.
        vector: A saved vector; None: extracted now from the packaged prompts.
        alphas: Multiples of the vector.
        operator: add moves the stream, ablate removes that share of the projection, clamp sets it.
        positions: Tokens whose stream is edited.
        max_new_tokens: Longest answer.
        dtype: Precision of the weights.
        device: auto, cpu, cuda, cuda:1, mps.
        cache: Folder for model weights.
    """
    from crystallized_safety.evaluation import judge_by_matcher
    from crystallized_safety.extraction import SteeringVectorExtractor
    from crystallized_safety.models import load
    from crystallized_safety.steering import ActivationSteerer
    from crystallized_safety.vectors import load_vector

    if max_new_tokens < 1:
        raise InputError(
            f"An answer must have at least one token, but {max_new_tokens} came. Pass --max-new-tokens 48."
        )
    held = load_vector(vector) if vector else None
    lm = load(model, dtype=dtype, device=device, cache=cache, report=say)
    steerer = ActivationSteerer(lm, layer=layer).load_model()
    texts = _extraction_texts(None, None)
    steerer.set_steering_vector(held or SteeringVectorExtractor(lm).load_model().extract(*texts, layer=layer))
    answers = steerer.generate_batch(
        [prompt] * len(alphas), alphas, operator=operator, positions=positions, max_new_tokens=max_new_tokens
    )
    for alpha, answer in zip(alphas, answers, strict=True):
        judgement = judge_by_matcher(prompt, answer)
        print(f"\nalpha {alpha:+g}  [{judgement.label}: {judgement.reason}]\n{answer.strip()}")


@app.command(name="sweep")
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
    from crystallized_safety.store import write_whole
    from crystallized_safety.study import StudyConfig, SweepConfig, run_layer_sweep

    folder = output or Path("results") / f"{_slug(model)}-sweep"
    study = StudyConfig(model, preset, folder, 0, dtype, device, batch_size, prompts, cache)
    with progress_bar() as progress:
        points: Sequence[DosePoint] = run_layer_sweep(
            SweepConfig(study, layers, kappas, position), report=say, progress=progress
        )
    table = dose_table(points)
    write_whole(folder / "table.csv", table.to_csv(index=False))
    print(table.to_string(index=False))
    print(f"table: {folder / 'table.csv'}")


@app.command(name="judge")
def judge_command(*, input: Path, output: Path, judge: Literal["matcher"] = "matcher") -> None:  # noqa: A002
    """Label any file of {"prompt", "completion"} lines: refuse, comply, evade, degenerate or unscored.

    Args:
        input: JSONL file to read.
        output: JSONL file to write, the same lines with label, judge and reason.
        judge: Who decides.
    """
    from crystallized_safety.evaluation import label_file

    counts = label_file(input, output)
    print(f"{judge}: " + ", ".join(f"{count} {label}" for label, count in counts.items()) + f" → {output}")


@app.command(name="report")
def report_command(run: Annotated[Path, tyro.conf.Positional], *, completions: bool = False) -> None:
    """Rebuild the report, table and figures of a finished run; nothing is generated.

    Args:
        run: Folder of the run.
        completions: Put the completions into the report too, folded; they are left out by default.
    """
    from crystallized_safety.report import write_run_report

    print(f"report: {write_run_report(run, completions=completions)}")


@app.command(name="models")
def models_command() -> None:
    """List the models that have an alias, and where their weights come from."""
    from crystallized_safety.models.registry import registry

    for entry in registry().values():
        print(
            f"{entry.alias:20} {entry.n_layers} layers, width {entry.d_model}: {', then '.join(map(str, entry.sources))}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `crystallized`."""
    try:
        app.cli(prog="crystallized", args=_model_first(sys.argv[1:] if arguments is None else arguments))
    except CrystallizedError as error:
        print("error:", *str(error).split("\n"), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


def _model_first(arguments: Sequence[str]) -> list[str]:
    """`COMMAND … --model NAME`, as the experiments are called, is `COMMAND NAME …`."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--model=") else [word])]
    if "--model" not in words[1:-1]:
        return words
    at = words.index("--model", 1)
    return [words[0], words[at + 1], *words[1:at], *words[at + 2 :]]


def _extraction_texts(harmful: Path | None, harmless: Path | None) -> tuple[list[str], list[str]]:
    from crystallized_safety.prompts import load_prompts, select

    if (harmful is None) != (harmless is None):
        raise InputError("Both prompt files must be given, but only one came. Pass --harmful FILE --harmless FILE.")
    if harmful is not None and harmless is not None:
        return _lines(harmful), _lines(harmless)
    prompts = load_prompts()
    chosen = [select(prompts, label=label, split="extract") for label in ("harmful", "harmless")]
    return [one.text for one in chosen[0]], [one.text for one in chosen[1]]


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' must be a UTF-8 text file, but: {error}. Pass one prompt a line.") from error
    if not lines:
        raise InputError(f"'{path}' must hold one prompt a line, but it is empty. Write some prompts.")
    return lines


def _slug(name: str) -> str:
    return (
        Path(name).stem
        if Path(name).suffix in {".yaml", ".yml", ".gguf"}
        else name.rstrip("/").rsplit("/", maxsplit=1)[-1]
    )
