"""Matplotlib figures as inline SVG: text stays text, and colours follow the page's light or dark palette."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from eval.report import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010101"  # sentinel: becomes currentColor
HUES = tuple(f"#0101{index:02x}" for index in range(0xE0, 0xE8))  # sentinels: become var(--hue-0) ... var(--hue-7) of the style sheet
MARKERS = "osD^vPX*"


def label(axes: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names to the right of the axes, each connected to its point (x, y, name, colour). Call this last, after setting the limits."""
    low, high = axes.get_ylim()
    heights = spread([(y - low) / (high - low) for _, y, _, _ in points], gap=0.075)
    for (x, y, name, colour), height in zip(points, heights, strict=True):
        axes.annotate(
            words.short(name),
            (x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            verticalalignment="center",
            color=colour,
            parse_math=False,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": colour,
                "alpha": 0.35,
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )


def round_numbers(low: float, high: float) -> list[float]:
    """A few ticks for a logarithmic axis: whole decades, or 1, 2 and 5 within them if there are too few decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5) if low <= digit * 10.0**decade <= high]
    coarse = [10.0**decade for decade in decades if low <= 10.0**decade <= high]
    return fine if len(fine) <= 3 else coarse if 2 <= len(coarse) <= 4 else fine[:: math.ceil(len(fine) / 3)]


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights apart to at least `gap` (less if there are too many), within 0 to 1 and without changing their order."""
    moved, gap = list(heights), min(gap, 1 / max(1, len(heights) - 1))
    order = sorted(range(len(moved)), key=lambda index: -moved[index])
    ceiling, floor = 1.0, 0.0
    for index in order:
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    for index in reversed(order):
        moved[index] = max(moved[index], floor)
        floor = moved[index] + gap
    return moved


@contextmanager
def panel(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure of `width` x `height` inches in the page's style. matplotlib is imported here because only the page needs it."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "paragone",  # reproducible ids: the same results give the same page
        "font.family": "sans-serif",
        "font.size": 8.5,
        "text.parse_math": False,  # names with dollar signs are not formulas
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": INK,
        "grid.alpha": 0.1,
        "grid.linewidth": 0.6,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.minor.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "legend.handlelength": 1.4,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element that scales with its container, with a title for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = buffer.getvalue()
    head, body = text[text.index("<svg") :].split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)  # keep only the view box: the page sets the size
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|font-family: [^;]*; ", "", body, flags=re.DOTALL)  # use the page's font and rules
    text = f'{head} role="img"><title>{escape(title)}</title>{body}'.replace(INK, "currentColor")
    places = re.compile(r' (?:d|x|y|x1|x2|y1|y2|width|height|transform|points)="[^"]*"')
    text = places.sub(lambda place: re.sub(r"(\.\d)\d+", r"\1", place[0]), text)  # a tenth of a point is enough
    for index, hue in enumerate(HUES):
        text = text.replace(hue, f"var(--hue-{index})")
    return text
