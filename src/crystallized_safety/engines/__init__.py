"""Who generates. One protocol, rows in and completions out; each engine is one file.

    rows          what an engine is given and gives back
    transformers  the default engine: queue and batch, and what happens where memory runs out
    queue         the rows that wait, and what was read of their prompts
    reading       prompts, each part of them read as seldom as can be
    batch         the rows that are decoded together
    steps         one step as a function of tensors, run or replayed
    flights       how one row goes on from token to token
    memory        how many rows fit

Nothing above this floor knows which engine ran.
"""

from crystallized_safety.engines.queue import Savings
from crystallized_safety.engines.rows import Engine, Generated, Row, Scored, ScoreRow, Settled
from crystallized_safety.engines.transformers import TransformersEngine

__all__ = ["Engine", "Generated", "Row", "Savings", "ScoreRow", "Scored", "Settled", "TransformersEngine"]
