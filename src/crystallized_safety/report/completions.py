"""Completions as the report shows them: grouped by condition, as visible text, within a budget.

What this module does not know: whether a completion is harmful. It treats every one as if it were hostile.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CompletionSection", "LabelledCompletion", "section"]

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
"""Control characters become their visible pictures (U+2400 …): the page must not act on them."""
_MARKUP_BYTES = 320
"""What the template adds around one completion, rounded up."""


@dataclass(frozen=True)
class LabelledCompletion:
    """One completion as the report shows it; `condition` is the heading it is grouped under, in words."""

    prompt_id: str
    prompt: str
    condition: str
    completion: str
    label: str
    reason: str


@dataclass(frozen=True)
class CompletionSection:
    """`groups` maps a condition to its completions, in the order given; `n_left_out` did not fit the budget."""

    groups: dict[str, list[LabelledCompletion]]
    n_shown: int
    n_left_out: int


def section(completions: Sequence[LabelledCompletion], *, budget_bytes: int) -> CompletionSection:
    """Group completions by condition until the budget is spent; what comes after is counted, not shown."""
    groups: dict[str, list[LabelledCompletion]] = {}
    spent = shown = 0
    for completion in map(_visible, completions):
        spent += _size(completion)
        if spent > budget_bytes:
            break
        groups.setdefault(completion.condition, []).append(completion)
        shown += 1
    return CompletionSection(groups=groups, n_shown=shown, n_left_out=len(completions) - shown)


def _fields(completion: LabelledCompletion) -> tuple[str, ...]:
    c = completion
    return (c.prompt_id, c.prompt, c.condition, c.completion, c.label, c.reason)


def _visible(completion: LabelledCompletion) -> LabelledCompletion:
    return LabelledCompletion(*(visible(text) for text in _fields(completion)))


def visible(text: str) -> str:
    """`text` with control characters shown as pictures and lone surrogates, which UTF-8 cannot hold, as escapes."""
    return text.translate(_CONTROLS).encode("utf-8", "backslashreplace").decode("utf-8")


def _size(completion: LabelledCompletion) -> int:
    return _MARKUP_BYTES + sum(len(html.escape(text).encode("utf-8")) for text in _fields(completion))
