"""Front door to `crystallized_safety.extraction`: the same names, for code written against the layout of a clone."""

from crystallized_safety.extraction import *  # noqa: F403
from crystallized_safety.extraction import __all__ as __all__
