"""Figures as inline SVG: text stays text, ink follows the page's colour, hues follow its light or dark palette."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from eval.report import words
from eval.report.results import Key, Run
from eval.report.rows import Row, control

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010101"  # sentinel: becomes currentColor
HUES = tuple(f"#0101{index:02x}" for index in range(0xE0, 0xE8))  # sentinels: become var(--hue-0) ... var(--hue-7) of the style sheet
MARKERS = "osD^vPX*"
CURVE_POINTS = 250  # per curve: more is invisible at this size and makes the page heavy


def training_curves(runs: Sequence[Run], title: str, longest: float) -> str | None:
    """One model's loss terms over samples seen, each divided by its chance value, so that all panels share both axes.

    A term without a chance value of its own is drawn dashed, relative to that of the total, or else to where it began.
    Circles are the loss on validation samples, as far as the run took it.
    """
    logs = [run.log for run in runs if run.log]
    chances = {name: value for log in logs for line in log for name, value in line.get("chance", {}).items() if value}
    terms = list(dict.fromkeys(term for log in logs for line in log for term in line.get("terms", {})))
    terms = [term for term in terms if term != "total" or term in chances] or terms  # a sum without chance says nothing more
    if not terms:
        return None
    of_total = chances.get("total") or (next(iter(chances.values())) if len(set(chances.values())) == 1 else None)
    with panel(3.4, 2.4) as (figure, axes):
        for index, term in enumerate(terms):
            for log in logs:
                points = [(line["samples"], line["terms"][term]) for line in log if term in line.get("terms", {})]
                unit = chances.get(term) or of_total or next((value for _, value in points if value), 1.0)
                thinned = points[:: -(-len(points) // CURVE_POINTS)] + points[-1:]
                axes.plot(
                    [samples for samples, _ in thinned],
                    [value / unit for _, value in thinned],
                    color=HUES[index % len(HUES)],
                    linewidth=1.3,
                    linestyle="-" if term in chances else "--",
                    alpha=1 if log is logs[0] else 0.45,
                    label=words.short(term.replace("_", " ")) + (f", chance {unit:.3g}" if term in chances else "")
                    if log is logs[0]
                    else None,
                )
        if validation := [(samples, loss / of_total) for run in runs for samples, loss in run.validation if of_total]:
            axes.plot(
                *zip(*validation, strict=True), linestyle="", marker="o", fillstyle="none", markersize=3.5, color=INK, label="validation"
            )
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":", alpha=0.7)
        axes.set(xlim=(0, longest or 1), ylim=(0, 1.25), xlabel="samples seen", ylabel="loss ÷ chance")
        axes.xaxis.set_major_formatter(lambda value, _: words.si(value).replace(".00", ""))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=1 if len(terms) < 3 else 2, borderpad=0, borderaxespad=0.3)
        return svg(figure, title)


def quality_against_compute(rows: Sequence[Row], key: Key) -> str | None:
    """A score over training FLOPs; the dotted line is chance. None when no row has both."""
    from matplotlib.ticker import NullLocator

    scored = [(row, row.cost("train_flops"), row.value(key)) for row in rows]
    points = [(row, float(flops), value.value, value) for row, flops, value in scored if flops and value.value is not None]
    if not points:
        return None
    paradigms = list(dict.fromkeys(row.paradigm for row in rows))
    is_share = points[0][3].unit == "share"
    with panel(3.4, 2.5) as (figure, axes):
        for row, flops, score, value in points:
            place = paradigms.index(row.paradigm)
            color, marker = HUES[place % len(HUES)], MARKERS[place % len(MARKERS)]
            if value.low is not None and value.high is not None:
                axes.plot([flops, flops], [value.low, value.high], color=color, linewidth=1, alpha=0.6)
            axes.plot(flops, score, marker=marker, color=color, markersize=5, linestyle="")
        chance = control(list(rows), key, "chance").value
        if chance is not None:
            axes.axhline(chance, color=INK, linewidth=0.8, linestyle=":", alpha=0.7)
        axes.set_xscale("log")
        axes.set_xlim(min(point[1] for point in points) / 2, max(point[1] for point in points) * 2)
        axes.set_ylim(0, 1.03 if is_share else None)
        heights = spread([point[2] / axes.get_ylim()[1] for point in points], gap=0.075)
        for (row, flops, score, _), height in zip(points, heights, strict=True):
            color = HUES[paradigms.index(row.paradigm) % len(HUES)]
            axes.annotate(
                words.short(row.name),
                (flops, score),
                xytext=(1.03, height),
                textcoords="axes fraction",
                verticalalignment="center",
                color=color,
                parse_math=False,
                annotation_clip=False,
                arrowprops={
                    "arrowstyle": "-",
                    "relpos": (0, 0.5),
                    "color": color,
                    "alpha": 0.35,
                    "linewidth": 0.7,
                    "shrinkA": 1,
                    "shrinkB": 4,
                },
            )
        axes.set(xlabel="training compute", ylabel=words.short(key.metric))
        axes.xaxis.set_major_formatter(lambda value, _: words.si(value, "FLOP").replace(".00", ""))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(round_numbers(*axes.get_xlim()))
        return svg(figure, f"{key.task} {key.metric} on {key.split} against training compute")


def shift_gaps(row: Row, rows: Sequence[Row], pairs: Sequence[tuple[Key, list[Key]]]) -> str | None:
    """One model under distribution shift: per metric a filled dot in distribution, open marks for the shifts, a tick at chance."""
    lines = [(home, away) for home, away in pairs if row.value(home).value is not None and row.value(home).unit == "share"]
    if not lines:
        return None
    shifts = list(dict.fromkeys(key.split for _, away in pairs for key in away))
    with panel(3.4, 0.55 + 0.2 * len(lines)) as (figure, axes):
        for height, (home, away) in enumerate(reversed(lines)):
            chance = control(list(rows), home, "chance").value
            if chance is not None:
                axes.plot([chance, chance], [height - 0.35, height + 0.35], color=INK, linewidth=1, alpha=0.7)
            shares = {key.split: value for key in (home, *away) if (value := row.value(key).value) is not None}
            axes.plot([min(shares.values()), max(shares.values())], [height, height], color=INK, linewidth=0.8, alpha=0.25)
            axes.plot(shares[home.split], height, marker="o", color=HUES[0], markersize=5.5, linestyle="")
            for place, split in enumerate(shifts):
                if split in shares:
                    color, marker = HUES[(place + 1) % len(HUES)], "s^Dv"[place % 4]
                    axes.plot(shares[split], height, marker=marker, color=color, fillstyle="none", markersize=5, linestyle="")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.7, len(lines) - 0.3))
        axes.set_xticks((0, 0.25, 0.5, 0.75, 1), ("0", ".25", ".5", ".75", "1"))
        axes.set_yticks(range(len(lines)), [words.short(f"{home.task} {home.metric}") for home, _ in reversed(lines)], parse_math=False)
        axes.tick_params(axis="y", length=0)
        return svg(figure, f"{row.name}: in distribution and shifted")


def round_numbers(low: float, high: float) -> list[float]:
    """A few ticks for a logarithmic axis: whole decades, or 1, 2, 5 within them where decades are too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5) if low <= digit * 10.0**decade <= high]
    coarse = [10.0**decade for decade in decades if low <= 10.0**decade <= high]
    return fine if len(fine) <= 3 else coarse if 2 <= len(coarse) <= 4 else fine[:: math.ceil(len(fine) / 3)]


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The same heights in the same order, moved apart to at least `gap` and down from 1 where they would leave the axes."""
    moved = list(heights)
    ceiling = 1.0
    for index in sorted(range(len(moved)), key=lambda index: -moved[index]):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


@contextmanager
def panel(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure of `width` x `height` inches in the page's manner. matplotlib is imported here: only the page needs it."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "paragone",  # the same ids every time: the page is a function of the results
        "font.family": "sans-serif",
        "font.size": 8.5,
        "text.parse_math": False,  # a model named $x$ is not mathematics
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
    """The figure as an SVG element that scales with its container, its title for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = buffer.getvalue()
    head, body = text[text.index("<svg") :].split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)  # the view box alone: the page sets the size
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|font-family: [^;]*; ", "", body, flags=re.DOTALL)  # the page's font and rules
    text = f'{head} role="img"><title>{escape(title)}</title>{body}'.replace(INK, "currentColor")
    for index, hue in enumerate(HUES):
        text = text.replace(hue, f"var(--hue-{index})")
    return text
