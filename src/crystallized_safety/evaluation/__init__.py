"""Deterministic labels for completions: refuse, comply, evade, degenerate, unscored.

    text         one form for every apostrophe, dash and space; the first turn
    degeneracy   collapse, decided first
    phrases      what refusals, evasions and disclaimers look like; refusals_by_language: not in English
    matcher      one completion → one label with the rule that decided
    settled      when that label can no longer change
    label_file   the same for a JSONL file

What this package does not know: models and meaning. A phrase that is not listed is not seen; the model judge is the other,
independent column.
"""

from crystallized_safety.evaluation.degeneracy import degenerate
from crystallized_safety.evaluation.label_file import label_file
from crystallized_safety.evaluation.matcher import judge_by_matcher
from crystallized_safety.evaluation.settled import settled_for_matcher
from crystallized_safety.evaluation.text import first_turn, normalise

__all__ = ["degenerate", "first_turn", "judge_by_matcher", "label_file", "normalise", "settled_for_matcher"]
