"""Front door to `crystallized_safety.models`: the same names, for code written against the layout of a clone."""

from crystallized_safety.models import *  # noqa: F403
from crystallized_safety.models import __all__ as __all__
