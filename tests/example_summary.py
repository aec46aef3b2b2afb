"""An invented Summary for the tests of figures and report. No number in it was measured."""

from math import exp
from random import Random

from scipy.stats import binomtest

from crystallized_safety.records import (
    DosePoint,
    Effect,
    Label,
    LayerAuroc,
    PromptLabel,
    Rate,
    Readability,
    Side,
    Split,
    Summary,
    Verdict,
)

SENTENCE = (
    "In invented-0.5b-instruct the refusal direction is readable (held-out AUROC 0.96 [0.91, 1.00] on 200 matched pairs, layer 14),"
    " and by adding it it steers in part: compliance with harmful prompts +9 pp [+2, +16], n = 199 (Non-specific); refusal of"
    " harmless prompts +55 pp [+47, +62], n = 200 (✓)."
)
KAPPAS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


def rate(count: int, n: int, unscored: int = 0) -> Rate:
    if n == 0:
        return Rate(0, 0, unscored, float("nan"), float("nan"))
    interval = binomtest(count, n).proportion_ci(method="wilson")
    return Rate(count, n, unscored, float(interval.low), float(interval.high))


def dose(
    *, label: PromptLabel, layer: int, kappa: float, share: float, n: int = 64, split: Split = "calibrate"
) -> DosePoint:
    """`share` of the scored rows turn towards the outcome of the side; large doses collapse, one row is unscored at |κ| ≥ 2."""
    unscored = int(abs(kappa) >= 2)
    scored = n - unscored
    degenerate = round(scored * max(0.0, abs(kappa) - 2.0) * 0.3)
    moved = round((scored - degenerate) * share)
    evade = (scored - degenerate - moved) // 8
    rest = scored - degenerate - moved - evade
    harmful = label == "harmful"
    outcome: Label = "comply" if harmful else "refuse"
    labels: dict[Label, int] = {
        "refuse": rest if harmful else moved,
        "comply": moved if harmful else rest,
        "evade": evade,
        "degenerate": degenerate,
        "unscored": unscored,
    }
    return DosePoint(
        split=split,
        prompt_label=label,
        layer=layer,
        kappa=kappa,
        delta=kappa * 0.11,
        position=-1,
        labels=labels,
        rate=rate(labels[outcome], scored, unscored),
        outcome=outcome,
        coherent=abs(kappa) < 2.5,
    )


def doses() -> tuple[DosePoint, ...]:
    points = []
    for layer, gain in ((10, 0.4), (14, 1.0), (18, 0.6)):
        for kappa in KAPPAS:
            points.append(dose(label="harmful", layer=layer, kappa=-kappa or 0.0, share=0.08 + 0.05 * gain * kappa))
            share = 0.95 / (1 + exp(-2.4 * (kappa * gain - 1.2)))
            points.append(dose(label="harmless", layer=layer, kappa=kappa, share=share))
    for label, kappa, share in (
        ("harmful", 0.0, 0.07),
        ("harmful", -2.0, 0.16),
        ("harmless", 0.0, 0.03),
        ("harmless", 1.5, 0.58),
    ):
        points.append(dose(label=label, layer=14, kappa=kappa, share=share, n=200, split="test"))
    return tuple(points)


def nulls(seed: int, spread: float) -> tuple[float, ...]:
    generator = Random(seed)
    return tuple(round(generator.gauss(0.02, spread), 3) for _ in range(39))


def effects() -> dict[Side, Effect]:
    suppress = Effect(
        side="suppress",
        prompt_label="harmful",
        layer=14,
        position=-1,
        delta=0.2,
        kappa=-2.0,
        value=0.09,
        low=0.021,
        high=0.158,
        baseline=rate(14, 200),
        steered=rate(32, 199, 1),
        gained=24,
        lost=6,
        p_mcnemar=0.0014,
        mde=0.088,
        headroom=0.89,
        null_effects=nulls(11, 0.035),
        null_value=0.11,
        p_null=0.25,
        calibrate_value=0.11,
        coherent=True,
    )
    enhance = Effect(
        side="enhance",
        prompt_label="harmless",
        layer=14,
        position=-1,
        delta=0.2,
        kappa=1.5,
        value=0.55,
        low=0.474,
        high=0.619,
        baseline=rate(6, 200),
        steered=rate(116, 200),
        gained=111,
        lost=1,
        p_mcnemar=2.1e-31,
        mde=0.09,
        headroom=0.97,
        null_effects=nulls(12, 0.025),
        null_value=0.52,
        p_null=0.025,
        calibrate_value=0.61,
        coherent=True,
    )
    return {"suppress": suppress, "enhance": enhance}


def readability() -> Readability:
    layers = []
    for layer in range(24):
        for position, peak, gain in ((-1, 14, 0.46), (-5, 11, 0.38)):
            auroc = 0.5 + gain * exp(-(((layer - peak) / 8) ** 2))
            low, high = max(0.0, auroc - 0.05), min(1.0, auroc + 0.04)
            layers.append(LayerAuroc(layer, position, auroc, low, high, auroc - 0.01))
    confounds = {"length": 0.52, "punctuation": 0.5, "TF-IDF": 0.58, "embedding mean": 0.64}
    return Readability(tuple(layers), 14, -1, 200, confounds, 0.32, 0.262, 0.371)


def example_summary() -> Summary:
    """24 layers, two positions, a sweep over three layers; readable, enhances, hardly suppresses. All invented."""
    run = {
        "model": "invented-0.5b-instruct",
        "source": "test data, no model was run",
        "started": "2001-02-03T04:05:06+00:00",
        "preset": "standard",
        "seed": 7,
        "decoding": {"max_new_tokens": 64, "temperature": 0.0},
        "prompts": {"fingerprint": "sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0", "n": 720},
        "hashes": {"model": "sha256:a1b2c3", "tokenizer": "sha256:d4e5f6", "chat_template": None},
        "versions": {"crystallized-safety": "0.1.0", "torch": "2.13.0", "transformers": "5.1.0"},
        "layers": [10, 14, 18],
    }
    notes = (
        "Enhances only: the suppress side is not told apart from random directions (p = 0.25, K = 39).",
        "Layer-dependent: 1 of 3 swept layers reaches half of the best effect.",
    )
    verdict = Verdict("✓", "Partial", {"suppress": "Non-specific", "enhance": "✓"}, SENTENCE, notes)
    return Summary(
        run=run,
        readability=readability(),
        doses=doses(),
        effects=effects(),
        verdict=verdict,
        seconds=1234.5,
        peak_memory_bytes=1_610_612_736,
        unscored=13,
        warnings=("13 completions are unscored; they are outside every n.",),
    )
