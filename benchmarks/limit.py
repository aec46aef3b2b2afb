"""The least that the work costs on this machine, whoever does it.

Floating-point operations that no schedule can avoid, over the rate at which this machine multiplies matrices. What this
module does not know: attention's own operations, memory traffic, cleverness that changes the numbers (lower precision,
sparsity). Leaving these out makes the limit lower and everybody's share of it smaller.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.work import Work

__all__ = ["Least", "Parameters", "least_seconds", "least_tokens"]


@dataclass(frozen=True)
class Parameters:
    """`total` counts every parameter once, `blocks` those that each token is multiplied by, `head` those for the next token.

    The input embedding is a look-up and multiplies nothing; where it is also the head, it is counted as the head.
    """

    total: int
    blocks: int
    head: int


@dataclass(frozen=True)
class Least:
    """Tokens that must go through the blocks, in units of all blocks, and through the head."""

    blocks: float
    head: float


def least_tokens(work: Work, generated: float) -> Least:
    """The tokens that must be computed at least, when `generated` new tokens came out of all rows of `work`.

    - Every distinct prompt token once: what two prompts begin with in common counts once, because the stream at a position
      depends on the tokens up to it alone. A condition leaves the blocks up to the steered one as they were, so this pass
      serves all conditions there.
    - For each condition again the positions that it changes, in the blocks above its layer ℓ, a share of
      1 − (ℓ + 1) / n_layers: with `all` every distinct prompt token, with `last-prompt-token-on` the last token of each
      distinct prompt, with `generated` none.
    - For each row every new token but the last, which nobody reads; a stop token counts as generated. The first new token
      comes out of the last prompt token's pass, so k new tokens are k − 1 passes. That rows whose answers begin alike could
      share the blocks up to ℓ is not used, so the least is a little less still.
    - The head once for each new token, except that with `generated` the first one is the same under every condition.
    """
    n_distinct = len({prompt.tokens for prompt in work.prompts})
    n_tokens = _distinct_prefixes(prompt.tokens for prompt in work.prompts)
    changed = {"all": n_tokens, "last-prompt-token-on": n_distinct, "generated": 0}[work.positions]
    again = sum(1 - (one.layer + 1) / work.n_layers for one in work.conditions if one.layer is not None)
    later = generated - len(work)
    first = n_distinct if work.positions == "generated" else len(work)
    return Least(blocks=n_tokens + again * changed + later, head=first + later)


def least_seconds(least: Least, parameters: Parameters, flops_per_second: float) -> float:
    """Two operations, one multiplication and one addition, for each parameter and token."""
    return 2 * (parameters.blocks * least.blocks + parameters.head * least.head) / flops_per_second


def _distinct_prefixes(prompts: Iterable[tuple[int, ...]]) -> int:
    return len({prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)})
