"""Front door to `crystallized_safety.steering`: the same names, for code written against the layout of a clone."""

from crystallized_safety.steering import *  # noqa: F403
from crystallized_safety.steering import __all__ as __all__
