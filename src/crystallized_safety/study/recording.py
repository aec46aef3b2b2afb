"""One recording pass over three splits: the direction of every layer and position, and how each prompt projects on it.

The activations themselves are not kept; what is, fits in a few megabytes and is read again on resume. What this module does
not know: generation, labels, the verdict.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from crystallized_safety.errors import RunError
from crystallized_safety.extraction import difference_in_means, record
from crystallized_safety.models import LanguageModel, chat_tokens, n_post_instruction
from crystallized_safety.readability import Scores
from crystallized_safety.records import Prompt
from crystallized_safety.store import RunFolder, write_whole
from crystallized_safety.study.plan import Pairs
from crystallized_safety.study.progress import RECORDED_UNITS, Meter
from crystallized_safety.vectors import SteeringVector

__all__ = ["Recorded", "read_positions", "recorded_sites"]


@dataclass(frozen=True, eq=False)
class Recorded:
    """What the pass leaves. `gaps` [n_layers, n_positions, d_model] are harmful − harmless means of the extract split."""

    positions: tuple[int, ...]
    gaps: Float[Tensor, "n_layers n_positions d_model"]
    residual_norms: Float[Tensor, "n_layers n_positions"]
    scores: Mapping[str, Scores]
    """By name of the split that was projected."""

    def vector(self, lm: LanguageModel, layer: int, position: int) -> SteeringVector:
        """The steering vector of one site, as long as the gap between the class means, so that its dose is κ."""
        column = self.positions.index(position)
        gap = self.gaps[layer, column]
        return SteeringVector(
            tensor=gap,
            layer=layer,
            position=position,
            gap_norm=float(gap.double().norm()),
            residual_norm=float(self.residual_norms[layer, column]),
            method="difference-in-means",
            model=lm.name,
            provenance={"source": lm.source},
        )


def read_positions(lm: LanguageModel) -> tuple[int, ...]:
    """Where the stream is read: the last prompt token, and the last token of the instruction itself."""
    after = n_post_instruction(lm)
    return (-1, -1 - after) if after else (-1,)


def recorded_sites(
    lm: LanguageModel,
    extract: Pairs,
    scored: Mapping[str, Pairs],
    *,
    folder: RunFolder,
    meter: Meter,
) -> Recorded:
    """Directions from `extract` and projections of the `scored` splits; read from the run folder where they are there.

    `meter` is told how many prompts each step recorded, or that there was nothing to record.
    """
    path, positions = folder.path / "recording.safetensors", read_positions(lm)
    if not path.exists():
        gaps, norms = _directions(lm, extract, positions, meter.prompts)
        projected = {name: _projections(lm, split, gaps, positions, meter.prompts) for name, split in scored.items()}
        held = {"gaps": gaps.float(), "residual_norms": norms, **projected}
        write_whole(path, save({name: tensor.contiguous() for name, tensor in held.items()}))
    else:
        meter.skip(RECORDED_UNITS * sum(len(one.both) for one in (extract, *scored.values())))
    try:
        held = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"'{path}' must be a recording, but: {error}. Delete it and run again.") from error
    return Recorded(
        positions=positions,
        gaps=held["gaps"],
        residual_norms=held["residual_norms"],
        scores={name: Scores(split.both, _array(held[name])) for name, split in scored.items()},
    )


def _directions(
    lm: LanguageModel, extract: Pairs, positions: tuple[int, ...], on_prompts: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """Gaps [n_layers, n_positions, d_model] in float64, and the median length of the stream [n_layers, n_positions]."""
    stream = _stream(lm, extract.both, positions, on_prompts)
    n = len(extract.harmful)
    return difference_in_means(stream[:n], stream[n:]), stream.double().norm(dim=-1).median(dim=0).values


def _projections(
    lm: LanguageModel,
    split: Pairs,
    gaps: Float[Tensor, "n_layers n_positions d_model"],
    positions: tuple[int, ...],
    on_prompts: Callable[[int], None],
) -> Float[Tensor, "n_prompts n_layers n_positions"]:
    units = torch.nn.functional.normalize(gaps.double(), dim=-1)
    return torch.einsum("nlpd,lpd->nlp", _stream(lm, split.both, positions, on_prompts).double(), units)


def _stream(
    lm: LanguageModel, prompts: Sequence[Prompt], positions: tuple[int, ...], on_prompts: Callable[[int], None]
) -> Float[Tensor, "n_prompts n_layers n_positions d_model"]:
    tokens = [chat_tokens(lm, prompt.text) for prompt in prompts]
    return record(lm, tokens, positions=positions, on_prompts=on_prompts).stream


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.double().numpy(), dtype=np.float64)
