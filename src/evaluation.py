"""Front door to `crystallized_safety.evaluation`: the same names, for code written against the layout of a clone."""

from crystallized_safety.evaluation import *  # noqa: F403
from crystallized_safety.evaluation import __all__ as __all__
