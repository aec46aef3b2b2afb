"""The HTML page: figures, tables and words put into one template under a strict Content-Security-Policy.

The policy allows the page's own style sheet, by its hash, and nothing else: no scripts, no fetches, no inline style. What
this module does not know: files.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from crystallized_safety.figures import (
    dose_response_figure,
    effects_figure,
    label_shares_figure,
    readability_figure,
    svg,
)
from crystallized_safety.records import Summary
from crystallized_safety.report import tables, wording
from crystallized_safety.report.completions import LabelledCompletion, section, visible

__all__ = ["render"]

_TEMPLATES = Path(__file__).parent / "templates"
_BUDGET_BYTES = 1_950_000
_CHIP = {"✓": "yes", "Partial": "partial", "✗": "no"}


@dataclass(frozen=True)
class _Drawing:
    title: str
    image: Markup
    caption: str


@dataclass(frozen=True)
class _Chip:
    name: str
    word: str
    kind: str


def render(summary: Summary, completions: Sequence[LabelledCompletion]) -> str:
    """Render the whole page. Completions fill what the rest leaves of 2 MB."""
    template = _environment().get_template("report.html.j2")
    style = _TEMPLATES.joinpath("report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    context = {
        "summary": summary,
        "model": _text(summary, "model", default="unnamed model"),
        "folder": _text(summary, "folder", default=""),
        "date": _text(summary, "started", default="")[:10],
        "style": Markup(style),  # noqa: S704  (our own style sheet)
        "policy": f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'",
        "chips": _chips(summary),
        "drawings": _drawings(summary),
        "effects": tables.effects(summary),
        "readability": tables.readability(summary),
        "confounds": tables.confounds(summary),
        "doses": tables.doses(summary),
        "settings": _settings(summary),
        "n_given": len(completions),
    }
    bare = template.render(context | {"completions": section((), budget_bytes=0)})
    left = _BUDGET_BYTES - len(bare.encode("utf-8", "backslashreplace"))
    page = template.render(context | {"completions": section(completions, budget_bytes=left)})
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _text(summary: Summary, key: str, *, default: str) -> str:
    return visible(str(summary.run.get(key, default)))


def _chips(summary: Summary) -> list[_Chip]:
    """Give the verdict's words, coloured by what they begin with; everything but ✓, Partial and ✗ stays grey."""
    words: dict[str, str] = {"readable": summary.verdict.readable, "steerable": summary.verdict.steerable}
    words |= {str(side): word for side, word in summary.verdict.sides.items()}
    return [
        _Chip(name, word, next((kind for start, kind in _CHIP.items() if word.startswith(start)), "open"))
        for name, word in words.items()
    ]


def _settings(summary: Summary) -> list[tuple[str, str]]:
    rows = [(visible(name), visible(value)) for name, value in wording.settings(summary.run)]
    rows += [("time", wording.duration(summary.seconds)), ("peak memory", wording.megabytes(summary.peak_memory_bytes))]
    return [*rows, ("unscored completions", str(summary.unscored))]


def _drawings(summary: Summary) -> list[_Drawing]:
    return [
        _drawing(
            "Can it be read?",
            readability_figure(summary),
            "AUROC of the direction on held-out matched pairs, by layer. Bands are 95 % intervals. Dashed lines are"
            " baselines that see only the text, never the model.",
        ),
        _drawing(
            "Does steering work, and is it the direction?",
            effects_figure(summary),
            "Change of the coherent outcome on the test split with its 95 % interval. Grey dots are random directions of"
            " the same size, and the ring among them is the direction itself on the prompts that they were given.",
        ),
        _drawing(
            "How does it depend on the dose?",
            dose_response_figure(summary),
            "Coherent compliance when refusal is suppressed, coherent refusal when it is enhanced. Bars are 95 % Wilson"
            " intervals; hollow points lie outside the coherent window.",
        ),
        _drawing(
            "What did the model do instead?",
            label_shares_figure(summary),
            "Shares of all labels, unscored included. A dose that only breaks the text shows as degenerate.",
        ),
    ]


def _drawing(title: str, figure: Figure, caption: str) -> _Drawing:
    name = f"figure-{hashlib.sha256(title.encode('utf-8')).hexdigest()[:6]}"
    return _Drawing(title, Markup(svg(figure, name=name)), caption)  # noqa: S704  (an XML writer escaped it)
