"""One look for all figures, and their SVG: reproducible, self-contained, and free of inline style.

matplotlib writes `style="…"` attributes, which a strict Content-Security-Policy forbids, and fixed ids, which collide when
two figures share a page. Both are rewritten here. What this module does not know: what a figure shows.
"""

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["BLUE", "GREEN", "INK", "ORANGE", "SKY", "VERMILLION", "house_style", "new_figure", "note", "svg"]

# Okabe & Ito (2008): distinguishable with every common colour vision.
BLUE, VERMILLION, GREEN, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9"
INK = "#1b1d22"
"""Colour of text and axes. `svg` replaces it by `currentColor`."""

_STYLE: dict[str, object] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "crystallized-safety",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": INK,
    "ytick.labelsize": 8.5,
}
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
_THEME = f"svg{{color:{INK}}}@media (prefers-color-scheme:dark){{svg{{color:#e6e3dc}}}}"


@contextmanager
def house_style() -> Iterator[None]:
    """Apply matplotlib's defaults plus the house style, whatever the user's matplotlibrc says."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def new_figure(*, height: float, alternative: str) -> Figure:
    """Make an empty figure 4.6 inches wide: narrow enough that its text stays legible on a phone.

    `alternative` is the sentence a screen reader says; it is kept as the figure's label.
    """
    figure = Figure(figsize=(4.6, height), layout="constrained")
    figure.set_label(alternative)
    return figure


def note(axes: Axes, text: str) -> None:
    """Say in the middle of a panel why it is empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", alpha=0.75)


def svg(figure: Figure, *, name: str = "figure", standalone: bool = False) -> str:
    """Write the figure as one `<svg>` element, the same bytes every time.

    `name` prefixes every id, so that figures with different names can share a page. Text and axes are `currentColor`; a
    `standalone` file brings its own colours for light and dark, because an `<img>` does not inherit them.
    """
    buffer = io.StringIO()
    with house_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314  (our own output, a line above)
    for child in [c for c in root if c.tag == f"{_SVG}metadata" or c.find(f"{_SVG}style") is not None]:
        root.remove(child)  # about the file, and a style sheet for `*` that would leak into the page
    for element in root.iter():
        _rewrite(element, name)
    root.attrib |= {"role": "img", "aria-label": str(figure.get_label()), "font-family": _FONTS}
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}
    if standalone:
        theme = ET.Element(f"{_SVG}style")
        theme.text = _THEME
        root.insert(0, theme)
    ET.register_namespace("", _SVG[1:-1])
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _rewrite(element: ET.Element, name: str) -> None:
    """Turn one element's style into attributes, its ids into prefixed ids, its ink into `currentColor`."""
    attributes = element.attrib
    for declaration in attributes.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font":
            attributes["font-size"] = value.split("px")[0].split()[-1] + "px"
        elif key and key != "font-family":
            attributes[key] = value
    if "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    if _HREF in attributes:
        attributes["href"] = f"#{name}-{attributes.pop(_HREF)[1:]}"
    for key, value in attributes.items():
        attributes[key] = value.replace(INK, "currentColor").replace("url(#", f"url(#{name}-")
