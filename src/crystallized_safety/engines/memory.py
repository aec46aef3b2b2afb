"""How many rows fit into memory, and what counts as having run out of it.

What this module does not know: rows, caches. Memory that other processes take later is found out by running out.
"""

import psutil
import torch

from crystallized_safety.models import LanguageModel

__all__ = ["is_out_of_memory", "rows_that_fit"]

_MOST_ROWS = 512
"""Beyond this many rows a matrix product is no faster per row; fewer cost time, more cost memory."""
_SHARE = 0.5
"""Share of the free memory that rows may take."""
_LEAST_BYTES = 256 * 2**20
"""Rows may take as much as the weights, or this much where the weights are smaller."""


def rows_that_fit(lm: LanguageModel, *, width: int, token_bytes: int, n_tokens: int) -> int:
    """Rows of `width` own tokens, each with the logits of `n_tokens` tokens: as many as half the free memory holds, 512 at most.

    They take no more than the weights do: a model that fits leaves room for its rows.
    """
    weights = sum(weight.numel() * weight.element_size() for weight in lm.model.parameters())
    room = min(_SHARE * _free_bytes(lm.device), max(weights, _LEAST_BYTES))
    logits = n_tokens * torch.finfo(lm.dtype).bits // 8
    return max(1, min(_MOST_ROWS, int(room // (width * token_bytes + logits))))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a failure means that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in ("can't allocate memory", "not enough memory", "out of memory")
    )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
