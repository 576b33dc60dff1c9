"""The figures of the report: training, quality against compute, robustness, hallucination."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from eval.report import words
from eval.report.plots import HUES, INK, MARKERS, label, panel, round_numbers, svg
from eval.report.results import Key, Run
from eval.report.rows import Row, Value, control

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_POINTS = 150  # per curve: more are invisible at this size and bloat the page


def training_curves(runs: Sequence[Run], title: str, longest: float) -> str | None:
    """Plot a model's loss terms over samples seen, each divided by its chance value, so that all panels share both axes.

    Terms without a chance value are dashed and divided by that of the total, or else by their first value. Circles are the validation
    loss, if the run has one. A loss without a lower bound (InfoLOOB) may be below 0. None without logged terms.
    """
    logs = [run.log for run in runs if run.log]
    chances = {name: value for log in logs for line in log for name, value in line.get("chance", {}).items() if value}
    terms = list(dict.fromkeys(term for log in logs for line in log for term in line.get("terms", {})))
    terms = [term for term in terms if term != "total" or term in chances] or terms  # without a chance value the total adds no information
    if not terms:
        return None
    of_total = chances.get("total") or (next(iter(chances.values())) if len(set(chances.values())) == 1 else None)
    lowest = 0.0
    with panel(3.4, 2.4) as (figure, axes):
        for index, term in enumerate(terms):
            for log in logs:
                points = [(line["samples"], line["terms"][term]) for line in log if term in line.get("terms", {})]
                unit = chances.get(term) or of_total or next((value for _, value in points if value), 1.0)
                thinned = points[:: -(-len(points) // CURVE_POINTS)] + points[-1:]
                lowest = min(lowest, *(value / unit for _, value in thinned))
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
            lowest = min(lowest, *(loss for _, loss in validation))
            axes.plot(
                *zip(*validation, strict=True), linestyle="", marker="o", fillstyle="none", markersize=3.5, color=INK, label="validation"
            )
        for start in stage_starts(logs[0]):
            axes.axvline(start, color=INK, linewidth=0.8, alpha=0.3)
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":", alpha=0.7)
        axes.set(xlim=(0, longest or 1), ylim=(1.1 * lowest, 1.25), xlabel="samples seen", ylabel="loss ÷ chance")
        axes.xaxis.set_major_formatter(lambda value, _: words.si(value).replace(".00", ""))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=1 if len(terms) < 3 else 2, borderpad=0, borderaxespad=0.3)
        return svg(figure, title)


def stage_starts(log: Sequence[dict[str, Any]]) -> list[float]:
    """Samples seen at the start of every stage after the first."""
    return [before["samples"] for before, after in pairwise(log) if before.get("stage") != after.get("stage")]


def quality_against_compute(rows: Sequence[Row], key: Key) -> str | None:
    """Plot a score over training FLOPs, with the Pareto front as a line and chance dotted. None if no row has both values."""
    from matplotlib.ticker import NullLocator

    scored = [(row, row.cost("train_flops"), row.value(key)) for row in rows]
    points = [(row, float(flops), value.value, value) for row, flops, value in scored if flops and value.value is not None]
    if not points:
        return None
    with panel(3.4, 2.5) as (figure, axes):
        for row, flops, score, value in points:
            colour, marker = look(row, rows)
            whisker(axes, flops, value, colour)
            axes.plot(flops, score, marker=marker, color=colour, markersize=5, linestyle="")
        chance = control(list(rows), key, "chance").value
        if chance is not None:
            axes.axhline(chance, color=INK, linewidth=0.8, linestyle=":", alpha=0.7)
        axes.set_xscale("log")
        axes.set_xlim(min(point[1] for point in points) / 2, max(point[1] for point in points) * 2)
        axes.set_ylim(0, 1.03 if points[0][3].unit == "share" else None)
        front = pareto_front([(flops, score) for _, flops, score, _ in points], lower=points[0][3].better == "lower")
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=INK, linewidth=1, alpha=0.45, drawstyle="steps-post", zorder=1)
        label(axes, [(flops, score, row.name, look(row, rows)[0]) for row, flops, score, _ in points])
        axes.set(xlabel="training compute", ylabel=words.short(key.metric))
        axes.xaxis.set_major_formatter(lambda value, _: words.si(value, "FLOP").replace(".00", ""))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(round_numbers(*axes.get_xlim()))
        return svg(figure, f"{key.task} {key.metric} on {key.split} against training compute")


def pareto_front(points: Sequence[tuple[float, float]], *, lower: bool = False) -> list[tuple[float, float]]:
    """The Pareto-optimal (cost, score) points, cheapest first. With `lower`, lower scores are better."""
    sign = -1 if lower else 1
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * score > sign * front[-1][1]:
            front.append((cost, score))
    return front


def robustness(rows: Sequence[Row], home: Key, away: Key) -> str | None:
    """Plot the score under a shift over the in-distribution score. On the diagonal the shift costs nothing; of two models with the same
    in-distribution score, the higher one is more robust ("effective robustness", Taori et al. 2020, arXiv 2007.00644). None if the
    metric is not a share."""
    valued = [(row, row.value(home), row.value(away)) for row in rows]
    points = [(row, x.value, y.value, y) for row, x, y in valued if x.value is not None and y.value is not None and x.unit == "share"]
    if not points:
        return None
    with panel(3.1, 2.3) as (figure, axes):
        axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, alpha=0.5)
        for split, line in ((home, axes.axvline), (away, axes.axhline)):
            chance = control(list(rows), split, "chance").value
            if chance is not None:
                line(chance, color=INK, linewidth=0.8, linestyle=":", alpha=0.5)
        for row, x, y, value in points:
            colour, marker = look(row, rows)
            whisker(axes, x, value, colour)
            axes.plot(x, y, marker=marker, color=colour, markersize=5, linestyle="")
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel=f"{home.metric}, {home.split}", ylabel=away.split)
        label(axes, [(x, y, row.name, look(row, rows)[0]) for row, x, y, _ in points])
        return svg(figure, f"{home.task} {home.metric}: {away.split} over {home.split}")


def look(row: Row, rows: Sequence[Row]) -> tuple[str, str]:
    """The colour and marker of the row's paradigm."""
    place = list(dict.fromkeys(other.paradigm for other in rows)).index(row.paradigm)
    return HUES[place % len(HUES)], MARKERS[place % len(MARKERS)]


def whisker(axes: Axes, x: float, value: Value, colour: str) -> None:
    if value.low is not None and value.high is not None:
        axes.plot([x, x], [value.low, value.high], color=colour, linewidth=1, alpha=0.6)
