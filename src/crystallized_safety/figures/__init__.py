"""From a `Summary` to figures: matplotlib objects, and SVG text that is the same byte for byte every time.

Every rate is drawn with its 95 % interval and its n. Axes and text take the colour of the page around them, so that one SVG
serves light and dark. What this package does not know: files, HTML, models, and how the numbers came about.
"""

from crystallized_safety.figures.doses import dose_response_figure, label_shares_figure
from crystallized_safety.figures.effects import effects_figure
from crystallized_safety.figures.readability import readability_figure
from crystallized_safety.figures.rendering import svg

__all__ = ["dose_response_figure", "effects_figure", "label_shares_figure", "readability_figure", "svg"]
