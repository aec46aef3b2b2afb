"""The order of the stages of one study, its run folder, and the summary that everything shown is made from.

What this module does not know: figures, HTML, progress bars.
"""

import contextlib
import platform
import resource as process
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

import crystallized_safety
from crystallized_safety.config import Preset, load_preset, load_protocol, protocol_sha256
from crystallized_safety.engines import TransformersEngine
from crystallized_safety.errors import RunError
from crystallized_safety.models import (
    LanguageModel,
    load,
    silent,
    template_sha256,
    tokenizer_sha256,
    weights_fingerprint,
)
from crystallized_safety.prompts import fingerprint
from crystallized_safety.readability import measure
from crystallized_safety.records import Summary
from crystallized_safety.store import RunFolder, open_run, read_run
from crystallized_safety.study.plan import Splits, StudyConfig, splits, units_of
from crystallized_safety.study.progress import Meter, Progress, unheard
from crystallized_safety.study.recording import Recorded, read_positions, recorded_sites
from crystallized_safety.study.stages import Calibration, Lab, calibrate, effects_on_test
from crystallized_safety.sweep import JUDGE, Cell, FinishedCell, missing_rows, run
from crystallized_safety.vectors import SteeringVector, save_vector
from crystallized_safety.verdict import decide

__all__ = ["about", "lab_of", "loaded", "run_study"]

_VERSIONED = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "safetensors")


def run_study(
    config: StudyConfig,
    *,
    report: Callable[[str], None] = silent,
    progress: Callable[[Progress], None] = unheard,
) -> Summary:
    """From a chat model to a verdict in `config.output`; what is there already is read, not done again.

    `report` gets a line for each long step of loading, `progress` every row. Raises InputError, ModelError or RunError
    before anything is written where something asked for cannot be had.
    """
    started = time.monotonic()
    preset = load_preset(config.preset)
    parts = splits(preset, config.prompts)
    lm = loaded(config, report)
    folder = open_run(config.output, about(config, preset, parts, lm))
    meter = Meter(progress, units_of(preset, parts, len(read_positions(lm))))
    scored = {"select": parts.select, "test": parts.test}
    recorded = recorded_sites(lm, parts.extract, scored, folder=folder, meter=meter)
    readability = measure(
        recorded.scores["select"],
        recorded.scores["test"],
        extract=parts.extract.both,
        layers=range(lm.n_layers),
        positions=recorded.positions,
        seed=config.seed,
    )
    lab = lab_of(config, preset, lm, folder=folder, recorded=recorded, meter=meter, report=report)
    meter.enter("calibrate")
    calibration = calibrate(lab, parts.calibrate, layers=preset.layers(lm.n_layers), positions=recorded.positions)
    meter.enter("test")
    effects = effects_on_test(lab, parts.test, calibration)
    meter.finish()
    _save_vectors(folder, lab, calibration)
    seconds, peak = _cost(folder, meter, time.monotonic() - started)
    summary = Summary(
        run=read_run(folder.path),
        readability=readability,
        doses=calibration.points,
        effects=effects,
        verdict=decide(readability, effects, lab.protocol, model=config.model),
        seconds=seconds,
        peak_memory_bytes=peak,
        unscored=sum(point.rate.unscored for point in calibration.points)
        + sum(one.steered.unscored for one in effects.values()),
        warnings=tuple(_warnings(lm, preset)),
    )
    folder.write_summary(summary)
    return summary


def loaded(config: StudyConfig, report: Callable[[str], None]) -> LanguageModel:
    """The model of a study."""
    return load(config.model, dtype=config.dtype, device=config.device, cache=config.cache, report=report)


def lab_of(
    config: StudyConfig,
    preset: Preset,
    lm: LanguageModel,
    *,
    folder: RunFolder,
    recorded: Recorded,
    meter: Meter,
    report: Callable[[str], None],
) -> Lab:
    """What the generating stages need, bound to one model and one run folder; `report` hears where memory runs out."""
    engine = TransformersEngine(lm, config.batch_size, report)

    def run_cells(cells: Sequence[Cell], vectors: Mapping[str, SteeringVector]) -> Iterable[FinishedCell]:
        meter.skip(sum(len(one.prompts) for one in cells) - missing_rows(folder, cells))
        return run(
            lm,
            engine,
            cells,
            vectors=vectors,
            folder=folder,
            on_row=meter.row,
            decide_early=config.decide_early,
        )

    return Lab(
        preset=preset,
        protocol=load_protocol(),
        seed=config.seed,
        vector_at=lambda layer, position: recorded.vector(lm, layer, position),
        run_cells=run_cells,
    )


def about(config: StudyConfig, preset: Preset, parts: Splits, lm: LanguageModel) -> dict[str, Any]:
    """What run.json says: everything that the numbers depend on, and when the run began."""
    versions = {name: version(name) for name in _VERSIONED}
    return {
        "model": config.model,
        "source": lm.source,
        "weights": weights_fingerprint(lm),
        "tokenizer_sha256": tokenizer_sha256(lm),
        "template_sha256": template_sha256(lm),
        "n_layers": lm.n_layers,
        "d_model": lm.d_model,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": lm.device.type,
        "preset": config.preset,
        "settings": preset.model_dump(mode="json"),
        "seed": config.seed,
        "batch_size": config.batch_size or "what fits",
        "decoding": "greedy",
        "decide_early": config.decide_early,
        "judge": JUDGE,
        "prompts_sha256": fingerprint(parts.every),
        "protocol_sha256": protocol_sha256(),
        "versions": {
            "crystallized-safety": crystallized_safety.__version__,
            "python": platform.python_version(),
            **versions,
        },
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _save_vectors(folder: RunFolder, lab: Lab, calibration: Calibration) -> None:
    """The chosen vectors, ready for `steer` and for other tools."""
    for point in {(one.layer, one.position): one for one in calibration.chosen.values() if one is not None}.values():
        vector = lab.vector_at(point.layer, point.position)
        save_vector(vector, folder.path / "vectors" / f"layer{point.layer}.safetensors")


def _warnings(lm: LanguageModel, preset: Preset) -> list[str]:
    warnings = []
    if not lm.has_chat_template:
        warnings.append("The model has no chat template; a plain 'User: … Assistant:' template was used.")
    if preset.n_nulls < 39:
        warnings.append(
            f"{preset.n_nulls} random directions were drawn; the protocol asks for 39 or more (--preset full)."
        )
    return warnings


def _cost(folder: RunFolder, meter: Meter, seconds: float) -> tuple[float, int]:
    """Seconds and peak memory of this run; of the earlier one where this one found everything done."""
    if not meter.worked:
        with contextlib.suppress(RunError):  # none yet, or damaged: it is written anew
            earlier = folder.summary()
            return earlier.seconds, earlier.peak_memory_bytes
    return seconds, _peak_memory()


def _peak_memory() -> int:
    """Peak resident memory of this process in bytes. Linux counts in KiB, macOS in bytes."""
    peak = process.getrusage(process.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
