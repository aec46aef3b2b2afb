"""What a study is asked to do: model, preset, seed, and the prompts of each split.

What this module does not know: weights, tensors, results.
"""

from dataclasses import dataclass
from pathlib import Path

from crystallized_safety.config import Preset
from crystallized_safety.errors import InputError
from crystallized_safety.models.language_model import DtypeName
from crystallized_safety.prompts import load_prompts, select
from crystallized_safety.records import Prompt, PromptLabel, Split
from crystallized_safety.study.progress import RECORDED_UNITS

__all__ = ["Pairs", "Splits", "StudyConfig", "pairs", "splits", "units_of"]


@dataclass(frozen=True)
class StudyConfig:
    """One study. `preset` is a name or a YAML file; `prompts` a JSONL file in place of the packaged set.

    Raises InputError for a batch of no rows or a seed below 0.
    """

    model: str
    preset: str
    output: Path
    seed: int = 0
    dtype: DtypeName = "auto"
    device: str = "auto"
    batch_size: int | None = None
    """Largest number of rows decoded together; None as many as fit into memory."""
    prompts: Path | None = None
    cache: Path | None = None
    decide_early: bool = False
    """Stop a row where the matcher's label can no longer change."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(
                f"A batch must hold at least one row, but {self.batch_size} came. Pass --batch-size 1 or more."
            )
        if self.seed < 0:
            raise InputError(f"A seed must be 0 or more, but {self.seed} came. Pass --seed 0.")


@dataclass(frozen=True)
class Pairs:
    """Twins of one split, index-aligned."""

    harmful: tuple[Prompt, ...]
    harmless: tuple[Prompt, ...]

    @property
    def both(self) -> tuple[Prompt, ...]:
        """Harmful prompts, then their harmless twins."""
        return self.harmful + self.harmless

    def of(self, label: PromptLabel) -> tuple[Prompt, ...]:
        """One class."""
        return self.harmful if label == "harmful" else self.harmless


def pairs(prompts: tuple[Prompt, ...], split: Split, limit: int) -> Pairs:
    """The first `limit` twins of a split, spread over the categories. Raises InputError where there are fewer than four."""
    found = Pairs(
        select(prompts, label="harmful", split=split, limit=limit),
        select(prompts, label="harmless", split=split, limit=limit),
    )
    if len(found.harmful) < 4 or [one.pair for one in found.harmful] != [one.pair for one in found.harmless]:
        raise InputError(
            f"The split '{split}' must hold at least four matched pairs, but holds {len(found.harmful)} harmful and "
            f"{len(found.harmless)} harmless prompts. Add pairs, each twin with the same 'pair'."
        )
    return found


@dataclass(frozen=True)
class Splits:
    """The prompts a study uses, by split."""

    extract: Pairs
    select: Pairs
    calibrate: Pairs
    test: Pairs

    @property
    def every(self) -> tuple[Prompt, ...]:
        """All of them."""
        return self.extract.both + self.select.both + self.calibrate.both + self.test.both


def splits(preset: Preset, path: Path | None) -> Splits:
    """Load and select the prompts of a preset. Raises InputError for a bad prompt file or too few pairs."""
    prompts = load_prompts(path)
    return Splits(
        extract=pairs(prompts, "extract", preset.extract_pairs),
        select=pairs(prompts, "select", preset.select_pairs),
        calibrate=pairs(prompts, "calibrate", preset.calibrate_pairs),
        test=pairs(prompts, "test", preset.test_pairs),
    )


def units_of(preset: Preset, parts: Splits, n_positions: int) -> dict[str, float]:
    """Expected work of each stage, in rows."""
    n = len(parts.calibrate.harmful)
    n_layers, n_kappas = len(preset.layer_shares), len(preset.kappas)
    return {
        "record": RECORDED_UNITS * sum(len(one.both) for one in (parts.extract, parts.select, parts.test)),
        "calibrate": 2 * n * (1 + n_layers * (n_positions + n_kappas - 1) + len(preset.curve_kappas)),
        "test": 4 * len(parts.test.harmful),
        "nulls": 2 * preset.n_nulls * min(preset.null_pairs, len(parts.test.harmful)),
    }
