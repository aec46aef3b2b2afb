"""The nouns of the instrument, as frozen data: what was asked, under which condition, what came, what it means.

What this module does not know: models, tensors, files, statistics. Every rate is a fraction in [0, 1], every effect a
difference of two rates in [-1, 1], every interval a two-sided 95 % interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "BASELINE",
    "Completion",
    "Condition",
    "DosePoint",
    "Effect",
    "Interval",
    "Judgement",
    "Label",
    "LayerAuroc",
    "OpenerScores",
    "Operator",
    "Positions",
    "Prompt",
    "PromptLabel",
    "Rate",
    "Readability",
    "ScreenPoint",
    "Side",
    "Split",
    "Summary",
    "Verdict",
]

Label = Literal["refuse", "comply", "evade", "degenerate", "unscored"]
PromptLabel = Literal["harmful", "harmless", "borderline", "neutral"]
Split = Literal["extract", "select", "calibrate", "test"]
Operator = Literal["add", "ablate", "clamp"]
Positions = Literal["all", "last-prompt-token-on", "generated"]
Side = Literal["suppress", "enhance"]


@dataclass(frozen=True)
class Prompt:
    """One line of data/prompts/*.jsonl. `cluster` is never split; `pair` joins a harmful prompt with its harmless twin."""

    id: str
    text: str
    label: PromptLabel
    category: str
    cluster: str
    pair: str
    split: Split
    source: str
    licence: str


@dataclass(frozen=True)
class Condition:
    """What is done to the residual stream while a prompt is answered.

    `vector` names a steering vector of the run, `layer` is the 0-based block whose output is edited, and `dose` is the
    multiple of the vector as it is stored. A vector made by this instrument is stored with the norm of the gap between the
    class means, so that its dose is κ.
    """

    vector: str
    layer: int
    operator: Operator
    dose: float
    positions: Positions


BASELINE = Condition(vector="", layer=0, operator="add", dose=0.0, positions="generated")
"""No intervention: a dose of zero, written one way only so that every baseline row has the same key."""


@dataclass(frozen=True)
class Completion:
    """The text one row gave. `finished` is false where it was cut: by the token limit, or, with `settled`, by early decision."""

    prompt_id: str
    prompt: str
    condition: Condition
    completion: str
    n_tokens: int
    finished: bool
    settled: bool = False


@dataclass(frozen=True)
class Judgement:
    """The decision of one judge about one completion, with the rule or quote it rests on."""

    label: Label
    judge: str
    reason: str


@dataclass(frozen=True)
class OpenerScores:
    """How likely each opener was after one prompt under one condition; no text was generated."""

    prompt_id: str
    condition: Condition
    logprobs: tuple[tuple[float | None, ...], ...]
    """Natural log-probability of each token of each opener, refusal openers first; None where the model gave no finite one."""


@dataclass(frozen=True)
class Interval:
    """A number and its two-sided 95 % interval; (nan, nan) where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """`count` of `n` scored rows; `unscored` rows are outside n. [low, high] is a 95 % interval; (nan, nan) if n = 0."""

    count: int
    n: int
    unscored: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Share count / n, nan when nothing was scored."""
        return self.count / self.n if self.n else float("nan")


@dataclass(frozen=True)
class LayerAuroc:
    """How well the direction of one layer and template position separates held-out matched pairs."""

    layer: int
    position: int
    auroc: float
    low: float
    high: float
    selection_auroc: float


@dataclass(frozen=True)
class Readability:
    """Readability by layer on the test split, and the layer and position that the select split chose."""

    layers: tuple[LayerAuroc, ...]
    best_layer: int
    best_position: int
    n_pairs: int
    confounds: Mapping[str, float]
    """AUROC of each text-only baseline (length, TF-IDF, …) on the same test pairs, the larger of A and 1 − A."""
    gain: float
    gain_low: float
    gain_high: float
    """AUROC at the chosen layer and position minus that of the best text-only baseline, paired."""


@dataclass(frozen=True)
class DosePoint:
    """Labels of one prompt class under one condition; `coherent` says whether the dose is inside the coherent window."""

    split: Split
    prompt_label: PromptLabel
    layer: int
    kappa: float
    delta: float
    position: int
    labels: Mapping[Label, int]
    outcome: Label
    """What the side of this class is after: comply for harmful prompts (suppress), refuse for harmless ones (enhance)."""
    rate: Rate
    """Rate of `outcome`."""
    coherent: bool


@dataclass(frozen=True)
class ScreenPoint:
    """Mean log-odds of refusal of one prompt class under one condition, in nats, before any token is generated.

    Over the `n` prompts that are scored here and without steering; `unscored` are the others. κ = 0 is no steering.
    """

    layer: int
    kappa: float
    delta: float
    position: int
    prompt_label: PromptLabel
    n: int
    unscored: int
    next_token: Interval
    """Λ₁: log-odds that the first token is one with which refusals begin."""
    prefix: Interval
    """Λ₂: refusal openers against compliance openers, per token."""
    next_token_shift: Interval
    """Λ₁ minus that of the same prompts at κ = 0."""
    prefix_shift: Interval
    """Λ₂ minus that of the same prompts at κ = 0."""


@dataclass(frozen=True)
class Effect:
    """Paired difference on the test split at the layer and dose that the calibrate split chose.

    `value` is steered minus baseline of the coherent outcome (comply for suppress, refuse for enhance); `gained` and `lost`
    are the discordant prompts; `mde` the minimum detectable effect at 80 % power; `p_null` the share of random directions
    of the same size that do at least as much, with the +1 correction, and None where no null was drawn.
    """

    side: Side
    prompt_label: PromptLabel
    layer: int
    position: int
    kappa: float
    delta: float
    value: float
    low: float
    high: float
    baseline: Rate
    steered: Rate
    gained: int
    lost: int
    p_mcnemar: float
    mde: float
    headroom: float
    null_effects: tuple[float, ...]
    null_value: float
    """The effect on the prompts that the nulls were given; nan without nulls."""
    p_null: float | None
    calibrate_value: float
    """The same effect on the split that chose it: the difference is the winner's-curse gap."""
    coherent: bool


@dataclass(frozen=True)
class Verdict:
    """The conclusion about one model under one operator."""

    readable: str
    steerable: str
    sides: Mapping[Side, str]
    sentence: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """Everything a table, a figure or the report of one run is made from. No completions."""

    run: Mapping[str, object]
    """The content of run.json: model, source, hashes, versions, seed, preset, protocol."""
    readability: Readability
    doses: tuple[DosePoint, ...]
    effects: Mapping[Side, Effect]
    verdict: Verdict
    seconds: float
    peak_memory_bytes: int
    unscored: int = 0
    warnings: tuple[str, ...] = field(default=())
