"""Dose points at many layers on the calibrate split: a look at a model, without a choice, a test or a verdict.

What this module does not know: how the table is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

from crystallized_safety.config import load_preset
from crystallized_safety.controllability import SIGN
from crystallized_safety.errors import InputError, ModelError
from crystallized_safety.models import LanguageModel, silent
from crystallized_safety.records import DosePoint
from crystallized_safety.store import open_run
from crystallized_safety.study.main import about, lab_of, loaded
from crystallized_safety.study.plan import StudyConfig, splits
from crystallized_safety.study.progress import RECORDED_UNITS, Meter, Progress, unheard
from crystallized_safety.study.recording import read_positions, recorded_sites
from crystallized_safety.study.stages import Site, baselines_of, dose_points

__all__ = ["SweepConfig", "run_layer_sweep"]


@dataclass(frozen=True)
class SweepConfig:
    """One sweep. No layers means every layer; negative κ is tried on harmful prompts, positive κ on harmless ones."""

    study: StudyConfig
    layers: tuple[int, ...]
    kappas: tuple[float, ...]
    position: int = -1


def run_layer_sweep(
    config: SweepConfig,
    *,
    report: Callable[[str], None] = silent,
    progress: Callable[[Progress], None] = unheard,
) -> tuple[DosePoint, ...]:
    """The baseline and every layer × dose, in one queue of rows; what the folder already holds is read.

    Raises InputError where no dose is left, ModelError for a layer or position that the model does not have.
    """
    preset = load_preset(config.study.preset)
    parts = splits(preset, config.study.prompts)
    if not any(config.kappas) or not all(map(isfinite, config.kappas)):
        raise InputError(
            f"A sweep needs finite doses, one of them not zero, but {list(config.kappas)} came. Pass --kappas -2 2."
        )
    lm = loaded(config.study, report)
    layers = _layers(config, lm)
    _check_position(config.position, read_positions(lm))
    asked = {"layers": list(layers), "kappas": list(config.kappas), "position": config.position}
    folder = open_run(config.study.output, {**about(config.study, preset, parts, lm), **asked})
    n_rows = len(parts.calibrate.harmful) * (2 + len(layers) * len(config.kappas))
    meter = Meter(progress, {"record": RECORDED_UNITS * len(parts.extract.both), "sweep": n_rows})
    recorded = recorded_sites(lm, parts.extract, {}, folder=folder, meter=meter)
    lab = lab_of(config.study, preset, lm, folder=folder, recorded=recorded, meter=meter, report=report)
    meter.enter("sweep")
    baselines = baselines_of(lab, parts.calibrate)
    sites = [
        Site(side, layer, config.position, abs(kappa))
        for side, sign in SIGN.items()
        for layer in layers
        for kappa in config.kappas
        if kappa * sign > 0
    ]
    points = dose_points(lab, parts.calibrate, baselines, sites)
    meter.finish()
    return tuple(point for side in SIGN for point in (baselines[side].point, *points[side]))


def _layers(config: SweepConfig, lm: LanguageModel) -> tuple[int, ...]:
    if wrong := [layer for layer in config.layers if not 0 <= layer < lm.n_layers]:
        raise ModelError(
            f"A layer of '{lm.name}' must be within 0 to {lm.n_layers - 1}, but {wrong[0]} came. Choose another layer."
        )
    return config.layers or tuple(range(lm.n_layers))


def _check_position(position: int, read: Sequence[int]) -> None:
    if position not in read:
        raise ModelError(f"The position must be one of {list(read)}, but {position} came. Choose one.")
