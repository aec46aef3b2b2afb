"""Log-odds against cases by hand, at the ends of the scale, and against the plain formula in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit

from crystallized_safety.log_odds import next_token_log_odds, prefix_contrast

LOG = math.log
LOGPROBS = st.floats(-30, 0)
OPENERS = st.lists(st.lists(LOGPROBS, min_size=1, max_size=5), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.5], 0.0),
        ([0.25, 0.25], 0.0),
        ([0.2], LOG(0.2 / 0.8)),
        ([0.1, 0.2, 0.4], LOG(0.7 / 0.3)),
        ([0.9, 0.0], LOG(9)),
    ],
)
def test_the_log_odds_of_a_set_by_hand(probabilities: list[float], expected: float):
    with np.errstate(divide="ignore"):
        assert next_token_log_odds(np.log(probabilities)) == pytest.approx(expected, abs=1e-12)


def test_where_the_set_is_improbable_nothing_underflows():
    """log P − log(1 − P) is log P there, long after P itself is zero in float64."""
    assert next_token_log_odds([-800.0, -800.0]) == pytest.approx(-800 + LOG(2), abs=1e-9)
    assert next_token_log_odds([-40.0]) == pytest.approx(-40.0, abs=1e-12)
    assert next_token_log_odds([-math.inf, -math.inf]) == -math.inf


@pytest.mark.parametrize("rest", [1e-3, 1e-9, 1e-14])
def test_where_the_set_is_nearly_certain_nothing_cancels(rest: float):
    assert next_token_log_odds([math.log1p(-rest)]) == pytest.approx(math.log1p(-rest) - LOG(rest), abs=1e-12)


@pytest.mark.parametrize("total", [0.0, 1e-8, -1e-12])
def test_certainty_is_as_finite_as_the_rounding_allows(total: float):
    assert next_token_log_odds([total], resolution=2**-23) == pytest.approx(23 * LOG(2), abs=1e-7)
    assert next_token_log_odds([0.0]) == pytest.approx(52 * LOG(2)), "float64 unless said otherwise"
    assert next_token_log_odds([LOG(0.5)], resolution=2**-23) == pytest.approx(0, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(1e-12, 1), min_size=1, max_size=8), st.floats(1e-9, 1 - 1e-9))
def test_it_is_the_logit_of_the_summed_probability(weights: list[float], total: float):
    shares = np.array(weights) / sum(weights) * total
    assert next_token_log_odds(np.log(shares)) == pytest.approx(logit(shares.sum()), abs=1e-6, rel=1e-9)


def test_the_contrast_by_hand():
    """Means per token −1, −2 against −3, −2: log(e⁻¹ + e⁻²) − log(e⁻³ + e⁻²) = 1."""
    refusal = [[-0.5, -1.5], [-2.0]]
    compliance = [[-3.0, -3.0, -3.0], [-4.0, 0.0]]
    assert prefix_contrast(refusal, compliance) == pytest.approx(1.0, abs=1e-12)


def test_an_opener_counts_by_its_mean_and_not_by_its_length():
    assert prefix_contrast([[-1.0] * 9], [[-1.0]]) == pytest.approx(0, abs=1e-12)
    assert prefix_contrast([[-1.0]] * 3, [[-1.0]]) == pytest.approx(LOG(3), abs=1e-12)
    assert prefix_contrast([[-900.0]], [[-1000.0]]) == pytest.approx(100, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(OPENERS, OPENERS, st.floats(-20, 0))
def test_the_contrast_is_antisymmetric_and_ignores_what_all_share(refusal, compliance, constant: float):
    found = prefix_contrast(refusal, compliance)
    assert prefix_contrast(compliance, refusal) == pytest.approx(-found, abs=1e-9)
    moved = [[[token + constant for token in opener] for opener in side] for side in (refusal, compliance)]
    assert prefix_contrast(*moved) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("logprobs", [[], [[-1.0]], [math.nan], [-1.0, 0.5], -1.0])
def test_a_set_that_is_none_is_refused(logprobs):
    with pytest.raises(ValueError, match="numbers up to 0"):
        next_token_log_odds(logprobs)


def test_a_token_that_is_counted_twice_is_noticed():
    with pytest.raises(ValueError, match=r"sum to 1 at most, but got 1\.4"):
        next_token_log_odds([LOG(0.7), LOG(0.7)])


@pytest.mark.parametrize("sides", [([], [[-1.0]]), ([[-1.0]], []), ([[]], [[-1.0]]), ([[-1.0, math.nan]], [[-1.0]])])
def test_a_contrast_needs_openers_on_both_sides(sides):
    with pytest.raises(ValueError, match="but got"):
        prefix_contrast(*sides)
