"""The commands that do one thing each: a vector, a few answers, labels, a report, the list of models.

What this module does not know: how anything is done.
"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from crystallized_safety.cli.arguments import Dtype, Model, slug
from crystallized_safety.cli.showing import say
from crystallized_safety.errors import InputError

__all__ = ["extract_command", "judge_command", "models_command", "report_command", "steer_command"]


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

    path = check_suffix(output or Path("data/vectors") / f"{slug(model)}-layer{layer}.safetensors")
    texts = _extraction_texts(harmful, harmless)
    lm = load(model, dtype=dtype, device=device, cache=cache, report=say)
    vector = SteeringVectorExtractor(lm).load_model().extract(*texts, layer=layer, position=position)
    save_vector(vector, path)
    print(
        f"{path}: layer {layer}, position {position}, length {vector.gap_norm:.3f}, {vector.delta(1.0):.1%} of the residual norm"
    )


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
    temperature: float = 0.0,
    seed: int = 0,
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
        temperature: 0 is greedy; above, tokens are drawn.
        seed: What they are drawn by, the same for every dose.
        dtype: Precision of the weights.
        device: auto, cpu, cuda, cuda:1, mps.
        cache: Folder for model weights.
    """
    from crystallized_safety.evaluation import judge_by_matcher
    from crystallized_safety.extraction import SteeringVectorExtractor
    from crystallized_safety.models import load
    from crystallized_safety.steering import ActivationSteerer, check_sampling
    from crystallized_safety.vectors import load_vector

    if max_new_tokens < 1:
        raise InputError(
            f"An answer must have at least one token, but {max_new_tokens} came. Pass --max-new-tokens 48."
        )
    check_sampling(temperature, seed)
    held = load_vector(vector) if vector else None
    lm = load(model, dtype=dtype, device=device, cache=cache, report=say)
    steerer = ActivationSteerer(lm, layer=layer).load_model()
    texts = _extraction_texts(None, None)
    steerer.set_steering_vector(held or SteeringVectorExtractor(lm).load_model().extract(*texts, layer=layer))
    answers = steerer.generate_batch(
        [prompt] * len(alphas),
        alphas,
        operator=operator,
        positions=positions,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    for alpha, answer in zip(alphas, answers, strict=True):
        judgement = judge_by_matcher(prompt, answer)
        print(f"\nalpha {alpha:+g}  [{judgement.label}: {judgement.reason}]\n{answer.strip()}")


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


def report_command(run: Annotated[Path, tyro.conf.Positional], *, completions: bool = False) -> None:
    """Rebuild the report, table and figures of a finished run; nothing is generated.

    Args:
        run: Folder of the run.
        completions: Put the completions into the report too, folded; they are left out by default.
    """
    from crystallized_safety.report import write_run_report

    print(f"report: {write_run_report(run, completions=completions)}")


def models_command() -> None:
    """List the models that have an alias, and where their weights come from."""
    from crystallized_safety.models.registry import registry

    for entry in registry().values():
        print(
            f"{entry.alias:20} {entry.n_layers} layers, width {entry.d_model}: {', then '.join(map(str, entry.sources))}"
        )


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
