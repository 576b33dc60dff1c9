"""Format results that were published before result files existed (recipes/results/earlier.json). A row is shown until a run of its page
is collected."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report import words
from eval.report.columns import COSTS
from eval.report.results import Key, is_below
from eval.report.rows import UNEXPLAINED, Value, below_chance
from recipes.tools.collect import Json
from recipes.tools.markdown import BELOW, column_name, origins, shown, table

OLDER = """
### Models, older code

Published earlier, on {dataset}; a row stays until a run of its page is collected. Intervals are over seeds if there are several, otherwise
bootstrap intervals over test samples; means of two seeds have no interval. A note marks values from a different training run than the rest
of the row. Chance and oracle depend only on the data; other controls are means over the models, or come from a single model for metrics
that only some rows have.
"""


def older_lines(rows: Sequence[Json], controls: Sequence[Json], notes: Json) -> list[str]:
    """A table of the metrics that all rows have, one of the other metrics, values below chance with reasons (from `notes`, by task), and
    a table of costs."""
    columns = older_keys(rows)
    common = [key for key in columns if all("/".join(key) in row["values"] for row in rows)]
    lines = [OLDER.format(dataset=rows[0]["dataset"]).strip("\n"), ""]
    for part in (common, [key for key in columns if key not in common]):
        having = [row for row in rows if any("/".join(key) in row["values"] for key in part)]
        cells = [
            [row["page"], str(row["seeds"]), *(older_cell(row, key) + BELOW * bool(older_below(row, key, controls)) for key in part)]
            for row in having
        ]
        cells += [[f"*{each['variant']}*", "", *(older_cell(each, key) for key in part)] for each in controls]
        lines += [*table(["", "seeds", *map(column_name, part)], "lr" + "r" * len(part), cells), ""] if part else []
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for key in columns:
            if found := older_below(row, key, controls):
                reasons.setdefault(row.get("notes", {}).get(key.task) or notes.get(key.task, UNEXPLAINED), []).append(found)
    lines += [f"- {BELOW} below chance: {' '.join(found)} {reason}" for reason, found in reasons.items()]
    costs = [cost for cost in COSTS if any(cost.field in row["cost"] for row in rows)]
    paid = [[row["page"], *(row["cost"].get(cost.field, words.MISSING) for cost in costs)] for row in rows]
    lines += [
        "",
        "Costs, prerequisites included:",
        "",
        *table(["", *(cost.label for cost in costs)], "l" + "r" * len(costs), paid),
        "",
    ]
    return [*lines, *origins("Trained and evaluated", ((row["page"], row) for row in rows)), ""]


def older_keys(rows: Sequence[Json]) -> list[Key]:
    """The keys of all values; earlier.json writes them as "task/split/metric"."""
    return [Key(*name.split("/", 2)) for name in dict.fromkeys(name for row in rows for name in row["values"])]


def older_cell(row: Json, key: Key, *, interval: bool = True) -> str:
    value = Value(**row["values"].get("/".join(key), {}))
    return ", ".join(filter(None, [shown(value, interval=interval), value.note]))


def older_below(row: Json, key: Key, controls: Sequence[Json]) -> str:
    """The sentence that a value is below chance; "" if it is not or has no interval."""
    name = "/".join(key)
    chance = next((each["values"].get(name, {}).get("value") for each in controls if each["variant"] == "chance"), None)
    value = Value(**row["values"].get(name, {}))
    if value.value is None or not is_below(value.low, value.high, chance, value.better):
        return ""
    return below_chance(row["page"], key, value, chance)
