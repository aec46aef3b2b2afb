"""Text as the rules see it: one form for every apostrophe, dash and space, and only the model's first turn.

One curly apostrophe ("I can’t") once turned a 100 % refusal rate into 16 %, so no rule of this package reads raw text.
What this module does not know: what a refusal is, or whether a text makes sense.
"""

import re
import unicodedata

__all__ = ["first_turn", "fold", "normalise", "plain_lines"]

JUDGED_CHARACTERS = 20_000
"""A label rests on this much visible text; a longer completion is cut, so that no input is slow."""

_APOSTROPHES = "\u00b4\u02b9\u02bb\u02bc\u02bd\u02c8\u02ca\u02cb\u055a\u05f3\u07f4\u1fbd\u1fbf\u1fef\u1ffd\u1ffe\u2018\u2019\u201a\u201b\u2032\u2035\u275b\u275c\ua78b\ua78c\uff07\uff40"
_QUOTES = "\u00ab\u00bb\u02ba\u02ee\u201c\u201d\u201e\u201f\u2033\u2036\u275d\u275e\u301d\u301e\uff02"
_DASHES = "\u058a\u05be\u1806\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u207b\u2212\u2e17\u2e3a\u2e3b\ufe58\ufe63\uff0d"
_ONE_FORM = str.maketrans(
    {**dict.fromkeys(_APOSTROPHES, "'"), **dict.fromkeys(_QUOTES, '"'), **dict.fromkeys(_DASHES, "-")}
)
_VARIANT = re.compile(f"[{_APOSTROPHES}{_QUOTES}{_DASHES}]+")
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
_BACKTICK_INSIDE_WORD = re.compile(r"(?<=[^\W\d_])`(?=[^\W\d_])")
_LINE_BREAK = re.compile(r"\r\n?|[\u2028\u2029\x85]")

_OPENING_TOKENS = re.compile(
    r"\s*(?:(?:<s>|<bos>|<\|begin[_▁]of[_▁](?:text|sentence)\|>|\[/INST\]"
    r"|(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|(?=assistant\|>))\s*(?:assistant|model)?(?:\|>|<\|end_header_id\|>)?"
    r"|(?:assistant|model)\n)\s*)+",
    re.IGNORECASE,
)
_THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_END_OF_TURN = re.compile(
    r"<\|[a-z_▁ ]{2,40}\|>|</s>|<s>|<eos>|<bos>|<(?:end|start)_of_turn>|\[/?INST\]|<</?SYS>>|<\|?(?:eot|eom)_id\|?>"
    r"|(?:(?<=\n)|(?<=[^\w\s]))(?:assistant|user|system)\s*\n\s*\n"
    r"|\n[ \t]*#{2,3} ?(?:human|user|instruction|assistant|response|input)\b|\n\n(?:human|user|assistant): ",
    re.IGNORECASE,
)

_FENCE_LINE = re.compile(r"^[ \t]*(?:```|~~~)[^\n]*$", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*(?:(?:#{1,6}|>)[ \t]+)+", re.MULTILINE)
_BULLET = re.compile(r"^([ \t]*)[*+•‣◦▪●·–-][ \t]+", re.MULTILINE)
_STARS = re.compile(r"\*\*+|~~|(?<![\s\d*])\*(?!\*)|\*(?![\s\d*])")
_UNDERSCORES = re.compile(r"(?<![^\W_])_{1,3}(?=[^\W_])|(?<=[^\s_])_{1,3}(?![^\W_])")
_INLINE_CODE = re.compile(r"`([^`\n]*)`")
_MARKS = (
    ("`~", _FENCE_LINE, ""),
    ("#>", _HEADING, ""),
    ("*+•‣◦▪●·–-", _BULLET, r"\1- "),
    ("`", _INLINE_CODE, r"\1"),
    ("*~", _STARS, ""),
    ("_", _UNDERSCORES, ""),
)
"""Markdown in the order in which it is dropped; a pattern runs only where one of its signs occurs."""


def fold(text: str) -> str:
    """Give the text one form: NFKC, ' " and - for all their variants, no invisible characters, one kind of line break.

    Line breaks, markdown and template tokens stay. At most `JUDGED_CHARACTERS` are kept.
    """
    visible = (text if text.isascii() else _INVISIBLE.sub("", text))[:JUDGED_CHARACTERS]
    folded = visible
    if not visible.isascii():
        folded = _one_form(_INVISIBLE.sub("", unicodedata.normalize("NFKC", _one_form(visible))))
    if "`" in folded:
        folded = _BACKTICK_INSIDE_WORD.sub("'", folded)
    return _LINE_BREAK.sub("\n", folded)


def _one_form(text: str) -> str:
    """Replace the variants of apostrophe, quotation mark and dash."""
    return _VARIANT.sub(lambda found: found.group().translate(_ONE_FORM), text)


def first_turn(text: str) -> str:
    """Return what the model said before it ended its turn, whether or not it stopped there.

    Cut at the end-of-turn and role tokens of the common chat templates (ChatML, Llama 2 and 3, Gemma, Mistral, Phi, Alpaca),
    written as tokens or as the bare "assistant" line that Llama 3 leaves behind. Role tokens and a finished <think> block
    at the very start are skipped. `text` should be folded, so that full-width template tokens are seen.
    """
    start = 0
    for opening in (_OPENING_TOKENS, _THOUGHTS, _OPENING_TOKENS):
        found = opening.match(text, start)
        start = found.end() if found else start
    rest = text[start:]
    end = _END_OF_TURN.search(rest)
    return (rest[: end.start()] if end else rest).strip()


def plain_lines(folded: str) -> str:
    """Drop markdown emphasis, headings, quote marks and fences from folded text; lines stay and bullets become "- "."""
    text = folded
    for signs, pattern, replacement in _MARKS:
        if any(sign in text for sign in signs):
            text = pattern.sub(replacement, text)
    return text


def normalise(text: str) -> str:
    """Fold the text, drop its markdown and put it on one line with single spaces.

    "I **can’t** do  that" becomes "I can't do that". Case stays.
    """
    return " ".join(plain_lines(fold(text)).split())
