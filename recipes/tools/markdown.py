"""Format Markdown tables and provenance lines for RESULTS.md and README.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval.report import words
from eval.report.columns import spoken
from eval.report.plain import cell
from eval.report.results import Key
from eval.report.rows import Row, Value
from recipes.tools.collect import Json

BELOW = "\N{DOWNWARDS ARROW}"


def shown(value: Value, *, interval: bool = True) -> str:
    text = words.quantity(value.value, value.unit) if value.value is not None else value.status or words.MISSING
    if not interval or value.low is None or value.high is None:
        return text
    return f"{text} ({words.quantity(value.low, value.unit)}{words.MISSING}{words.quantity(value.high, value.unit)})"


def column_name(key: Key) -> str:
    return f"{key.task}: {spoken(key.metric)}" + ("" if key.split == "test" else f", {key.split}")


def table(heads: Sequence[str], align: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; `align` has an l or r for each column."""
    rule = "".join("|---" if side == "l" else "|---:" for side in align)
    return ["| " + " | ".join(map(cell, heads)) + " |", rule + "|", *("| " + " | ".join(map(cell, row)) + " |" for row in rows)]


def ratio(value: float, low: float, high: float) -> str:
    return f"{value:.2f} ({low:.2f}{words.MISSING}{high:.2f})"


def code(record: Json) -> str:
    """The commit of a record, for a table cell."""
    return short(record["commit"]) + (f", {record['mark']}" if record.get("mark") else "")


def short(commit: str) -> str:
    """Abbreviated commit hash, such as 1477950; several hashes are joined."""
    return ", ".join(dict.fromkeys(each[:7] + " with changes" * each.endswith("-dirty") for each in commit.split(", ")))


def origins(what: str, records: Iterable[tuple[Any, Json]]) -> list[str]:
    """One line per combination of commit, hardware and library versions, with its records and dates."""
    groups: dict[tuple[str, str, str], tuple[list[str], list[str]]] = {}
    for named, record in records:
        versions = ", ".join(f"{library} {version}" for library, version in record["versions"].items())
        names, days = groups.setdefault((short(record["commit"]), record["hardware"], versions), ([], []))
        names.append(named.name if isinstance(named, Row) else str(named))
        days.append(record["date"])
    lines = []
    for (commit, hardware, versions), (names, days) in groups.items():
        which = ", ".join(filter(None, dict.fromkeys(names))) if len(groups) > 1 else ""
        when = min(days) if min(days) == max(days) else f"{min(days)} to {max(days)}"
        lines.append(f"{what}{f' ({cell(which)})' if which else ''}: commit {commit}, {when}, {cell(hardware)}; {cell(versions)}.  ")
    return lines


def bounded(shares: Mapping[str, float]) -> str:
    """The largest of the shares that recipes/bench/ratios.py `bound` returns, in words."""
    names = {"products": f"matrix products, at {shares['peak']:.0%} of their peak", "memory": "memory", "python": "Python"}
    largest = max(names, key=lambda name: shares[name])
    return f"{names[largest]} ({shares[largest]:.0%})"
