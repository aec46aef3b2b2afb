"""Who generates. One protocol, rows in and completions out; each engine is one file.

Nothing above this floor knows which engine ran.
"""

from crystallized_safety.engines.rows import Engine, Generated, Row
from crystallized_safety.engines.transformers import TransformersEngine

__all__ = ["Engine", "Generated", "Row", "TransformersEngine"]
