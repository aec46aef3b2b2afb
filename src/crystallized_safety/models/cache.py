"""Key-value memory of a running batch, in which rows share what they have in common.

A row attends to a prefix, which other rows may share and which is kept once, and to tokens of its own, in a slot that is
allocated before the first step, so that no step copies or grows anything. What this module does not know: tokens, edits,
which rows share a prefix and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

__all__ = ["FixedShape", "KeysValues", "RowCache", "StepPlan", "keys_values", "masks_in_full", "past", "plan_step"]

KeysValues = tuple[Float[Tensor, "... _head _position _d_head"], Float[Tensor, "... _head _position _d_head"]]
"""Keys and values of one layer."""


def past(layers: Sequence[KeysValues]) -> DynamicCache:
    """A cache for transformers' own forward pass that holds these keys and values, a batch in each layer."""
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    return cache


def keys_values(cache: DynamicCache, n_layers: int) -> list[KeysValues | None]:
    """What a cache holds, by layer; None for a layer that the forward pass skipped."""
    held: list[Any] = [cache.layers[index] if index < len(cache.layers) else None for index in range(n_layers)]
    return [
        (one.keys, one.values) if one is not None and one.is_initialized and one.keys.numel() else None for one in held
    ]


@dataclass(frozen=True, eq=False)
class StepPlan:
    """Who reads and writes where while one token of every row is read.

    `columns` is the place in its slot that a row's token fills, `prefixes` how many positions of its prefix a row sees. Rows
    of one prefix are attended to together, in chunks of equally many rows: `members` lists the rows of each chunk (any row
    where a chunk is not full), `places` where each row is found in them, and `chunks` which prefix each chunk reads.
    """

    columns: Int[Tensor, " row"]
    prefixes: Int[Tensor, " row"]
    own_width: int
    prefix_width: int
    chunks: Int[Tensor, " chunk"] | None
    """None where chunk i reads prefix i, all of them."""
    members: Int[Tensor, "chunk member"]
    places: Int[Tensor, " row"]
    _biases: dict[tuple[int | None, torch.device, torch.dtype], Tensor] = field(default_factory=dict)

    def afresh(self) -> "StepPlan":
        """The same plan with nothing derived from it yet."""
        return replace(self, _biases={})

    def bias(self, window: int | None, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "row 1 1 position"]:
        """Zero where a row attends, −∞ elsewhere: prefix positions, then own ones; a sliding window sees the last `window`."""
        key = (window, device, dtype)
        if key not in self._biases:
            prefix = torch.arange(self.prefix_width, device=self.columns.device)[None]
            own = torch.arange(self.own_width, device=self.columns.device)[None]
            seen, at = self.prefixes[:, None], self.columns[:, None]
            shown = [prefix < seen, own <= at]
            if window is not None:
                first = seen + at - window
                shown = [shown[0] & (prefix > first), shown[1] & (own + seen > first)]
            hidden = ~torch.cat(shown, dim=-1)
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            self._biases[key] = bias[:, None, None].to(device)
        return self._biases[key]


@dataclass(frozen=True)
class FixedShape:
    """Sizes that a plan is padded to, so that steps of many batches look alike: rows, own and prefix positions."""

    n_rows: int
    own_width: int
    prefix_width: int


def plan_step(
    *,
    prefixes: Sequence[int],
    lengths: Sequence[int],
    columns: Sequence[int],
    device: torch.device,
    fixed: FixedShape | None = None,
) -> StepPlan:
    """Plan a step of the rows in slots 0, 1, …: `prefixes` names each row's prefix, of which it sees `lengths` positions.

    Prefixes that hold many rows are split, so that chunks are about equally full. With a `fixed` shape, rows that do nothing
    and chunks that nobody reads are added.
    """
    n_rows = fixed.n_rows if fixed else len(columns)
    idle = n_rows - len(columns)
    groups: dict[int, list[int]] = {}
    for row, prefix in enumerate([*prefixes, *[prefixes[0]] * idle]):
        groups.setdefault(prefix, []).append(row)
    size = _chunk_size(n_rows, len(groups), max(map(len, groups.values())), fixed=fixed is not None)
    chunked = [
        (prefix, rows[start : start + size])
        for prefix, rows in sorted(groups.items())
        for start in range(0, len(rows), size)
    ]
    places = [0] * n_rows
    for chunk, (_, rows) in enumerate(chunked):
        for member, row in enumerate(rows):
            places[row] = chunk * size + member
    if fixed:
        chunked += [chunked[0]] * (_power_of_two(len(chunked)) - len(chunked))
    named = [prefix for prefix, _ in chunked]

    def whole(numbers: object) -> Tensor:
        return torch.tensor(numbers, device=device, dtype=torch.long)

    return StepPlan(
        columns=whole([*columns, *[0] * idle]),
        prefixes=whole([*lengths, *[0] * idle]),
        own_width=fixed.own_width if fixed else max(columns) + 1,
        prefix_width=fixed.prefix_width if fixed else max(lengths),
        chunks=None if not fixed and named == list(range(len(named))) else whole(named),
        members=whole([rows + [rows[0]] * (size - len(rows)) for _, rows in chunked]),
        places=whole(places),
    )


def _chunk_size(n_rows: int, n_groups: int, largest: int, *, fixed: bool) -> int:
    """Rows in a chunk: those of the largest group, unless that leaves most chunks half empty."""
    even = -(-n_rows // n_groups)
    if fixed:
        return _power_of_two(even)
    return largest if largest * n_groups <= 2 * n_rows else even


def _power_of_two(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def masks_in_full(model: PreTrainedModel, plan: StepPlan) -> Tensor | dict[str, Tensor]:
    """The plan as additive masks [row, 1, 1, position] for a model's own attention, by layer type where there are several."""
    config: Any = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)

    def mask(seen: int | None) -> Tensor:
        bias = plan.bias(seen, plan.columns.device, model.dtype)
        return bias.clamp(min=torch.finfo(model.dtype).min)

    kinds = set(getattr(config, "layer_types", None) or ())
    if len(kinds) > 1:
        return {kind: mask(window if kind == "sliding_attention" else None) for kind in kinds}
    return mask(window if kinds != {"full_attention"} else None)


class RowCache(Cache):
    """The memory of one running batch: `n_slots` rows of up to `width` own tokens, and as many prefixes as are stored.

    Before each forward pass of one token a row, set `plan`. `whole` makes `update` return every row's keys and values in
    full, for attention that knows nothing of prefixes.
    """

    def __init__(self, *, n_layers: int, n_slots: int, width: int, whole: bool) -> None:
        super().__init__(layers=[])
        self.whole = whole
        self.version = 0
        """Changes whenever memory moves: views of it that were taken before are stale."""
        self._n_slots, self._width = n_slots, width
        self._own: list[KeysValues | None] = [None] * n_layers
        self._prefix: list[KeysValues | None] = [None] * n_layers
        self.plan: StepPlan | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: object, **_kwargs: object
    ) -> KeysValues:
        """Called by each attention layer with this step's keys and values [row, head, 1, d_head]."""
        assert self.plan is not None  # noqa: S101 - set by whoever steps
        rows = torch.arange(len(key_states), device=key_states.device)
        columns = self.plan.columns.to(key_states.device)
        for held, new in zip(
            self._allocated(layer_idx, (key_states, value_states)), (key_states, value_states), strict=True
        ):
            held[rows, :, columns] = new[:, :, 0]
        return self._in_full(layer_idx, len(rows)) if self.whole else (key_states, value_states)

    @property
    def prefix_width(self) -> int:
        """Positions that the longest stored prefix has room for."""
        return max((held[0].shape[2] for held in self._prefix if held is not None), default=0)

    def own(self, layer: int, n_rows: int) -> KeysValues:
        """Keys and values of the first rows' own tokens, as wide as the plan needs; views."""
        assert self.plan is not None  # noqa: S101 - set by whoever steps
        keys, values = self._held(self._own, layer)
        return keys[:n_rows, :, : self.plan.own_width], values[:n_rows, :, : self.plan.own_width]

    def prefix(self, layer: int) -> KeysValues:
        """Keys and values [chunk, head, position, d_head] of the prefix that each chunk of the plan reads."""
        plan = self.plan
        assert plan is not None  # noqa: S101 - set by whoever steps
        keys, values = self._held(self._prefix, layer)
        if plan.chunks is None:
            n_chunks = len(plan.members)
            return keys[:n_chunks, :, : plan.prefix_width], values[:n_chunks, :, : plan.prefix_width]
        chunks = plan.chunks.to(keys.device)
        return (
            keys[:, :, : plan.prefix_width].index_select(0, chunks),
            values[:, :, : plan.prefix_width].index_select(0, chunks),
        )

    def store_prefix(self, index: int, parts: Sequence[Sequence[KeysValues]]) -> None:
        """Keep keys and values [head, position, d_head], given in parts one after the other, as prefix `index`."""
        for layer, pieces in enumerate(zip(*parts, strict=True)):
            new = tuple(torch.cat([piece[index_] for piece in pieces], dim=1) for index_ in (0, 1))
            held = self._prefix[layer]
            n_kept, width = (0, 0) if held is None else (held[0].shape[0], held[0].shape[2])
            if held is None or index >= n_kept or new[0].shape[1] > width:
                self.version += 1
                held = _grown(held, (new[0], new[1]), n_kept if index < n_kept else max(index + 1, 2 * n_kept))
                self._prefix[layer] = held
            for kept, came in zip(held, new, strict=True):
                kept[index, :, : came.shape[1]] = came

    def store_row(self, slot: int, layers: Sequence[KeysValues]) -> None:
        """Keep keys and values [head, position, d_head] as the first own tokens of a slot, in every layer."""
        for layer, new in enumerate(layers):
            for kept, came in zip(self._allocated(layer, new), new, strict=True):
                kept[slot, :, : came.shape[1]] = came

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Slots `targets` become what slots `sources` are; no slot is both."""
        for held in self._own:
            for kept in held or ():
                kept[torch.tensor(targets, device=kept.device)] = kept[torch.tensor(sources, device=kept.device)]

    def _in_full(self, layer: int, n_rows: int) -> KeysValues:
        keys, values = self.own(layer, n_rows)
        plan = self.plan
        assert plan is not None  # noqa: S101 - set by whoever steps
        if plan.prefix_width == 0:
            return keys, values
        chunks = (plan.places // plan.members.shape[1]).to(keys.device)
        shared = [one.index_select(0, chunks) for one in self.prefix(layer)]
        return torch.cat([shared[0], keys], dim=2), torch.cat([shared[1], values], dim=2)

    def _allocated(self, layer: int, like: KeysValues) -> KeysValues:
        held = self._own[layer]
        if held is None:
            keys, values = (one.new_zeros(self._n_slots, one.shape[-3], self._width, one.shape[-1]) for one in like)
            held = self._own[layer] = keys, values
            self.version += 1
        return held

    @staticmethod
    def _held(memory: Sequence[KeysValues | None], layer: int) -> KeysValues:
        held = memory[layer]
        assert held is not None  # noqa: S101 - stored before it is read
        return held


def _grown(held: KeysValues | None, like: KeysValues, n_prefixes: int) -> KeysValues:
    """Room for more or longer prefixes, the present ones in place."""
    grown = []
    for index, one in enumerate(like):
        width = max(one.shape[1], held[index].shape[2] if held else 0)
        room = one.new_zeros(n_prefixes, one.shape[0], width, one.shape[2])
        if held:
            room[: held[index].shape[0], :, : held[index].shape[2]] = held[index]
        grown.append(room)
    return grown[0], grown[1]
