"""Key-value caches of rows that were prefilled apart, joined into one batch.

Rows of equal length are prefilled without padding: with some architectures a padding position attends to nothing, becomes
NaN, and spreads. What this module does not know: tokens, edits, which rows belong together.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

__all__ = ["empty_cache", "joined_cache"]


def empty_cache() -> DynamicCache:
    """A cache that keeps every position in every layer; sliding windows are applied by the attention mask alone."""
    return DynamicCache()


def joined_cache(
    caches: Sequence[DynamicCache], rows: Int[Tensor, " row"], starts: Sequence[int] | None = None
) -> DynamicCache:
    """One cache whose row i is row `rows[i]` of all caches one after the other.

    Each cache loses its columns before its start, which no row of it uses; shorter ones are then padded on the left with
    zeros, which the caller's mask hides.
    """
    starts = [0] * len(caches) if starts is None else starts
    joined = empty_cache()
    for layer in range(len(caches[0].layers)):
        held: list[Any] = [cache.layers[layer] for cache in caches]
        keys = _stacked([one.keys[:, :, start:] for one, start in zip(held, starts, strict=True)], rows)
        joined.update(
            keys, _stacked([one.values[:, :, start:] for one, start in zip(held, starts, strict=True)], rows), layer
        )
    return joined


def _stacked(
    parts: Sequence[Float[Tensor, "_ head _ d_head"]], rows: Int[Tensor, " row"]
) -> Float[Tensor, "row head width d_head"]:
    width = max(part.shape[-2] for part in parts)
    return torch.cat([pad(part, (0, 0, width - part.shape[-2], 0)) for part in parts]).index_select(0, rows)
