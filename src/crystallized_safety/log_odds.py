"""Refusal as a number that has no floor: log-odds from log-probabilities, without a text (PROTOCOL §1.1).

Λ₁ asks for the next token, Λ₂ for whole openers. What this module does not know: models, tokens, which openers there are,
who computed the log-probabilities. All numbers are natural logarithms, in nats.

A caller's mistake (NaN, a positive log-probability, nothing to sum) is a ValueError of one sentence.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

__all__ = ["next_token_log_odds", "prefix_contrast"]

_ROUNDING = 1e-3
"""How far above zero rounding may lift a log-probability, or the sum over a set, before it is a mistake."""


def next_token_log_odds(logprobs: ArrayLike, *, resolution: float = float(np.finfo(np.float64).eps)) -> float:
    """Λ₁ = log P(T) − log(1 − P(T)): log-odds that the next token is one of a set T (PROTOCOL §1.1 (i)).

    `logprobs` [n_tokens] are log-probabilities of the distinct tokens of T under one condition. P(T) is never formed where it
    is small, so that Λ₁ is exact down to log P = −700 and beyond; −inf where every token has probability zero. Near 1 it
    is as exact as its input: `resolution` is the spacing of the numbers in which the model's probabilities were computed, and
    1 − P(T) is taken to be no smaller, since infinity has no mean. In float32 (1.2e−7) Λ₁ is at most 15.9.

    Raises ValueError for an empty set, NaN, or probabilities that exceed 1 by more than rounding.
    """
    values = _checked(logprobs)
    log_p = float(logsumexp(values))
    if log_p > _ROUNDING:
        raise ValueError(
            f"Tokens of one set must be distinct, so that their probabilities sum to 1 at most, but got {np.exp(log_p):.6g}."
        )
    rest = max(float(-np.expm1(log_p)), resolution)
    return min(log_p, 0.0) - float(np.log(rest))


def prefix_contrast(refusal: Sequence[ArrayLike], compliance: Sequence[ArrayLike]) -> float:
    """Λ₂ = LSE_j[ℓ(r_j)/|r_j|] − LSE_j[ℓ(c_j)/|c_j|]: refusal openers against compliance openers (PROTOCOL §1.1 (ii)).

    Each opener is given as the log-probabilities of its tokens [n_tokens], teacher-forced under one condition; openers differ
    in length. ℓ(o)/|o| is their mean, LSE_j the log of the sum of exponentials over openers. With as many openers on each
    side, Λ₂ is zero where all are equally likely; otherwise that point is log(n_refusal / n_compliance).

    Raises ValueError for a side or an opener without entries, NaN, or a positive log-probability.
    """
    if not refusal or not compliance:
        raise ValueError(
            f"A contrast needs openers on both sides, but got {len(refusal)} of refusal and {len(compliance)} of compliance."
        )
    ours, theirs = (logsumexp([_checked(opener).mean() for opener in side]) for side in (refusal, compliance))
    return float(ours - theirs)


def _checked(logprobs: ArrayLike) -> np.ndarray:
    values = np.asarray(logprobs, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not bool((values <= _ROUNDING).all()):
        raise ValueError(f"Log-probabilities must be a non-empty row of numbers up to 0, but got {values.tolist()}.")
    return values
