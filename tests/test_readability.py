"""Readability on scores and texts whose truth is known: which site is chosen, on which split it is estimated, what text gives away."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from crystallized_safety.prompts import load_prompts, select
from crystallized_safety.readability import Scores, confound_scores, measure
from crystallized_safety.records import Prompt
from crystallized_safety.statistics import auroc, auroc_gain

N = 24
LAYERS, POSITIONS = (2, 5, 9), (-1, -4)
PERFECT, CHANCE, REVERSED = "perfect", "chance", "reversed"


def texts(harmful, harmless, split="test") -> tuple[Prompt, ...]:
    """Pairs of texts, harmful prompts first, as the stages hand them over."""

    def prompt(label, i, text):
        return Prompt(f"{split}-{label}-{i}", text, label, "k", f"{split}-{i}", f"{split}-{i}", split, "s", "MIT")

    return tuple(
        prompt(label, i, text)
        for label, held in (("harmful", harmful), ("harmless", harmless))
        for i, text in enumerate(held)
    )


WORDS = ("river", "stone", "cloud", "bread", "candle", "window")


def alike(split="test", n=N) -> tuple[Prompt, ...]:
    """Twins with one and the same text, so that text says nothing."""
    same = [f"Tell me about the {WORDS[i % 6]} and the {WORDS[i % 5]} today" for i in range(n)]
    return texts(same, same, split)


def column(kind: str, n=N) -> np.ndarray:
    """Scores of n harmful and then n harmless prompts."""
    harmful = {PERFECT: 1.0, CHANCE: 0.0, REVERSED: -1.0}[kind]
    spread = np.linspace(0, 0.5, n)
    return np.concatenate([harmful + spread, spread])


def scores(prompts, by_site: dict[tuple[int, int], np.ndarray]) -> Scores:
    """Chance at every site that is not named."""
    values = np.stack([[by_site.get((layer, at), column(CHANCE)) for at in POSITIONS] for layer in LAYERS])
    return Scores(prompts, np.moveaxis(values, -1, 0))


def read(chosen_by, estimated_by, *, extract=None, prompts=None, seed=0):
    return measure(
        scores(alike("select"), chosen_by),
        scores(prompts or alike(), estimated_by),
        extract=extract or alike("extract"),
        layers=LAYERS,
        positions=POSITIONS,
        seed=seed,
    )


@pytest.mark.parametrize("site", [(layer, at) for layer in LAYERS for at in POSITIONS])
def test_the_one_site_that_separates_is_found(site):
    found = read({site: column(PERFECT)}, {site: column(PERFECT)})
    assert (found.best_layer, found.best_position) == site
    curve = {(one.layer, one.position): one for one in found.layers}
    assert list(curve) == [(layer, at) for layer in LAYERS for at in POSITIONS]
    assert (curve[site].auroc, curve[site].selection_auroc, curve[site].high) == (1.0, 1.0, 1.0)
    assert curve[site].low == pytest.approx(0.025 ** (1 / N))  # certain of no more than 24 pairs can show
    for other in set(curve) - {site}:
        assert curve[other].auroc == 0.5
        assert curve[other].low <= 0.5 <= curve[other].high
    assert found.n_pairs == N


def test_the_site_is_chosen_on_select_and_estimated_on_test():
    """Select and test disagree: what select chose is poor on test, and its poor number is the one that counts."""
    weak = np.round(np.random.default_rng(1).normal(size=2 * N), 1)
    weak[:N] += 0.4
    by_hand = np.mean([(plus > minus) + (plus == minus) / 2 for plus in weak[:N] for minus in weak[N:]])
    found = read({(5, -4): column(PERFECT)}, {(5, -4): weak, (9, -1): column(PERFECT)})
    assert (found.best_layer, found.best_position) == (5, -4)
    curve = {(one.layer, one.position): one for one in found.layers}
    assert curve[5, -4].auroc == pytest.approx(by_hand)
    assert 0.5 < by_hand < 0.8
    assert (curve[5, -4].selection_auroc, curve[9, -1].auroc, curve[9, -1].selection_auroc) == (1.0, 1.0, 0.5)
    assert found.gain == pytest.approx(by_hand - 0.5)


def test_a_direction_with_the_wrong_sign_is_not_readable():
    """The direction is harmful minus harmless: scores the wrong way round are 0, not 1, and never chosen."""
    found = read({(2, -1): column(REVERSED)}, {(2, -1): column(REVERSED)})
    assert (found.best_layer, found.best_position) != (2, -1)
    assert found.layers[0].auroc == 0.0


def test_equal_sites_go_to_the_earliest():
    both = {(5, -1): column(PERFECT), (9, -4): column(PERFECT)}
    found = read(both, both)
    assert (found.best_layer, found.best_position) == (5, -1)


# What text alone gives away


def areas(train, test):
    harmful = [one.label == "harmful" for one in test]
    return {name: roc_auc_score(harmful, held) for name, held in confound_scores(train, test).items()}


def numbered(word, n, split, *, longer_by=0):
    return [f"Describe the {word} {split}{i:02d}" + " please" * longer_by for i in range(n)]


@pytest.mark.parametrize("harmful_is_longer", [True, False])
def test_length_that_gives_the_class_away_is_found_in_either_direction(harmful_is_longer):
    def part(split):
        return texts(
            numbered("thing", 20, split, longer_by=3 if harmful_is_longer else 0),
            numbered("thing", 20, split, longer_by=0 if harmful_is_longer else 3),
            split,
        )

    found = areas(part("extract"), part("test"))
    assert found["length in characters"] == 1.0
    assert found["length in words"] == 1.0


def test_a_word_that_gives_the_class_away_is_found_and_length_is_not_blamed():
    def part(split):
        return texts(numbered("poison", 20, split), numbered("garden", 20, split), split)

    found = areas(part("extract"), part("test"))
    assert found["TF-IDF of words"] > 0.99
    assert found["TF-IDF of characters"] > 0.99
    assert found["length in characters"] == found["length in words"] == 0.5


def test_a_word_is_learned_on_extract_and_not_on_the_test_prompts():
    test = texts(numbered("poison", 20, "test"), numbered("garden", 20, "test"))
    found = areas(alike("extract"), test)
    assert found["TF-IDF of words"] < 0.6


@pytest.mark.parametrize("limit", [64, None])
def test_the_packaged_pairs_give_little_away(limit):
    prompts = load_prompts()

    def part(split, n):
        return tuple(
            one for label in ("harmful", "harmless") for one in select(prompts, label=label, split=split, limit=n)
        )

    test = part("test", None)
    assert len(test) >= 160
    found = areas(part("extract", limit), test)
    assert max(found.values()) <= 0.60, found


def test_text_that_says_as_much_as_the_direction_leaves_no_gain():
    """The direction scores each prompt by its length: the same AUROC draw by draw, so the paired interval is a point at zero.

    An unpaired interval would be as wide as two AUROCs of 0.7 on 24 pairs.
    """
    generator = np.random.default_rng(3)
    lengths = generator.integers(1, 12, size=2 * N)
    lengths[:N] += 3
    held = ["word " * int(one) + "end" for one in lengths]
    prompts = texts(held[:N], held[N:])
    by_length = np.array([float(len(text)) for text in held])
    found = read({(5, -1): column(PERFECT)}, {(5, -1): by_length}, prompts=prompts)
    area = next(one for one in found.layers if (one.layer, one.position) == (5, -1))
    assert found.confounds["length in characters"] == pytest.approx(area.auroc)
    assert max(found.confounds.values()) == pytest.approx(area.auroc)
    assert area.high - area.low > 0.1
    assert (found.gain, found.gain_low, found.gain_high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_the_gain_is_over_the_best_text_only_baseline():
    prompts = texts(numbered("thing", N, "t", longer_by=3), numbered("thing", N, "t"))
    found = read({(5, -1): column(PERFECT)}, {(5, -1): column(PERFECT)}, prompts=prompts)
    assert max(found.confounds.values()) == 1.0
    assert found.gain == 0.0
    assert found.gain_low <= 0.0
    apart = read({(5, -1): column(PERFECT)}, {(5, -1): column(PERFECT)})
    assert apart.gain == pytest.approx(0.5)
    assert apart.gain_low > 0


# The gain and its interval


def example(seed: int = 4, n: int = 12):
    generator = np.random.default_rng(seed)
    labels, clusters = np.tile([True, False], n), np.repeat(np.arange(n), 2)
    ours = np.round(generator.normal(size=2 * n) + 1.0 * labels, 1)
    rival = np.round(generator.normal(size=2 * n) + 0.3 * labels, 1)
    return ours, rival, labels, clusters


def test_gain_and_interval_are_scikit_learns_on_repeated_prompts():
    ours, rival, labels, clusters = example()
    found = auroc_gain(ours, rival, labels, list(clusters), seed=9, n_boot=60)
    assert found.value == pytest.approx(roc_auc_score(labels, ours) - roc_auc_score(labels, rival))
    draws = []
    for counts in np.random.default_rng(9).multinomial(12, np.full(12, 1 / 12), size=60):
        taken = np.repeat(np.arange(24), counts[clusters])
        draws.append(roc_auc_score(labels[taken], ours[taken]) - roc_auc_score(labels[taken], rival[taken]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_the_gain_of_a_score_over_itself_is_exactly_nothing_and_swapping_turns_its_sign():
    ours, rival, labels, clusters = example()
    same = auroc_gain(ours, ours, labels, list(clusters), seed=0, n_boot=100)
    assert (same.value, same.low, same.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    there = auroc_gain(ours, rival, labels, list(clusters), seed=0, n_boot=100)
    back = auroc_gain(rival, ours, labels, list(clusters), seed=0, n_boot=100)
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))


def spoiled(value: float) -> np.ndarray:
    return np.array([value, *example()[0][1:]])


@pytest.mark.parametrize(
    ("ours", "rival", "labels", "words"),
    [
        (spoiled(float("nan")), example()[1], example()[2], "finite, but 1 of 48"),
        (example()[0], spoiled(float("inf")), example()[2], "finite, but 1 of 48"),
        (example()[0], example()[1], np.ones(24, dtype=bool), "both classes, but got 24 positive of 24"),
        (example()[0], example()[1], np.zeros(24, dtype=bool), "both classes, but got 0 positive of 24"),
        (example()[0], example()[1], np.array([True, False]), "one value a label"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(ours, rival, labels, words):
    with pytest.raises(ValueError, match=words) as caught:
        auroc_gain(ours, rival, labels, list(range(len(labels))), seed=0)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("part", ["select", "test"])
def test_a_residual_stream_that_overflowed_is_one_sentence(part):
    bad = {(5, -1): np.array([float("nan"), *column(PERFECT)[1:]])}
    good = {(5, -1): column(PERFECT)}
    with pytest.raises(ValueError, match="must be finite"):
        read(bad if part == "select" else good, bad if part == "test" else good)


def test_a_split_of_one_class_is_one_sentence():
    harmful = tuple(one for one in alike() if one.label == "harmful")
    with pytest.raises(ValueError, match="both classes"):
        measure(
            Scores(harmful, np.zeros((N, 1, 1))),
            Scores(harmful, np.zeros((N, 1, 1))),
            extract=alike("extract"),
            layers=(0,),
            positions=(-1,),
            seed=0,
        )


def test_the_seed_decides_the_interval_and_nothing_else():
    site = {(5, -1): np.random.default_rng(1).normal(size=2 * N) + np.repeat([0.8, 0.0], N)}
    assert read(site, site, seed=1) == read(site, site, seed=1)
    one, other = read(site, site, seed=1), read(site, site, seed=2)
    assert (one.gain, one.best_layer) == (other.gain, other.best_layer)
    assert (one.gain_low, one.gain_high) != (other.gain_low, other.gain_high)
    assert auroc(site[5, -1], [True] * N + [False] * N) == next(a.auroc for a in one.layers if a.layer == 5)
