"""Readability: how well a direction separates held-out matched pairs, per layer and position, and beyond the text alone.

Layer and position are chosen on the select split and estimated once on the test split; the curve over layers is
descriptive. What this module does not know: generation, labels of completions, the verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from crystallized_safety.records import LayerAuroc, Prompt, Readability
from crystallized_safety.statistics import auroc, auroc_gain, auroc_intervals

__all__ = ["Scores", "confound_scores", "measure"]


@dataclass(frozen=True)
class Scores:
    """Projection of each prompt's residual stream on the unit direction of each site: values [n_prompts, n_layers, n_positions]."""

    prompts: tuple[Prompt, ...]
    values: NDArray[np.float64]


def measure(
    select: Scores,
    test: Scores,
    *,
    extract: Sequence[Prompt],
    layers: Sequence[int],
    positions: Sequence[int],
    seed: int,
) -> Readability:
    """AUROC of every site on the test split with cluster-bootstrap intervals (2,000 resamples), and the chosen site's gain.

    Source: PROTOCOL §1.3; text-only baselines are fitted on `extract`.
    """
    sites = [(layer, position) for layer in layers for position in positions]
    chosen_on = [auroc(column, _harmful(select.prompts)) for column in _columns(select)]
    harmful, clusters = _harmful(test.prompts), [prompt.cluster for prompt in test.prompts]
    intervals = auroc_intervals(np.array(_columns(test)), harmful, clusters, seed=seed)
    curve = tuple(
        LayerAuroc(layer, position, one.value, one.low, one.high, selected)
        for (layer, position), one, selected in zip(sites, intervals, chosen_on, strict=True)
    )
    best = max(range(len(curve)), key=lambda index: (chosen_on[index], -index))
    confounds = confound_scores(extract, test.prompts)
    areas = {name: auroc(scores, harmful) for name, scores in confounds.items()}
    rival = max(areas, key=lambda name: areas[name])
    gain = auroc_gain(_columns(test)[best], confounds[rival], harmful, clusters, seed=seed)
    return Readability(
        layers=curve,
        best_layer=curve[best].layer,
        best_position=curve[best].position,
        n_pairs=len({prompt.pair for prompt in test.prompts}),
        confounds=areas,
        gain=gain.value,
        gain_low=gain.low,
        gain_high=gain.high,
    )


def confound_scores(train: Sequence[Prompt], test: Sequence[Prompt]) -> Mapping[str, NDArray[np.float64]]:
    """What text alone says about each test prompt, [n_prompts] each, oriented so that the AUROC is at least one half.

    Length in characters and words; word and character TF-IDF with logistic regression, fitted on `train`.
    """
    texts = [prompt.text for prompt in test]
    raw = {
        "length in characters": np.array([float(len(text)) for text in texts]),
        "length in words": np.array([float(len(text.split())) for text in texts]),
        "TF-IDF of words": _tfidf(train, texts, TfidfVectorizer(ngram_range=(1, 2))),
        "TF-IDF of characters": _tfidf(train, texts, TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5))),
    }
    harmful = _harmful(test)
    return {name: scores if auroc(scores, harmful) >= 0.5 else -scores for name, scores in raw.items()}


def _tfidf(train: Sequence[Prompt], texts: Sequence[str], vectorizer: TfidfVectorizer) -> NDArray[np.float64]:
    model = make_pipeline(vectorizer, LogisticRegression(max_iter=1000))
    model.fit([prompt.text for prompt in train], _harmful(train))
    return np.asarray(model.decision_function(texts), dtype=np.float64)


def _harmful(prompts: Sequence[Prompt]) -> NDArray[np.bool_]:
    return np.array([prompt.label == "harmful" for prompt in prompts])


def _columns(scores: Scores) -> list[NDArray[np.float64]]:
    """One column of scores per site, in the order layers × positions."""
    return list(scores.values.reshape(len(scores.prompts), -1).T)
