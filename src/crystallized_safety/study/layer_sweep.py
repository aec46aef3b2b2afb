"""Dose points at many layers on the calibrate split: a look at a model, without a choice, a test or a verdict.

What this module does not know: how the table is shown.
"""

from collections.abc import Callable

from crystallized_safety.controllability import SIGN
from crystallized_safety.models import silent
from crystallized_safety.records import DosePoint
from crystallized_safety.study.grid import SweepConfig, grid_of
from crystallized_safety.study.main import lab_of
from crystallized_safety.study.progress import Progress, unheard
from crystallized_safety.study.stages import Site, baselines_of, dose_points

__all__ = ["run_layer_sweep"]


def run_layer_sweep(
    config: SweepConfig,
    *,
    report: Callable[[str], None] = silent,
    progress: Callable[[Progress], None] = unheard,
) -> tuple[DosePoint, ...]:
    """The baseline and every layer × dose, in one queue of rows; what the folder already holds is read.

    Negative κ is tried on harmful prompts, positive κ on harmless ones. Raises InputError where no dose is left, ModelError
    for a layer or position that the model does not have.
    """
    grid = grid_of(config, report)
    bench = grid.open("sweep", classes_a_dose=1, asked={}, progress=progress)
    lab = lab_of(
        config.study,
        grid.preset,
        grid.lm,
        folder=bench.folder,
        recorded=bench.recorded,
        meter=bench.meter,
        report=report,
    )
    pairs = grid.parts.calibrate
    baselines = baselines_of(lab, pairs)
    sites = [
        Site(side, layer, config.position, abs(kappa))
        for side, sign in SIGN.items()
        for layer in grid.layers
        for kappa in grid.doses
        if kappa * sign > 0
    ]
    points = dose_points(lab, pairs, baselines, sites)
    bench.meter.finish()
    return tuple(point for side in SIGN for point in (baselines[side].point, *points[side]))
