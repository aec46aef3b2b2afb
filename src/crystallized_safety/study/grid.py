"""Layers × doses of one model on the calibrate split: what a look at a model needs, whether it generates or only scores.

What this module does not know: what is measured at a point of the grid, how it is shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from crystallized_safety.config import Preset, load_preset
from crystallized_safety.errors import InputError, ModelError
from crystallized_safety.models import LanguageModel
from crystallized_safety.store import RunFolder, open_run
from crystallized_safety.study.main import about, loaded
from crystallized_safety.study.plan import Splits, StudyConfig, splits
from crystallized_safety.study.progress import RECORDED_UNITS, Meter, Progress
from crystallized_safety.study.recording import Recorded, read_positions, recorded_sites

__all__ = ["Bench", "Grid", "SweepConfig", "grid_of"]


@dataclass(frozen=True)
class SweepConfig:
    """One sweep or screen. No layers means every layer; κ = 0 is always measured, whether it is among the doses or not."""

    study: StudyConfig
    layers: tuple[int, ...]
    kappas: tuple[float, ...]
    position: int = -1


@dataclass(frozen=True, eq=False)
class Bench:
    """An open run folder with its recording, ready to measure in."""

    folder: RunFolder
    recorded: Recorded
    meter: Meter


@dataclass(frozen=True, eq=False)
class Grid:
    """A loaded model and the points to measure. `layers` and `kappas` hold each value once, `doses` the κ that are not zero."""

    config: SweepConfig
    preset: Preset
    parts: Splits
    lm: LanguageModel
    layers: tuple[int, ...]
    kappas: tuple[float, ...]

    @property
    def doses(self) -> tuple[float, ...]:
        """What is added, in gap units."""
        return tuple(kappa for kappa in self.kappas if kappa)

    def open(
        self,
        stage: str,
        *,
        classes_a_dose: int,
        asked: Mapping[str, Any],
        progress: Callable[[Progress], None],
    ) -> Bench:
        """The run folder, with `asked` in its run.json, and the direction of every layer.

        `classes_a_dose` is the number of prompt classes that each dose is tried on; the baseline is tried on both. Raises
        RunError where the folder holds another configuration.
        """
        study, pairs = self.config.study, self.parts.calibrate
        points = {"layers": list(self.layers), "kappas": list(self.kappas), "position": self.config.position}
        folder = open_run(study.output, {**about(study, self.preset, self.parts, self.lm), **points, **asked})
        n_rows = len(pairs.harmful) * (2 + classes_a_dose * len(self.layers) * len(self.doses))
        meter = Meter(progress, {"record": RECORDED_UNITS * len(self.parts.extract.both), stage: n_rows})
        recorded = recorded_sites(self.lm, self.parts.extract, {}, folder=folder, meter=meter)
        meter.enter(stage)
        return Bench(folder, recorded, meter)


def grid_of(config: SweepConfig, report: Callable[[str], None]) -> Grid:
    """Load what a sweep or screen asks for; nothing is written yet.

    Raises InputError where no dose is left, ModelError for a layer or position that the model does not have.
    """
    preset = load_preset(config.study.preset)
    parts = splits(preset, config.study.prompts)
    if not any(config.kappas) or not all(map(isfinite, config.kappas)):
        raise InputError(
            f"A sweep needs finite doses, one of them not zero, but {list(config.kappas)} came. Pass --kappas -2 2."
        )
    lm = loaded(config.study, report)
    _check_position(config.position, lm)
    return Grid(config, preset, parts, lm, _layers(config, lm), tuple(dict.fromkeys(config.kappas)))


def _layers(config: SweepConfig, lm: LanguageModel) -> tuple[int, ...]:
    if wrong := [layer for layer in config.layers if not 0 <= layer < lm.n_layers]:
        raise ModelError(
            f"A layer of '{lm.name}' must be within 0 to {lm.n_layers - 1}, but {wrong[0]} came. Choose another layer."
        )
    return tuple(dict.fromkeys(config.layers)) or tuple(range(lm.n_layers))


def _check_position(position: int, lm: LanguageModel) -> None:
    read = read_positions(lm)
    if position not in read:
        raise ModelError(f"The position must be one of {list(read)}, but {position} came. Choose one.")
