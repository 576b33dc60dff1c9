"""The section of RESULTS.md on quality against compute, and its figure."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from data.files import write_text
from eval.report import words
from recipes.tools.markdown import origins, table

Json = dict[str, Any]
FRONTIER = """
## Quality against compute

Every page with an eighth, a quarter, a half and the whole of its budget (`make frontier`). FLOP are those of the whole training,
prerequisites included, which are trained whole: a page that builds on others cannot be cheaper than these. \N{BLACK DIAMOND}: on the
frontier, no run that is as cheap is as good. One seed; intervals are 95 % bootstrap intervals over test samples.
"""
EQUAL = 100e12  # FLOP of the table at equal compute
MARK = " \N{BLACK DIAMOND}"
FIGURE = "frontier.svg"
INK = "#6e7781"  # readable on white and on black


def frontier_section(pages: Sequence[Json], folder: Path) -> list[str]:
    """The lines of the section; none without results. `folder` is that of the result files."""
    if not pages:
        return []
    names = measures(pages)
    best = {name: on_frontier(pages, name) for name in names}
    rows = [
        [page["page"], f"{point['share']:g}", f"{point['flops'] / 1e12:,.3g}", *(_cell(page, point, name, best[name]) for name in names)]
        for page in sorted(pages, key=lambda page: str(page["page"]))
        for point in page["points"]
    ]
    lines = [FRONTIER]
    if (folder / FIGURE).exists():
        lines += [f"![Six measures against training compute, a line for each page]({folder.name}/{FIGURE})", ""]
    lines += table(("page", "budget", "TFLOP", *names), "lrr" + "r" * len(names), rows)
    equal = [[page["page"], *(_equal(page, name) for name in names)] for page in sorted(pages, key=lambda page: str(page["page"]))]
    about = f"At {EQUAL / 1e12:.0f} TFLOP, interpolated between the budgets (linear in the logarithm of compute); outside of them: none."
    lines += ["", about, "", *table(("page", *names), "l" + "r" * len(names), equal), ""]
    return [*lines, *origins("Trained", ((page["page"], page) for page in pages))]


def measures(pages: Sequence[Json]) -> list[str]:
    return list(dict.fromkeys(name for page in pages for point in page["points"] for name in point["values"]))


def on_frontier(pages: Sequence[Json], name: str) -> set[tuple[str, float]]:
    """(page, share) of the runs that are better than every run that costs as much or less."""
    points = [(page["page"], point) for page in pages for point in page["points"] if name in point["values"]]
    found = [(point["flops"], point["values"][name]["value"], page, point["share"]) for page, point in points]
    best, kept = -math.inf, set[tuple[str, float]]()
    for _, value, page, share in sorted(found, key=lambda each: (each[0], -each[1], each[2])):
        if value > best:
            best = value
            kept.add((page, share))
    return kept


def at(page: Json, name: str, flops: float) -> float | None:
    """A measure at a compute budget, interpolated between the runs; None outside of them."""
    known = sorted((point["flops"], point["values"][name]["value"]) for point in page["points"] if name in point["values"])
    for (low, before), (high, after) in pairwise(known):
        if low <= flops <= high:
            way = 0.0 if low == high else math.log(flops / low) / math.log(high / low)
            return float(before + way * (after - before))
    return None


def _cell(page: Json, point: Json, name: str, best: set[tuple[str, float]]) -> str:
    if name not in point["values"]:
        return "n/a"
    value = point["values"][name]
    low, mean, high = (words.quantity(value[part], value["unit"]) for part in ("low", "value", "high"))
    return f"{mean} ({low}{words.MISSING}{high})" + MARK * ((page["page"], point["share"]) in best)


def _equal(page: Json, name: str) -> str:
    units = {point["values"][name]["unit"] for point in page["points"] if name in point["values"]}
    return words.quantity(at(page, name, EQUAL), next(iter(units), "share"))


def draw(pages: Sequence[Json], path: Path) -> None:
    """Write the figure: a panel for each measure, a line for each page, on a logarithmic axis of compute."""
    import matplotlib  # takes a second
    from matplotlib.figure import Figure

    names = measures(pages)
    rows = math.ceil(len(names) / 3)
    inked = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    style: Any = {"svg.hashsalt": "paragone", "font.size": 8, **inked}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10, 3.1 * rows), layout="constrained")
        panels = figure.subplots(rows, 3, squeeze=False).ravel()
        lines: dict[str, Any] = {}
        for number, (axes, name) in enumerate(zip(panels, names, strict=False)):
            for page_number, page in enumerate(sorted(pages, key=lambda page: str(page["page"]))):
                points = [(point["flops"] / 1e12, point["values"][name]["value"]) for point in page["points"] if name in point["values"]]
                if points:
                    line: Any = {"color": f"C{page_number % 10}", "marker": "osD^vPX*<>"[page_number // 10 % 10], "markersize": 3.5}
                    (drawn,) = axes.plot(*zip(*points, strict=True), linewidth=1.2, **line)
                    lines.setdefault(page["page"], drawn)
            axes.set_xscale("log")
            axes.set_title(name, fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.2)
            axes.set_xlabel("training TFLOP, prerequisites included" if number + 3 >= len(names) else "")
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=8, frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    write_text(path, buffer.getvalue())
