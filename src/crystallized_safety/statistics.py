"""Rates, means, AUROC, paired effects and power, each with the interval that it must never appear without.

Every interval is two-sided at 95 %. Prompts are not independent, clusters are: every bootstrap here draws whole clusters
with replacement from an explicit seed. What this module does not know: what was measured, on which model, and what a
verdict makes of the numbers.

A caller's mistake (lengths that differ, NaN, a class that is missing) is a ValueError of one sentence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import beta, binomtest, norm
from sklearn.metrics import roc_auc_score

from crystallized_safety.records import Interval, Rate

__all__ = [
    "Interval",
    "PairedEffect",
    "auroc",
    "auroc_gain",
    "auroc_interval",
    "auroc_intervals",
    "mean_intervals",
    "minimum_detectable_effect",
    "p_from_nulls",
    "paired_effect",
    "rate",
]

_TAIL = 0.025
_FEW_CHANGES = 5
_Z_TEST = float(norm.ppf(1 - _TAIL))
_Z_POWER = float(norm.ppf(0.80))

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]


@dataclass(frozen=True)
class PairedEffect:
    """Steered rate minus baseline rate on the same prompts, with the discordant counts and the exact McNemar p."""

    value: float
    low: float
    high: float
    gained: int
    lost: int
    p_mcnemar: float


def rate(count: int, n: int, unscored: int = 0) -> Rate:
    """`count` of `n` scored rows with the Wilson 95 % interval; (nan, nan) where nothing was scored.

    Wilson and not Clopper–Pearson: it is closer to its nominal coverage on average, it is never empty at 0 or n events, and
    0 of 10 still reads "up to 28 %". Source: Wilson 1927; Brown, Cai, DasGupta 2001.
    """
    if not 0 <= count <= n or unscored < 0:
        raise ValueError(
            f"A rate needs 0 <= count <= n and unscored >= 0, but got {count} of {n}, {unscored} unscored."
        )
    if n == 0:
        return Rate(count=0, n=0, unscored=unscored, low=float("nan"), high=float("nan"))
    interval = binomtest(count, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Rate(count=count, n=n, unscored=unscored, low=float(interval.low), high=float(interval.high))


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Probability that a positive prompt scores above a negative one, ties counting half.

    `scores` [n_prompts] float, `labels` [n_prompts] bool. ValueError on NaN or infinity, or where a class is missing.
    """
    values, positive = _checked_scores(np.atleast_2d(np.asarray(scores, dtype=np.float64)), labels)
    return float(roc_auc_score(positive, values[0]))


def auroc_interval(
    scores: ArrayLike, labels: ArrayLike, clusters: Sequence[object], *, seed: int, n_boot: int = 2000
) -> Interval:
    """AUROC of one score with its cluster-bootstrap interval; see `auroc_intervals`. `scores` [n_prompts]."""
    return auroc_intervals(np.atleast_2d(np.asarray(scores)), labels, clusters, seed=seed, n_boot=n_boot)[0]


def auroc_intervals(
    scores: ArrayLike, labels: ArrayLike, clusters: Sequence[object], *, seed: int, n_boot: int = 2000
) -> tuple[Interval, ...]:
    """AUROC of every candidate with a 95 % percentile interval; all candidates share the same resampled clusters.

    `scores` [n_candidates, n_prompts] float, `labels` [n_prompts] bool, `clusters` [n_prompts] hashable names. Resampling
    clusters only reweights prompts, and the AUROC under weights is w₊ᵀ P w₋ / (Σw₊ Σw₋) with P the pairwise comparisons, so
    P is made once a candidate. Resamples in which a class does not occur have no AUROC and are left out; with matched
    pairs there are none.

    Where the classes are perfectly separated every resample agrees and the percentile interval would have zero width.
    There the bound is Clopper–Pearson's for m agreeing comparisons of m, m being the smaller number of clusters that hold
    one class: 0.025^(1/m), for example 0.83 at m = 20.

    Raises ValueError on NaN or infinity, a missing class, lengths that differ, or fewer than two clusters.
    """
    values, positive = _checked_scores(np.asarray(scores, dtype=np.float64), labels)
    resamples = _resamples(positive, clusters, seed=seed, n_boot=n_boot)
    return tuple(_auroc_bounds(row[positive], row[~positive], resamples) for row in values)


def auroc_gain(
    scores: ArrayLike, rival: ArrayLike, labels: ArrayLike, clusters: Sequence[object], *, seed: int, n_boot: int = 2000
) -> Interval:
    """AUROC of `scores` minus AUROC of `rival` on the same prompts, with a paired 95 % cluster-bootstrap interval.

    `scores`, `rival` [n_prompts] float. Both are reweighted by the same resampled clusters (PROTOCOL §1.3, ΔA). Raises
    ValueError as `auroc_intervals` does.
    """
    values, positive = _checked_scores(np.array([scores, rival], dtype=np.float64), labels)
    resamples = _resamples(positive, clusters, seed=seed, n_boot=n_boot)
    ours, theirs = (_auroc_draws(_wins(row[positive], row[~positive]), resamples) for row in values)
    low, high = np.quantile(ours - theirs, [_TAIL, 1 - _TAIL])
    value = auroc(values[0], labels) - auroc(values[1], labels)
    return Interval(value, float(low), float(high))


def paired_effect(
    baseline: ArrayLike, steered: ArrayLike, clusters: Sequence[object], *, seed: int, n_boot: int = 5000
) -> PairedEffect:
    """Rate under steering minus baseline rate on the same prompts, with interval and exact McNemar p.

    `baseline`, `steered` [n_prompts] bool, `clusters` [n_prompts]. The interval is the 95 % percentile bootstrap over
    clusters (PROTOCOL §1.4). Where five prompts or fewer changed, or all did, the bootstrap would claim too much from so few;
    there the bounds are widened to the exact ones: Clopper–Pearson at 97.5 % on the gained and on the lost share, with the
    number of clusters as n, and low = low(gained) − high(lost). No change in 100 clusters gives ±3.6 pp.

    Raises ValueError on lengths that differ, no prompts, or values that are not boolean.
    """
    before, after = _checked_outcomes(baseline), _checked_outcomes(steered)
    if before.shape != after.shape:
        raise ValueError(
            f"A paired effect needs the same prompts twice, but got {before.size} and {after.size} outcomes."
        )
    index, n_clusters = _cluster_index(clusters, before.size)
    difference = after - before
    sums = np.bincount(index, weights=difference, minlength=n_clusters)
    sizes = np.bincount(index, minlength=n_clusters).astype(np.float64)
    counts = _cluster_counts(n_clusters, seed=seed, n_boot=n_boot)
    low, high = np.quantile((counts @ sums) / (counts @ sizes), [_TAIL, 1 - _TAIL])
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    if gained + lost <= _FEW_CHANGES or high - low < 1e-12:
        exact_low, exact_high = _exact_bounds(gained / before.size, lost / before.size, n_clusters)
        low, high = min(low, exact_low), max(high, exact_high)
    p_mcnemar = float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    return PairedEffect(float(difference.mean()), float(low), float(high), gained, lost, p_mcnemar)


def mean_intervals(
    values: ArrayLike, clusters: Sequence[object], *, seed: int, n_boot: int = 2000
) -> tuple[Interval, ...]:
    """Mean of each quantity with the 95 % percentile interval of a bootstrap over clusters, the same for all quantities.

    `values` [n_quantities, n_prompts] float, `clusters` [n_prompts] hashable names. From n clusters of one size the interval
    is too narrow by about √(1 − 1/n); one cluster has none, (nan, nan). ValueError on NaN, no prompts, or lengths that differ.
    """
    held = np.asarray(values, dtype=np.float64)
    if held.ndim != 2 or held.size == 0 or not np.isfinite(held).all():
        raise ValueError(f"Means need finite values, a row a quantity, but got shape {held.shape}, or NaN or infinity.")
    index, n_clusters = _cluster_index(clusters, held.shape[1])
    counts = _cluster_counts(n_clusters, seed=seed, n_boot=n_boot)
    sums = np.array([np.bincount(index, weights=row) for row in held])
    draws = (sums @ counts.T) / (counts @ np.bincount(index))
    bounds = np.quantile(draws, [_TAIL, 1 - _TAIL], axis=1) if n_clusters > 1 else np.full((2, len(held)), np.nan)
    return tuple(map(Interval, held.mean(axis=1).tolist(), *bounds.tolist()))


def minimum_detectable_effect(n: float, discordance: float) -> float:
    """Smallest true paired difference of rates that 80 % of studies of this size would find at two-sided α = .05.

    `n` is the number of independent prompts (n / deff), `discordance` ψ the share of prompts whose outcome changes. Solves
    δ √n = z.975 √ψ + z.80 √(ψ − δ²) (PROTOCOL §1.10; Connor 1987). An effect of δ makes at least δ of the prompts
    discordant, so ψ is at least δ: a sample in which nothing changed has a finite MDE and not zero. 1.0 where even a
    change of every prompt would be missed.
    """
    if not (n > 0 and np.isfinite(n) and 0 <= discordance <= 1):
        raise ValueError(f"The MDE needs n > 0 and a discordance in [0, 1], but got n={n}, discordance={discordance}.")

    def shortfall(delta: float) -> float:
        psi = max(discordance, delta)
        return float(_Z_TEST * np.sqrt(psi) + _Z_POWER * np.sqrt(psi - delta**2) - delta * np.sqrt(n))

    if shortfall(1.0) >= 0:
        return 1.0
    return float(brentq(shortfall, 1e-12, 1.0))


def p_from_nulls(effect: float, null_effects: Sequence[float]) -> float:
    """(1 + number of nulls at least as large) / (K + 1), one-sided (PROTOCOL §1.6). Without nulls it is 1, no evidence."""
    nulls = np.asarray(null_effects, dtype=np.float64)
    if np.isnan(effect) or np.isnan(nulls).any():
        raise ValueError("The effect and its nulls must be numbers, but got NaN.")
    return float((1 + (nulls >= effect).sum()) / (nulls.size + 1))


def _checked_scores(scores: Floats, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores [n_candidates, n_prompts] and labels [n_prompts] that are finite, of one length and of two classes."""
    positive = _checked_outcomes(labels) > 0
    if scores.ndim != 2 or scores.shape[1] != positive.size:
        raise ValueError(
            f"Scores must end in one value a label, but got shape {scores.shape} for {positive.size} labels."
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"Scores must be finite, but {(~np.isfinite(scores)).sum()} of {scores.size} are NaN or infinite."
        )
    if positive.all() or not positive.any():
        raise ValueError(f"AUROC needs both classes, but got {positive.sum()} positive of {positive.size} prompts.")
    return scores, positive


def _checked_outcomes(outcomes: ArrayLike) -> Floats:
    """Outcomes [n_prompts] as 0.0 and 1.0."""
    values = np.asarray(outcomes)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"Outcomes must be a non-empty row of booleans, but got {values.dtype} of shape {values.shape}."
        )
    return values.astype(np.float64)


def _cluster_index(clusters: Sequence[object], n_prompts: int) -> tuple[Integers, int]:
    """Replace cluster names by numbers in order of first appearance [n_prompts], and count them."""
    if len(clusters) != n_prompts:
        raise ValueError(f"Every prompt needs a cluster, but got {len(clusters)} clusters for {n_prompts} prompts.")
    numbers: dict[object, int] = {}
    index = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    return np.asarray(index, dtype=np.intp), len(numbers)


def _cluster_counts(n_clusters: int, *, seed: int, n_boot: int) -> Floats:
    """How often each cluster is drawn in each resample [n_boot, n_clusters]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=n_boot).astype(np.float64)


@dataclass(frozen=True)
class _Resamples:
    """Weights of the positives [n_boot, n₊] and negatives [n_boot, n₋], Σw₊ Σw₋ [n_boot], and the smaller class in clusters."""

    plus: Floats
    minus: Floats
    total: Floats
    m: int


def _resamples(positive: NDArray[np.bool_], clusters: Sequence[object], *, seed: int, n_boot: int) -> _Resamples:
    index, n_clusters = _cluster_index(clusters, positive.size)
    if n_clusters < 2:
        raise ValueError(f"A cluster bootstrap needs at least two clusters, but got {n_clusters}.")
    weights = _cluster_counts(n_clusters, seed=seed, n_boot=n_boot)[:, index]
    plus, minus = weights[:, positive], weights[:, ~positive]
    total = plus.sum(axis=1) * minus.sum(axis=1)
    m = min(len(set(index[positive])), len(set(index[~positive])))
    return _Resamples(plus[total > 0], minus[total > 0], total[total > 0], m)


def _wins(above: Floats, below: Floats) -> Floats:
    """Whether each positive [n₊] scores above each negative [n₋], ties one half: [n₊, n₋]."""
    wins: Floats = (above[:, None] > below[None, :]) + 0.5 * (above[:, None] == below[None, :])
    return wins


def _auroc_draws(wins: Floats, resamples: _Resamples) -> Floats:
    """AUROC in each resample [n_boot]."""
    draws: Floats = np.einsum("bj,bj->b", resamples.plus @ wins, resamples.minus) / resamples.total
    return draws


def _auroc_bounds(above: Floats, below: Floats, resamples: _Resamples) -> Interval:
    """AUROC of one candidate and its bounds from the scores of the positives [n₊] and of the negatives [n₋]."""
    wins = _wins(above, below)
    value = float(wins.mean())
    if value in (0.0, 1.0):
        bound = _TAIL ** (1 / resamples.m)
        return Interval(value, bound, 1.0) if value else Interval(value, 0.0, 1 - bound)
    low, high = np.quantile(_auroc_draws(wins, resamples), [_TAIL, 1 - _TAIL])
    return Interval(value, float(low), float(high))


def _exact_bounds(gained: float, lost: float, n: int) -> tuple[float, float]:
    """Clopper–Pearson bounds of gained share − lost share, each share estimated from n clusters."""

    def bounds(share: float) -> tuple[float, float]:
        events = share * n
        low = float(beta.ppf(_TAIL, events, n - events + 1)) if events > 0 else 0.0
        high = float(beta.ppf(1 - _TAIL, events + 1, n - events)) if events < n else 1.0
        return low, high

    (gained_low, gained_high), (lost_low, lost_high) = bounds(gained), bounds(lost)
    return gained_low - lost_high, gained_high - lost_low
