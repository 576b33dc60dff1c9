"""The section of RESULTS.md on whether the embedded data rank models and claims as real pictures do, and its figure."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from scipy.stats import binomtest, spearmanr

from data.files import write_text
from eval.report import words
from recipes.tools.markdown import origins, table

Json = dict[str, Any]
HEAD = """
## Embedded and real data

The same recipes, with the same share of their budget, trained and evaluated on the embedded data and on real pictures (`make worlds
DATA=`), and Spearman's rank correlation: over pages, of their scores, and over claims, of the differences between two arms. It is 1 if both
data sets rank alike. Its 95 % interval, by Fisher's z with the variance of Fieller et al. (1957), reflects the choice of pages or claims
only, not the error of the scores. One seed; intervals of scores are 95 % bootstrap intervals over samples, those of differences paired.
"""
CLAIMS = """
Claims of these pages that captions suffice to test, with the same budget: first arm minus the other, positive where the claim holds.
Differences of one page often have an arm in common, so the intervals below are too narrow.
"""
FIGURE = "worlds.svg"
INK = "#6e7781"  # readable on white and on black
SIDES = ("embedded", "other")
FEWEST = 4  # with three, z has no variance


def worlds_section(records: Sequence[Json], folder: Path) -> list[str]:
    """The lines of the section; none without results. `folder` is that of the result files."""
    lines: list[str] = []
    for (dataset, preset, share, seed), alike in groupby(sorted(records, key=_kind), key=_kind):
        chosen = list(alike)
        names = measures(chosen)
        sides = [(name, side) for name in names for side in SIDES]
        heads = ("page", *(f"{name}: {chosen[0][side]['dataset']}" for name, side in sides))
        rows = [[record["page"], *(_cell(record[side]["values"].get(name)) for name, side in sides)] for record in chosen]
        lines += ["", f"### {dataset}", "", f"Preset {preset}, {share:g} of the budget, seed {seed}.", ""]
        lines += [*table(heads, "l" + "r" * len(sides), rows), ""]
        lines += [said(name, scores(chosen, name), "page") for name in names]
        lines += claims_part(chosen)
        lines += ["", *origins("Trained", ((record["page"], record) for record in chosen))]
    if lines and (folder / FIGURE).exists():
        lines = ["", f"![Scores of pages and differences of claims on the embedded and on real data]({folder.name}/{FIGURE})", *lines]
    return [HEAD, *lines[1:]] if lines else []


def claims_part(records: Sequence[Json]) -> list[str]:
    """The table of claims and what it amounts to; nothing without claims."""
    found = [(record["page"], each) for record in records for each in record.get("claims", ())]
    if not found:
        return []
    heads = ("page", "claim", "first arm", "other arm", "measure", *(records[0][side]["dataset"] for side in SIDES))
    rows = [
        [page, *(each[name] for name in ("claim", "first", "against", "measure")), *(_difference(each[side]) for side in SIDES)]
        for page, each in found
    ]
    lines = ["", CLAIMS.strip(), "", *table(heads, "lllllrr", rows), "", agreement([each for _, each in found])]
    return [*lines, *(said(name, effects(records, name), "difference") for name in measures(records) if effects(records, name))]


def agreement(differences: Sequence[Json]) -> str:
    """How often a difference has the same sign on both data sets, and how often where both intervals exclude 0."""
    clear = [each for each in differences if all(each[side]["low"] > 0 or each[side]["high"] < 0 for side in SIDES)]
    alike = [[each for each in some if each[SIDES[0]]["effect"] * each[SIDES[1]]["effect"] > 0] for some in (differences, clear)]
    interval = binomtest(len(alike[0]), len(differences)).proportion_ci(method="wilson")
    share = f"{words.share(interval.low)}{words.MISSING}{words.share(interval.high)}"
    among = f"{len(alike[1])} of the {len(clear)} whose intervals both exclude 0" if clear else "no two intervals exclude 0"
    return f"- the same sign on both: {len(alike[0])} of {words.count(len(differences), 'difference')} ({share}); {among}."


def measures(records: Sequence[Json]) -> list[str]:
    """Those that a page has on both data sets."""
    return list(dict.fromkeys(name for record in records for name in record["other"]["values"] if name in record["embedded"]["values"]))


def scores(records: Sequence[Json], name: str) -> list[tuple[float, float]]:
    """A measure of each page on the embedded and on the other data."""
    both = [tuple(record[side]["values"].get(name) for side in SIDES) for record in records]
    return [(one["value"], other["value"]) for one, other in both if one and other]


def effects(records: Sequence[Json], name: str) -> list[tuple[float, float]]:
    """The differences of claims in a measure, on the embedded and on the other data."""
    claims = [each for record in records for each in record.get("claims", ()) if each["measure"] == name]
    return [(each["embedded"]["effect"], each["other"]["effect"]) for each in claims]


def _kind(record: Json) -> tuple[str, str, float, int]:
    return record["other"]["dataset"], record["preset"], record["share"], record["seed"]


def said(name: str, pairs: Sequence[tuple[float, float]], what: str) -> str:
    """The rank correlation of a measure in a sentence; `what` the pairs are of."""
    number = words.count(len(pairs), what)
    if len(pairs) < FEWEST:
        return f"- {name}: {number}, too few for a correlation."
    low, rho, high = correlation(pairs)
    if math.isnan(rho):
        return f"- {name}: all {what}s are the same on one of the data sets, so there is no correlation."
    if abs(rho) > 1 - 1e-9:  # z is infinite
        order = f"the same order{' reversed' * (rho < 0)}, by chance in {1 / math.factorial(len(pairs)):.1%} of cases"
        return f"- {name}: rank correlation {rho:.2f} over {number}: {order}."
    return f"- {name}: rank correlation {rho:.2f} ({low:.2f} to {high:.2f}) over {number}."


def correlation(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """(low, Spearman's rank correlation, high) of at least four pairs. Fieller, Hartley and Pearson (1957): arctanh of it has the variance
    1.06 / (n - 3). NaN where one side is constant."""
    if any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return math.nan, math.nan, math.nan
    rho = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    z = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, rho)))
    half = 1.96 * math.sqrt(1.06 / (len(pairs) - 3))
    return math.tanh(z - half), rho, math.tanh(z + half)


def _cell(value: Json | None) -> str:
    if value is None:
        return "n/a"
    low, mean, high = (words.quantity(value[part], value["unit"]) for part in ("low", "value", "high"))
    return f"{mean} ({low}{words.MISSING}{high})"


def _difference(value: Json) -> str:
    low, mean, high = (words.difference(value[part], value["unit"]) for part in ("low", "effect", "high"))
    return f"{mean} ({low} to {high})"


def draw(records: Sequence[Json], path: Path) -> None:
    """Write the figure of the largest group of alike records: embedded data against the other, scores of pages above, differences of claims
    below, a column for each measure."""
    import matplotlib  # takes a second
    from matplotlib.figure import Figure

    records = max((list(alike) for _, alike in groupby(sorted(records, key=_kind), key=_kind)), key=len)
    names = measures(records)
    rows = [(scores, "score"), (effects, "difference, first arm ahead")]
    rows = [(points, about) for points, about in rows if any(points(records, name) for name in names)]
    inked = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    style: Any = {"svg.hashsalt": "paragone", "font.size": 8, **inked}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4 * len(names), 3.2 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), len(names), squeeze=False)
        for row, (points, about) in zip(panels, rows, strict=True):
            for axes, name in zip(row, names, strict=True):
                pairs = points(records, name)
                axes.scatter(*zip(*pairs, strict=True), s=14) if pairs else axes.set_visible(False)
                if points is scores:
                    labelled = [record for record in records if all(name in record[side]["values"] for side in SIDES)]
                    for record, pair in zip(labelled, pairs, strict=True):
                        axes.annotate(record["page"], pair, textcoords="offset points", xytext=(4, 3), fontsize=7)
                else:
                    axes.axhline(0, color=INK, linewidth=0.6)
                    axes.axvline(0, color=INK, linewidth=0.6)
                axes.set_title(f"{name}: {about}", fontsize=9)
                axes.set_xlabel(records[0]["embedded"]["dataset"])
                axes.set_ylabel(records[0]["other"]["dataset"])
                axes.spines[["top", "right"]].set_visible(False)
                axes.grid(alpha=0.2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    write_text(path, buffer.getvalue())
