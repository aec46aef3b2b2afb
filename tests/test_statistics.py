"""Statistics against closed forms, scikit-learn, published numbers and seeded simulations."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from crystallized_safety.statistics import (
    auroc,
    auroc_interval,
    auroc_intervals,
    mean_intervals,
    minimum_detectable_effect,
    p_from_nulls,
    paired_effect,
    rate,
)


def test_wilson_interval_matches_the_closed_form():
    z, p, n = 1.959963984540054, 0.3, 50
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = rate(15, 50, unscored=3)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert (found.value, found.unscored) == (0.3, 3)


def test_zero_of_ten_is_not_immunity():
    assert rate(0, 10).low == 0
    assert rate(0, 10).high == pytest.approx(0.2775, abs=1e-4)  # Wilson; Clopper–Pearson gives .3085
    assert rate(10, 10).low == pytest.approx(1 - 0.2775, abs=1e-4)


def test_nothing_scored_gives_nan_and_impossible_counts_raise():
    empty = rate(0, 0, unscored=7)
    assert all(math.isnan(number) for number in (empty.value, empty.low, empty.high))
    for count, n, unscored in ((3, 2, 0), (-1, 2, 0), (1, 2, -1)):
        with pytest.raises(ValueError, match="count <= n"):
            rate(count, n, unscored)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auroc_and_the_batched_value_agree_with_scikit_learn(pairs):
    scores, labels = [float(s) for s, _ in pairs], [y for _, y in pairs]
    if len(set(labels)) < 2:
        return
    expected = roc_auc_score(labels, scores)
    assert auroc(scores, labels) == pytest.approx(expected)
    found = auroc_interval(scores, labels, range(len(labels)), seed=0, n_boot=50)
    assert found.value == pytest.approx(expected)


def test_bootstrap_auroc_is_scikit_learns_auroc_of_the_repeated_prompts():
    generator = np.random.default_rng(1)
    labels = np.tile([True, False], 12)
    clusters = np.repeat(np.arange(12), 2)
    scores = np.round(generator.normal(size=24) + labels, 1)
    found = auroc_interval(scores, labels, list(clusters), seed=5, n_boot=300)
    counts = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), size=300)
    draws = []
    for row in counts:
        taken = np.repeat(np.arange(24), row[clusters])
        draws.append(roc_auc_score(labels[taken], scores[taken]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_candidates_share_resamples_and_the_seed_decides():
    generator = np.random.default_rng(2)
    labels, clusters = np.tile([True, False], 20), np.repeat(np.arange(20), 2)
    scores = generator.normal(size=(3, 40)) + labels
    batch = auroc_intervals(scores, labels, list(clusters), seed=3)
    single = [auroc_interval(row, labels, list(clusters), seed=3) for row in scores]
    assert list(batch) == single
    assert batch != auroc_intervals(scores, labels, list(clusters), seed=4)
    assert all(i.low < i.value < i.high for i in batch)


def test_perfect_separation_keeps_an_interval():
    labels = np.tile([True, False], 20)
    clusters = list(np.repeat(np.arange(20), 2))
    up = auroc_interval(labels * 1.0, labels, clusters, seed=0)
    down = auroc_interval(labels * -1.0, labels, clusters, seed=0)
    assert (up.value, up.low, up.high) == pytest.approx((1.0, 0.025 ** (1 / 20), 1.0))
    assert (down.value, down.low, down.high) == pytest.approx((0.0, 0.0, 1 - 0.025 ** (1 / 20)))


def test_a_class_that_some_resamples_miss_is_left_out_of_them():
    labels = np.array([True, False, False])
    found = auroc_interval([0.5, 0.1, 0.9], labels, ["a", "b", "c"], seed=0)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_twins_in_one_cluster_widen_the_interval():
    generator = np.random.default_rng(8)
    labels = np.tile([True, False], 40)
    scores = generator.normal(size=80) + labels
    twice_scores, twice_labels = np.tile(scores, 4), np.tile(labels, 4)
    honest = auroc_interval(twice_scores, twice_labels, list(np.tile(np.arange(40).repeat(2), 4)), seed=0)
    naive = auroc_interval(twice_scores, twice_labels, list(range(320)), seed=0)
    assert honest.high - honest.low > 1.5 * (naive.high - naive.low)


def test_a_layer_sweep_is_fast():
    labels, clusters = np.tile([True, False], 80), list(np.repeat(np.arange(80), 2))
    scores = np.random.default_rng(0).normal(size=(48, 160)) + labels
    start = time.process_time()
    auroc_intervals(scores, labels, clusters, seed=0, n_boot=2000)
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    ("scores", "labels", "clusters", "words"),
    [
        ([0.1, float("nan")], [True, False], [0, 1], "must be finite"),
        ([0.1, float("inf")], [True, False], [0, 1], "must be finite"),
        ([0.1, 0.2], [True, True], [0, 1], "both classes"),
        ([0.1, 0.2, 0.3], [True, False], [0, 1], "one value a label"),
        ([0.1, 0.2], [True, False], [0], "needs a cluster"),
        ([0.1, 0.2], [True, False], [0, 0], "at least two clusters"),
        ([0.1, 0.2], [True, 0.5], [0, 1], "booleans"),
    ],
)
def test_unusable_scores_raise_one_sentence(scores, labels, clusters, words):
    with pytest.raises(ValueError, match=words) as caught:
        auroc_interval(scores, labels, clusters, seed=0)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_paired_effect_counts_and_mcnemar():
    baseline = [True] * 2 + [False] * 18
    steered = [False] * 1 + [True] * 11 + [False] * 8
    found = paired_effect(baseline, steered, range(20), seed=0)
    assert (found.gained, found.lost, found.value) == (10, 1, pytest.approx(0.45))
    assert found.p_mcnemar == pytest.approx(2 * (1 + 11) / 2**11)  # two-sided sign test of 1 in 11
    assert found.low < 0.45 < found.high


def test_no_change_is_not_certainty():
    still = paired_effect([False] * 100, [False] * 100, range(100), seed=0)
    assert (still.value, still.p_mcnemar) == (0.0, 1.0)
    assert still.high == pytest.approx(1 - 0.025 ** (1 / 100))  # .0362, Clopper–Pearson of 0 in 100
    assert still.low == -still.high
    ten = paired_effect([True] * 10, [True] * 10, range(10), seed=0)
    assert ten.high == pytest.approx(0.3085, abs=1e-4)


def test_everything_changed_is_not_certainty():
    up = paired_effect([False] * 40, [True] * 40, range(40), seed=0)
    assert (up.value, up.high) == (1.0, 1.0)
    assert up.low == pytest.approx(2 * 0.025 ** (1 / 40) - 1)
    down = paired_effect([True] * 40, [False] * 40, range(40), seed=0)
    assert (down.low, down.high) == (-1.0, -up.low)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 4)), min_size=1, max_size=25))
def test_the_interval_is_never_empty_and_stays_in_range(rows):
    before, after, clusters = ([row[i] for row in rows] for i in range(3))
    found = paired_effect(before, after, clusters, seed=0, n_boot=200)
    assert -1 <= found.low < found.high <= 1
    assert found.value == pytest.approx(np.mean(after) - np.mean(before))


def test_one_cluster_says_almost_nothing():
    found = paired_effect([False] * 30, [True] * 15 + [False] * 15, [0] * 30, seed=0)
    assert found.high - found.low > 1.5


@pytest.mark.parametrize(("p_gain", "p_lose", "n"), [(0.3, 0.1, 60), (0.05, 0.05, 60), (0.02, 0.0, 60), (0.9, 0.0, 60)])
def test_the_paired_interval_covers(p_gain, p_lose, n):
    generator = np.random.default_rng(11)
    hits = 0
    for study in range(300):
        draw = generator.random(n)
        before = (draw > p_gain) & (draw < p_gain + p_lose)
        after = draw < p_gain
        found = paired_effect(before, after, range(n), seed=study, n_boot=500)
        hits += found.low <= p_gain - p_lose <= found.high
    assert hits / 300 >= 0.90


def test_clusters_are_needed_for_coverage():
    generator = np.random.default_rng(12)
    honest = naive = 0
    for study in range(200):
        gains = generator.random(30) < 0.3
        after = np.repeat(gains, 5)
        clusters = np.repeat(np.arange(30), 5)
        for names in (list(clusters), list(range(150))):
            found = paired_effect(np.zeros(150, bool), after, names, seed=study, n_boot=400)
            hit = found.low <= 0.3 <= found.high
            honest, naive = honest + (hit and names[1] == 0), naive + (hit and names[1] == 1)
    assert honest / 200 >= 0.90
    assert naive / 200 <= 0.75


@pytest.mark.parametrize(
    ("before", "after", "clusters", "words"),
    [
        ([], [], [], "non-empty"),
        ([True], [True, False], [0], "same prompts"),
        ([True, False], [True, float("nan")], [0, 1], "booleans"),
        ([True, False], [True, 0.3], [0, 1], "booleans"),
        ([True, False], [True, False], [0], "needs a cluster"),
    ],
)
def test_unusable_outcomes_raise_one_sentence(before, after, clusters, words):
    with pytest.raises(ValueError, match=words):
        paired_effect(before, after, clusters, seed=0)


@pytest.mark.parametrize(
    ("n", "discordance", "points"),
    [(100, 0.1, 8.8), (100, 0.2, 12.4), (100, 0.3, 15.2), (200, 0.1, 6.2), (200, 0.2, 8.8), (200, 0.3, 10.8)],
)
def test_mde_matches_the_protocol_table(n, discordance, points):
    assert 100 * minimum_detectable_effect(n, discordance) == pytest.approx(points, abs=0.06)


def test_mde_edges():
    assert minimum_detectable_effect(3, 0.2) == 1.0
    assert 0.05 < minimum_detectable_effect(100, 0.0) < 0.1  # nothing moved is not unlimited power
    assert minimum_detectable_effect(100 / 2, 0.2) == minimum_detectable_effect(50, 0.2)
    for n, discordance in ((0, 0.2), (100, -0.1), (100, 1.1), (float("nan"), 0.2), (100, float("nan"))):
        with pytest.raises(ValueError, match="The MDE needs"):
            minimum_detectable_effect(n, discordance)


def test_mde_has_eighty_percent_power_by_simulation():
    n, psi = 2000, 0.2  # large enough that the discreteness of the test does not show
    delta = minimum_detectable_effect(n, psi)
    generator = np.random.default_rng(3)
    cells = generator.multinomial(n, [(psi + delta) / 2, (psi - delta) / 2, 1 - psi], size=20_000)
    gained, lost = cells[:, 0], cells[:, 1]
    z = (gained - lost) / np.sqrt(np.maximum(gained + lost, 1))
    assert np.mean(z > 1.96) == pytest.approx(0.80, abs=0.02)


def test_p_from_nulls_counts_ties_and_adds_one():
    assert p_from_nulls(0.5, [0.1] * 39) == pytest.approx(1 / 40)
    assert p_from_nulls(0.5, [0.5, 0.6, 0.1]) == pytest.approx(3 / 4)
    assert p_from_nulls(0.5, []) == 1.0
    for effect, nulls in ((float("nan"), [0.1]), (0.1, [float("nan")])):
        with pytest.raises(ValueError, match="NaN"):
            p_from_nulls(effect, nulls)


def test_the_interval_of_a_mean_is_that_of_the_repeated_prompts():
    """Clusters of unequal size: a resample is the mean of all prompts of the drawn clusters, not of cluster means."""
    values = np.random.default_rng(4).normal(size=(2, 9)) * [[1.0], [30.0]]
    clusters = ["a", "b", "a", "c", "d", "a", "d", "e", "f"]
    found = mean_intervals(values, clusters, seed=5, n_boot=400)
    counts = np.random.default_rng(5).multinomial(6, np.full(6, 1 / 6), size=400)
    order = list(dict.fromkeys(clusters))
    for row, interval in zip(values, found, strict=True):
        draws = [
            np.concatenate(
                [row[[one == name for one in clusters]] for name, n in zip(order, drawn, strict=True) for _ in range(n)]
            ).mean()
            for drawn in counts
        ]
        assert interval.value == pytest.approx(row.mean())
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_the_interval_of_a_mean_covers_it():
    """Sixteen clusters of two alike prompts. What the docstring admits, √(1 − 1/16), makes 95 % into about 93.5 %."""
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(16), 2)
    hits = 0
    for trial in range(400):
        values = generator.normal(size=16)[clusters] + 0.3 * generator.normal(size=32)
        [interval] = mean_intervals([values], list(clusters), seed=trial, n_boot=400)
        hits += interval.low <= 0 <= interval.high
    assert 0.90 <= hits / 400 <= 0.96


def test_a_mean_of_one_cluster_has_no_interval_and_of_nothing_is_an_error():
    [one] = mean_intervals([[1.0, 3.0]], ["a", "a"], seed=0)
    assert (one.value, math.isnan(one.low), math.isnan(one.high)) == (2.0, True, True)
    for values, clusters in (
        ([[]], []),
        ([[1.0, math.nan]], ["a", "b"]),
        ([1.0, 2.0], ["a", "b"]),
        ([[1.0]], ["a", "b"]),
    ):
        with pytest.raises(ValueError, match="but got"):
            mean_intervals(values, clusters, seed=0)
