"""Can a safety direction that is readable in a chat model also be controlled? An instrument that answers with error bars.

Names are imported on first use, so that `import crystallized_safety` costs no import of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystallized_safety.extraction import SteeringVectorExtractor
    from crystallized_safety.models import LanguageModel, load
    from crystallized_safety.steering import ActivationSteerer
    from crystallized_safety.study import StudyConfig, run_study
    from crystallized_safety.vectors import SteeringVector, load_vector, save_vector

__version__ = "0.1.0"

__all__ = [
    "ActivationSteerer",
    "LanguageModel",
    "SteeringVector",
    "SteeringVectorExtractor",
    "StudyConfig",
    "load",
    "load_vector",
    "run_study",
    "save_vector",
]

_HOME = {
    "ActivationSteerer": "steering",
    "LanguageModel": "models",
    "SteeringVector": "vectors",
    "SteeringVectorExtractor": "extraction",
    "StudyConfig": "study",
    "load": "models",
    "load_vector": "vectors",
    "run_study": "study",
    "save_vector": "vectors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
