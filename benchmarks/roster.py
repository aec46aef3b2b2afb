"""Who takes part, where each one lives, and what share of the conditions each one runs.

What this module does not know: how any of them works. It imports the standard library alone.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["BASE", "OURS", "ROSTER", "Contestant"]

BASE = "batch"
"""Everybody's speed is a multiple of this one's."""

OURS = "ours"
"""Everybody's tokens are compared with this one's."""

Group = Literal["one", "base", "full", "peer"]


@dataclass(frozen=True)
class Contestant:
    """`load` of `module` gives a function that does work at a batch size; `sizes` are those that a short trial chooses from.

    `sizes` is empty where the contestant chooses for itself. `package` is what the peers' environment must hold, None for our
    own environment. `mixes` says that a batch may hold several conditions, `prefix` that shorter rows are meant, so that only
    the tokens it gave are compared.
    """

    name: str
    title: str
    module: str
    group: Group
    load: str = "load"
    sizes: tuple[int, ...] = ()
    package: str | None = None
    requirements: str = "benchmarks/requirements.txt"
    venv: str = ".venv-bench"
    mixes: bool = False
    prefix: bool = False


_WHOLE = (8, 16, 32)

ROSTER = {
    one.name: one
    for one in (
        Contestant("one", "one prompt at a time, hook", "plain", "one", sizes=(1,)),
        Contestant("batch", "well-made batch, hook", "plain", "base", sizes=_WHOLE),
        Contestant(
            "batch-old",
            "well-made batch, hook",
            "plain",
            "peer",
            sizes=_WHOLE,
            package="steering-vectors",
        ),
        Contestant(
            "steering-vectors",
            "steering-vectors",
            "with_steering_vectors",
            "peer",
            sizes=_WHOLE,
            package="steering-vectors",
        ),
        Contestant("repeng", "repeng", "with_repeng", "peer", sizes=_WHOLE, package="repeng"),
        Contestant(
            "nnsight",
            "nnsight, conditions mixed in a batch",
            "with_nnsight",
            "peer",
            sizes=(128,),
            package="nnsight",
            requirements="benchmarks/requirements-nnsight.txt",
            venv=".venv-bench-nnsight",
            mixes=True,
        ),
        Contestant("ours", "ours, one queue of rows", "ours", "full"),
        Contestant("early", "ours, decide early", "ours", "full", load="load_deciding_early", prefix=True),
    )
}
