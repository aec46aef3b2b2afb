"""The whole main job: record → readability → sweep → choice → test → nulls → verdict.

    plan         what is asked, and the prompts of each split
    progress     how far it is
    recording    one pass over the prompts: directions and projections at every layer and position
    stages       calibrate, choose, test: the stages that generate
    main         the order of the stages, resume, summary
    grid         layers × doses of one model: what a look at it needs
    layer_sweep  dose points at many layers, without a verdict
    screen       log-odds of refusal at many layers, before a token is generated

What this package does not know: how progress and results are shown.
"""

from crystallized_safety.study.grid import SweepConfig
from crystallized_safety.study.layer_sweep import run_layer_sweep
from crystallized_safety.study.main import run_study
from crystallized_safety.study.plan import StudyConfig
from crystallized_safety.study.progress import Progress
from crystallized_safety.study.screen import run_screen

__all__ = ["Progress", "StudyConfig", "SweepConfig", "run_layer_sweep", "run_screen", "run_study"]
