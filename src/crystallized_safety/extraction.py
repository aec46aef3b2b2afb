"""Record the residual stream at template positions and estimate directions from it.

One forward pass per prompt gives every layer and position asked for; only those positions are kept. Directions are
accumulated in float64 and stored in float32. What this module does not know: generation, labels of completions, splits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from jaxtyping import Float
from torch import Tensor

from crystallized_safety.errors import InputError, ModelError
from crystallized_safety.models import LanguageModel, chat_tokens, load
from crystallized_safety.residual import recorded
from crystallized_safety.vectors import SteeringVector

__all__ = ["Recording", "SteeringVectorExtractor", "difference_in_means", "record", "record_prompts", "steering_vector"]


@dataclass(frozen=True, eq=False)
class Recording:
    """The residual stream of some prompts: shape [n_prompts, n_layers, n_positions, d_model], float32, on the CPU.

    `layers` are 0-based blocks, output side; `positions` count from the end of the templated prompt, −1 the last token.
    """

    stream: Float[Tensor, "n_prompts n_layers n_positions d_model"]
    layers: tuple[int, ...]
    positions: tuple[int, ...]

    def at(self, layer: int, position: int) -> Float[Tensor, "n_prompts d_model"]:
        """The stream of every prompt at one layer and position."""
        return self.stream[:, self.layers.index(layer), self.positions.index(position)]


@torch.inference_mode()
def record(
    lm: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] = (-1,),
    batch_size: int = 16,
    on_prompts: Callable[[int], None] = lambda _: None,
) -> Recording:
    """Read the stream of templated prompts (token ids) in one forward pass each, whatever the number of layers.

    `on_prompts` is told how many prompts each forward pass read.

    Raises InputError where there is no prompt, or one is shorter than a position asked for, ModelError where the model has
    no such layer or the stream is not finite.
    """
    layers = tuple(range(lm.n_layers)) if layers is None else tuple(layers)
    _check_sites(lm, prompts, layers, positions)
    stream = torch.empty(len(prompts), len(layers), len(positions), lm.d_model, dtype=_kept_dtype(lm))
    for chunk in _equally_long(prompts, batch_size):
        with recorded(lm.blocks, layers=layers, positions=positions) as seen:
            lm.model(
                input_ids=torch.tensor([prompts[index] for index in chunk], device=lm.device),
                use_cache=False,
                logits_to_keep=1,
            )
        for column, layer in enumerate(layers):
            stream[chunk, column] = seen[layer].to(stream.dtype)
        on_prompts(len(chunk))
    if not bool(torch.isfinite(stream).all()):
        raise ModelError(
            f"The residual stream of '{lm.name}' must be finite, but holds NaN or infinity. Load it in float32 or bfloat16."
        )
    return Recording(stream, layers, tuple(positions))


def _kept_dtype(lm: LanguageModel) -> torch.dtype:
    return torch.float64 if lm.dtype == torch.float64 else torch.float32


def _check_sites(
    lm: LanguageModel, prompts: Sequence[tuple[int, ...]], layers: Sequence[int], positions: Sequence[int]
) -> None:
    if not prompts:
        raise InputError("Extraction needs at least one prompt of each kind, but none came. Pass a list of prompts.")
    if missing := [layer for layer in layers if not 0 <= layer < lm.n_layers]:
        raise ModelError(
            f"A layer of '{lm.name}' must be within 0 to {lm.n_layers - 1}, but {missing[0]} came. Choose another layer."
        )
    shortest = min(len(prompt) for prompt in prompts)
    if not positions or not all(-shortest <= position < 0 for position in positions):
        raise InputError(
            f"Positions must count from the end, −1 to −{shortest} for the shortest prompt, but {list(positions)} came. "
            "−1 is the last prompt token."
        )


def _equally_long(prompts: Sequence[tuple[int, ...]], batch_size: int) -> Iterator[list[int]]:
    """Indices of prompts that go through the model together: of one length, so that nothing is padded."""
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for _, group in groupby(by_length, key=lambda index: len(prompts[index])):
        while chunk := list(islice(group, batch_size)):
            yield chunk


def difference_in_means(
    harmful: Float[Tensor, "n_harmful *site d_model"], harmless: Float[Tensor, "n_harmless *site d_model"]
) -> Float[Tensor, "*site d_model"]:
    """mean(harmful) − mean(harmless), summed in float64 (Marks and Tegmark 2310.06824; Arditi et al. 2406.11717, §2.3)."""
    return harmful.double().mean(dim=0) - harmless.double().mean(dim=0)


def steering_vector(
    lm: LanguageModel,
    harmful: Recording,
    harmless: Recording,
    *,
    layer: int,
    position: int,
    provenance: dict[str, str] | None = None,
) -> SteeringVector:
    """Difference in means at one layer and position, with its norms. Raises VectorError where the classes do not differ."""
    ours, theirs = harmful.at(layer, position), harmless.at(layer, position)
    gap = difference_in_means(ours, theirs)
    return SteeringVector(
        tensor=gap.float(),
        layer=layer,
        position=position,
        gap_norm=float(gap.norm()),
        residual_norm=float(torch.cat([ours, theirs]).double().norm(dim=-1).median()),
        method="difference-in-means",
        model=lm.name,
        provenance={
            "source": lm.source,
            "n_harmful": str(len(ours)),
            "n_harmless": str(len(theirs)),
            **(provenance or {}),
        },
    )


def record_prompts(
    lm: LanguageModel, texts: Sequence[str], *, layers: Sequence[int] | None = None, positions: Sequence[int] = (-1,)
) -> Recording:
    """`record` for plain prompts: each goes through the chat template first."""
    return record(lm, [chat_tokens(lm, text) for text in texts], layers=layers, positions=positions)


class SteeringVectorExtractor:
    """Extract steering vectors from one chat model; the promised face of this module.

    `model` is a Hub id, a registry alias, a local folder, a GGUF file, or a model that is already loaded.
    """

    def __init__(self, model: str | LanguageModel) -> None:
        self._asked = model
        self._lm: LanguageModel | None = None

    def load_model(self) -> "SteeringVectorExtractor":
        """Load the weights. Raises ModelError where they cannot be had."""
        self._lm = load(self._asked) if isinstance(self._asked, str) else self._asked
        return self

    def extract(
        self, harmful: Sequence[str], harmless: Sequence[str], layer: int, position: int = -1
    ) -> SteeringVector:
        """The difference in means of two lists of prompts at one layer and template position.

        Raises ModelError before `load_model`, InputError for an empty list.
        """
        if self._lm is None:
            raise ModelError(f"The model '{self._asked}' must be loaded first, but it is not. Call load_model().")
        if not harmful or not harmless:
            raise InputError(
                "Extraction needs at least one prompt of each kind, but one list is empty. Pass two lists of prompts."
            )
        both = record_prompts(self._lm, [*harmful, *harmless], layers=[layer], positions=[position])
        split = len(harmful)
        parts = [
            Recording(stream, both.layers, both.positions) for stream in (both.stream[:split], both.stream[split:])
        ]
        return steering_vector(self._lm, parts[0], parts[1], layer=layer, position=position)
