"""The front door of a clone: `from src import SteeringVectorExtractor, ActivationSteerer`. Re-exports only."""

from crystallized_safety import ActivationSteerer, SteeringVector, SteeringVectorExtractor, load_vector, save_vector

__all__ = ["ActivationSteerer", "SteeringVector", "SteeringVectorExtractor", "load_vector", "save_vector"]
