"""The section of RESULTS.md on whether the embedded data rank models as real pictures do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from scipy.stats import spearmanr

from eval.report import words
from recipes.tools.markdown import origins, table

Json = dict[str, Any]
HEAD = """
## Embedded and real data

The same recipes, with the same share of their budget, trained and evaluated on the embedded data and on real pictures (`make worlds
DATA=`), and Spearman's rank correlation over pages. It is 1 if both data sets rank the pages alike. Its 95 % interval, by Fisher's z with
the variance of Fieller et al. (1957), reflects the choice of pages only, not the error of the scores. One seed; intervals of scores are
95 % bootstrap intervals over samples.
"""
FEWEST = 4  # pages: with three, z has no variance


def worlds_section(records: Sequence[Json]) -> list[str]:
    """The lines of the section; none without results."""
    lines: list[str] = []
    for (dataset, preset, share, seed), alike in groupby(sorted(records, key=_kind), key=_kind):
        chosen = list(alike)
        names = list(dict.fromkeys(name for record in chosen for name in record["other"]["values"] if name in record["embedded"]["values"]))
        sides = [(name, side) for name in names for side in ("embedded", "other")]
        heads = ("page", *(f"{name}: {chosen[0][side]['dataset']}" for name, side in sides))
        rows = [[record["page"], *(_cell(record[side]["values"].get(name)) for name, side in sides)] for record in chosen]
        lines += ["", f"### {dataset}", "", f"Preset {preset}, {share:g} of the budget, seed {seed}.", ""]
        lines += [*table(heads, "l" + "r" * len(sides), rows), "", *(said(name, chosen) for name in names), ""]
        lines += origins("Trained", ((record["page"], record) for record in chosen))
    return [HEAD, *lines[1:]] if lines else []


def _kind(record: Json) -> tuple[str, str, float, int]:
    return record["other"]["dataset"], record["preset"], record["share"], record["seed"]


def said(name: str, records: Sequence[Json]) -> str:
    """The rank correlation of a measure in a sentence."""
    pairs = [
        (record["embedded"]["values"][name]["value"], record["other"]["values"][name]["value"])
        for record in records
        if name in record["embedded"]["values"] and name in record["other"]["values"]
    ]
    if len(pairs) < FEWEST:
        return f"- {name}: {words.count(len(pairs), 'page')}, too few for a correlation."
    low, rho, high = correlation(pairs)
    if math.isnan(rho):
        return f"- {name}: all pages have the same score on one of the data sets, so there is no correlation."
    if abs(rho) > 1 - 1e-9:  # z is infinite
        order = f"the same order{' reversed' * (rho < 0)}, by chance in {1 / math.factorial(len(pairs)):.1%} of cases"
        return f"- {name}: rank correlation {rho:.2f} over {len(pairs)} pages: {order}."
    return f"- {name}: rank correlation {rho:.2f} ({low:.2f} to {high:.2f}) over {len(pairs)} pages."


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
