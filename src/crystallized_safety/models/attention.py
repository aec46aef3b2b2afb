"""Attention of one new token a row over a shared prefix and the row's own tokens, for any model of transformers' interface.

The keys and values of a prefix are read once for all rows that share it (the idea of Hydragen, Juravsky et al. 2402.05099, and
of cascade inference). What this module does not know: tokens, edits, prefill, which is left to the model's own attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from crystallized_safety.models.cache import RowCache, StepPlan

__all__ = ["attending", "knows_shared_attention"]

_NAME = "crystallized_shared_prefix"
_CACHE: ContextVar[RowCache] = ContextVar("row_cache")


def knows_shared_attention(model: PreTrainedModel) -> bool:
    """Whether the model's attention goes through transformers' interface, so that ours can take its place."""
    config = model.config.get_text_config(decoder=True)
    return bool(getattr(model, "_supports_attention_backend", False)) and config.model_type not in _OTHERS


_OTHERS = frozenset({"gpt_oss"})
"""Architectures whose attention has a part that ours does not: sinks."""


@contextmanager
def attending(model: PreTrainedModel, cache: RowCache) -> Iterator[None]:
    """While open, the model attends through `cache`; its own attention is back afterwards, whatever happens."""
    config: Any = model.config.get_text_config(decoder=True)
    own, token = config._attn_implementation, _CACHE.set(cache)
    try:
        config._attn_implementation = _NAME
        yield
    finally:
        config._attn_implementation = own
        _CACHE.reset(token)


def _attend(
    module: Any,
    query: Float[Tensor, "row head 1 d_head"],
    _key: Tensor,
    _value: Tensor,
    _mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_rest: object,
) -> tuple[Float[Tensor, "row 1 head d_head"], None]:
    """Called by each attention layer; the signature is transformers'."""
    cache = _CACHE.get()
    plan, layer = cache.plan, module.layer_idx
    assert plan is not None  # noqa: S101 - set by whoever steps
    keys, values = cache.own(layer, len(query))
    n_rows, n_heads, _, d_head = query.shape
    grouped = query.reshape(n_rows, keys.shape[1], n_heads // keys.shape[1], d_head)
    grouped = grouped * (d_head**-0.5 if scaling is None else scaling)
    scores = grouped @ keys.transpose(2, 3)
    if plan.prefix_width:
        prefix_keys, prefix_values = cache.prefix(layer)
        scores = torch.cat([_by_row(plan, _by_chunk(plan, grouped) @ prefix_keys.transpose(2, 3)), scores], dim=-1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores.to(wide) + plan.bias(sliding_window, scores.device, wide), dim=-1).to(values.dtype)
    mixed = weights[..., plan.prefix_width :] @ values
    if plan.prefix_width:
        mixed = mixed + _by_row(plan, _by_chunk(plan, weights[..., : plan.prefix_width]) @ prefix_values)
    return mixed.reshape(n_rows, 1, n_heads, values.shape[-1]), None


def _by_chunk(plan: StepPlan, rows: Float[Tensor, "row head group last"]) -> Float[Tensor, "chunk head members last"]:
    """Rows gathered in chunks of one prefix, the queries of a chunk's members one after the other."""
    n_chunks, size = plan.members.shape
    chunked = rows.index_select(0, plan.members.flatten().to(rows.device)).view(n_chunks, size, *rows.shape[1:])
    return chunked.transpose(1, 2).flatten(2, 3)


def _by_row(plan: StepPlan, chunks: Float[Tensor, "chunk head members last"]) -> Float[Tensor, "row head group last"]:
    """The inverse."""
    n_chunks, n_heads, _, last = chunks.shape
    apart = chunks.view(n_chunks, n_heads, plan.members.shape[1], -1, last).transpose(1, 2).flatten(0, 1)
    return apart.index_select(0, plan.places.to(chunks.device))


AttentionInterface.register(_NAME, _attend)
