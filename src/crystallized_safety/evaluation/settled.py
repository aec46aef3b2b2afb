"""When the matcher's label can no longer change, whatever the model would say next.

Two cases can be proved from its rules: the model has ended its turn in writing and goes on with somebody else's, which is cut
away; or it has collapsed over all the words that are looked at. A refusal is never settled, since it may still be taken back, and
an answer hardly ever, since it may still turn. What this module does not know: models, tokens, how likely a change would be.
"""

from crystallized_safety.evaluation.degeneracy import WINDOW_CHARACTERS, WINDOW_WORDS, degenerate_turn
from crystallized_safety.evaluation.text import first_turn, fold

__all__ = ["settled_for_matcher"]

_MARGIN_WORDS, _MARGIN_CHARACTERS = 20, 200
"""Text beyond the window, so that a marker which is half written at the end cannot reach into it."""
_MARGIN_AFTER_TURN = 16
"""Characters after the turn's end, so that none of it is still being written."""


def settled_for_matcher(completion: str) -> bool:
    """Whether `judge_by_matcher` gives every continuation of this completion the label that it gives the completion."""
    text = fold(completion).strip()
    if text.startswith("<") and "</think>" not in text:
        return False  # thoughts or template tokens at the start may still be skipped
    turn = first_turn(text)
    at = text.find(turn)
    if turn and at + len(turn) + _MARGIN_AFTER_TURN < len(text):
        return True
    long = len(turn.split()) > WINDOW_WORDS + _MARGIN_WORDS or len(turn) > WINDOW_CHARACTERS
    return (
        long
        and len(turn) > _MARGIN_CHARACTERS
        and degenerate_turn(turn[:-_MARGIN_CHARACTERS]) is not None
        and (degenerate_turn(turn) is not None)
    )
