"""Results in one place: `python -m recipes.tools.results` (= `make results`) writes recipes/RESULTS.md and the table in README.md, both
from the small files in recipes/results/ alone; `python -m recipes.tools.results collect` (collect.py) writes those from .runs.

The same files give the same bytes. Nothing here measures, and no number is typed: only what a file of recipes/results/ says is published.
results/earlier.json holds what was published before these files existed, each row until it is measured again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eval import EvalError
from eval.base import schemas
from eval.report import words
from eval.report.claims import claim_of
from eval.report.columns import COSTS
from eval.report.headline import headline
from eval.report.plain import cell
from eval.report.results import Key, Result, Run, number, read_json, refuse_unlike, result_of
from eval.report.rows import Row, below, control, control_variants, keys, place, to_rows
from eval.tasks import headlines
from recipes.tools.collect import SCHEMA, Json, collect
from recipes.tools.markdown import BELOW, code, column_name, origins, ratio, short, shown, table
from recipes.tools.older import older_cell, older_keys, older_lines

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
HEAD = """
# Results

Written by `make results` from the files in [results](results); edits are lost. A number that is not here is not published.

[Models](#models) · [Claims](#claims) · [Speed](#speed) · [Times](#times) · [What can be learned](#what-can-be-learned)
"""
MODELS = """
## Models

Test split, one row for each experiment. Of several seeds: the mean with its 95 % interval over seeds (Student t). Of one seed: the 95 %
bootstrap interval over test samples, which does not include seed-to-seed variance. A model that cannot do a task has n/a. Controls are
means over the models; *n* is the number of samples. Tasks and their papers: [eval/tasks](../eval/tasks). To repeat a row:
`make train-<page> eval-<page> SEED=<seed>`, then `make results ARGS=collect`.
"""
MEASURES = """
### Measures of single models

`python -m recipes.claims.measures.<measure> .runs/<run>`
"""
CLAIMS = """
## Claims

What papers say, tested here as controlled experiments whose arms differ in one thing (`make claims-<page>`). A verdict comes from the 95 %
interval of the paired difference, and speaks of this scale. Most arms are short trainings: read the differences, not the levels. With one
seed the interval is a bootstrap over test samples, which does not include seed-to-seed variance. *Older code*: published before, and not
tested again yet.
"""
SPEED = """
## Speed

Samples per second, ours over theirs: median and range of repetitions taken in turn in one process, with the same weights and shapes
(`make bench`). Above one ours is faster.
"""
TIMES = """
## Times

Training time in minutes, extrapolated from some steps of every stage (`make time-<page>`); in the second column together with the trainings
that it builds on. Only what was timed on one day can be compared closely.
"""
CALIBRATION = """
## What can be learned

A small detector, trained on the truth of the embedded data (`make calibrate`), answers every question by rule from what it finds: what it
gets right the pictures show. Without the picture: chance, and for questions the most frequent training answer.
"""
MARK = "\N{DAGGER}"  # of what comes from older code
CLAIM = ("page", "sentence", "paper", "ours", "seeds", "verdict")  # columns of the table of claims
SPEEDS = {  # how alike both sides of a comparison are -> its heading; what is like for like leads
    "fp32": "The same work on both sides, fp32",
    "bf16": "The same work on both sides, bf16",
    "": "As each comes: our defaults against theirs",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write recipes/RESULTS.md and the README's table", prog="recipes.tools.results")
    commands = parser.add_subparsers(dest="command")
    gather = commands.add_parser(
        "collect", help="write recipes/results/ from finished and evaluated runs, claims and benchmarks; then both"
    )
    gather.add_argument("names", nargs="*", metavar="RUN", help="only these runs; all runs, claims, benchmarks and times unless given")
    gather.add_argument("--runs", type=Path, default=Path(".runs"))
    gather.add_argument("--commit", default="", help="that runs come from which do not say it themselves")
    args = parser.parse_args()
    try:
        if args.command == "collect":
            print("\n".join(collect(args.runs, ROOT / "recipes" / "results", args.names, args.commit)))
        write(ROOT)
    except (EvalError, OSError) as error:
        sys.exit(f"error: {error}")


def write(root: Path) -> None:
    """Both files of the project in `root`. Raises EvalError where a result file cannot be used or README.md has no place for the table."""
    published = Published(root / "recipes" / "results")
    page, readme = root / "recipes" / "RESULTS.md", root / "README.md"
    with_table = between_markers(readme.read_text(encoding="utf-8"), readme_table(published), readme)
    page.write_text(results_page(published), encoding="utf-8")
    readme.write_text(with_table, encoding="utf-8")


def between_markers(text: str, block: str, path: Path) -> str:
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise EvalError(f"{path}: expected one line {BEGIN} and, below it, one line {END}; the table is written between them")
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n" + block + text[text.index(END) :]


# ------------------------------------------------------------------------------------------------- what is published


@dataclass(frozen=True)
class Collected(Run):
    """A run as its file tells of it; `folder` is that file."""

    record: Json

    @cached_property
    def recipe(self) -> Json:
        return dict(self.record["recipe"])

    @cached_property
    def cost(self) -> Json:
        return dict(self.record["cost"]) | {"hardware": self.record["hardware"]}


@dataclass(frozen=True)
class Published:
    """The files of recipes/results/, in an order that depends on their names alone."""

    folder: Path

    @cached_property
    def runs(self) -> list[Collected]:
        return [Collected(record["run"], path, record) for path, record in self._read("runs/*.json")]

    @cached_property
    def results(self) -> dict[str, list[Result]]:
        """Data set -> its results, the data set with most of them first."""
        found: dict[str, list[Result]] = {}
        for run in self.runs:
            about: Json = {name: run.record[name] for name in ("page", "model", "paradigm", "preset", "seed")} | {"stage": run.stage}
            for evaluation in run.record["evaluations"]:
                result = result_of({"schema": schemas.EVALUATION} | about | evaluation, run, run.folder)
                found.setdefault(result.dataset, []).append(result)
        refuse_unlike([result for results in found.values() for result in results])
        return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))

    @cached_property
    def older(self) -> list[Json]:
        """Rows of models that were trained with older code, each until a run of its page has been collected, with where they come from."""
        block = self._one("earlier").get("models", {})
        finished = [each for results in self.results.values() for each in results if not each.stage]
        again = {(each.page, each.preset, each.dataset, each.trained_on) for each in finished}
        about = {name: value for name, value in block.items() if name not in ("rows", "controls", "notes")}
        rows = [row for row in block.get("rows", ()) if (row["page"], block["preset"], block["dataset"], block["dataset"]) not in again]
        return [about | row for row in sorted(rows, key=lambda row: (*place(row["paradigm"]), row["page"]))]

    @cached_property
    def older_controls(self) -> list[Json]:
        """Of the older rows, to be shown as long as one of these is."""
        return list(self._one("earlier").get("models", {}).get("controls", ()))

    @cached_property
    def older_notes(self) -> dict[str, str]:
        """Task -> why a working model can be below chance in it."""
        return dict(self._one("earlier").get("models", {}).get("notes", {}))

    @cached_property
    def claims(self) -> list[Json]:
        """Every claim as a line of the table, an older outcome only where the claim has not been tested again."""
        older = {(row["page"], row["claim"]): row | about for about in self._one("earlier").get("claims", ()) for row in about["rows"]}
        tested = {}
        for path, record in self._read("claims/*.json"):
            claim = claim_of(record, path)
            line: Json = {"page": claim.page, "claim": claim.name, "sentence": claim.sentence, "paper": claim.paper, "ours": claim.result}
            line |= {"verdict": claim.verdict, "seeds": claim.seeds, "hardware": record["cost"]["hardware"]}
            tested[claim.page, claim.name] = line | {name: record[name] for name in ("date", "commit", "versions")}
        places = sorted(older | tested, key=lambda known: known[0])  # stable: claims of a page stay in the order of their files
        return [tested.get(known) or older[known] for known in places]

    @cached_property
    def speed(self) -> list[Json]:
        """Rows of benchmarks, each with what its block says of where it comes from."""
        return [
            row | {name: block[name] for name in block if name != "rows"}
            for block in self._one("bench").get("blocks", ())
            for row in block["rows"]
        ]

    @cached_property
    def times(self) -> Json:
        return dict(self._one("timing").get("runs", {}))

    @cached_property
    def calibration(self) -> Json:
        return self._one("calibrate")

    def _one(self, name: str) -> Json:
        return next((record for _, record in self._read(f"{name}.json")), {})

    def _read(self, pattern: str) -> Iterable[tuple[Path, Json]]:
        for path in sorted(self.folder.glob(pattern)):
            record = read_json(path)
            if record.get("schema") != SCHEMA:
                raise EvalError(
                    f"{path}: schema {record.get('schema')!r}, expected {SCHEMA}. Write it again: recipes.tools.results collect"
                )
            yield path, record


# ------------------------------------------------------------------------------------------------------ the page


def results_page(published: Published) -> str:
    sections = (models_section, claims_section, speed_section, times_section, calibration_section)
    return HEAD.lstrip() + "".join("\n".join(section(published)).rstrip("\n") + "\n" for section in sections)


def models_section(published: Published) -> list[str]:
    lines = [MODELS]
    for dataset, results in published.results.items():
        rows, columns = to_rows(results), keys(results)
        lines += [f"### {cell(dataset)}", "", *results_table(rows, columns)]
        reasons = [reason for row in rows for key in columns if (reason := below(rows, row, key))]
        lines += ["", *(f"- {BELOW} below chance: {cell(reason)}" for reason in reasons)] if reasons else []
        lines += ["", "What it cost, prerequisites included; means over seeds:", "", *costs_table(rows)]
        lines += ["", *origins("Trained", ((row, record_of(result)) for row in rows for result in row.results))]
        lines += [*origins("Evaluated", ((row, evaluation_of(result)) for row in rows for result in row.results)), ""]
    if not published.results:
        lines += ["No run has been collected yet.", ""]
    if published.older:
        lines += older_lines(published.older, published.older_controls, published.older_notes)
    if measured := [run for run in published.runs if run.record["measures"]]:
        lines += [MEASURES, *table(("run", "measure", "value"), "lll", [line for run in measured for line in measure_lines(run)])]
    return lines


def results_table(rows: Sequence[Row], columns: Sequence[Key]) -> list[str]:
    heads = ["", "seeds", *(column_name(key) for key in columns)]
    lines = [
        [row.name, str(len(row.results)), *(shown(row.value(key)) + BELOW * bool(below(rows, row, key)) for key in columns)] for row in rows
    ]
    for variant in control_variants([result for row in rows for result in row.results]):
        values = [control(list(rows), key, variant) for key in columns]
        lines.append([f"*{variant}*", "", *(words.quantity(value.value, value.unit) for value in values)])
    most = [max((value.n for row in rows if (value := row.value(key)).n), default=None) for key in columns]
    lines.append(["*n*", "", *(str(n) if n else words.MISSING for n in most)])
    return table(heads, "lr" + "r" * len(columns), lines)


def costs_table(rows: Sequence[Row]) -> list[str]:
    def seconds(row: Row) -> float:
        return sum(evaluation_of(result)["seconds"] for result in row.results) / len(row.results)

    lines = [[row.name, *(cost.show(row.cost(cost.field)) for cost in COSTS), words.duration(seconds(row))] for row in rows]
    return table(["", *(cost.label for cost in COSTS), "evaluation"], "l" + "r" * (len(COSTS) + 1), lines)


def evaluation_of(result: Result) -> Json:
    return next(each for each in record_of(result)["evaluations"] if each["dataset"] == result.dataset)


def record_of(result: Result) -> Json:
    assert isinstance(result.run, Collected)
    return result.run.record


def measure_lines(run: Collected) -> list[list[str]]:
    """Run, measure and its value, or its values by name."""
    lines = []
    for measure in run.record["measures"].values():
        for name, value in measure.items():
            several = value if isinstance(value, dict) else {"": value}
            lines.append([run.name, name, ", ".join(f"{part} {words.share(number(each))}".strip() for part, each in several.items())])
    return lines


def claims_section(published: Published) -> list[str]:
    heads = ("page", "claim", "paper", "here", "seeds", "verdict", "code")
    rows = [[*(str(claim[name]) for name in CLAIM), code(claim)] for claim in published.claims]
    return [CLAIMS, *table(heads, "llllrll", rows), "", *origins("Tested", ((claim["page"], claim) for claim in published.claims))]


def speed_section(published: Published) -> list[str]:
    lines = [SPEED]
    for alike, heading in SPEEDS.items():
        rows = [
            [row["what"], row["ours"], row["theirs"], ratio(row["times_faster"], row["low"], row["high"]), code(row)]
            for row in published.speed
            if row["alike"] == alike
        ]
        lines += [f"### {heading}", "", *table(("", "ours", "theirs", "times faster", "code"), "lllrl", rows), ""]
    return [*lines, *origins("Measured", ((row["what"], row) for row in published.speed))]


def times_section(published: Published) -> list[str]:
    rows = []
    for name, entry in published.times.items():
        minutes = [words.MISSING if entry[field] is None else f"{entry[field]:.1f}" for field in ("minutes", "together")]
        rows.append([name, *minutes, entry["date"], code(entry)])
    heads = ("run", "minutes", "with prerequisites", "date", "code")
    return [TIMES, *table(heads, "lrrll", rows), "", *origins("Timed", published.times.items())]


def calibration_section(published: Published) -> list[str]:
    rows = []
    for row in published.calibration.get("rows", ()):
        accuracy, low, high, chance = (words.share(row[name]) for name in ("accuracy", "low", "high", "chance"))
        rows.append([row["skill"], f"{accuracy} ({low}{words.MISSING}{high})", chance, str(row["n"])])
    heads = ("skill", "accuracy", "without the picture", "n")
    return [CALIBRATION, *table(heads, "lrrr", rows), "", *origins("Measured", [("", published.calibration)] if rows else [])]


# ----------------------------------------------------------------------------------------------------- the README


def readme_table(published: Published) -> str:
    """The first data set's results in few columns, without their intervals; older rows among them, marked."""
    if not published.results and not published.older:
        return "No run has been collected yet: see [recipes/RESULTS.md](recipes/RESULTS.md).\n"
    dataset, results = next(iter(published.results.items()), (published.older[0]["dataset"] if published.older else "", []))
    rows, older = to_rows(results), [row for row in published.older if row["dataset"] == dataset]
    columns = readme_columns(list(dict.fromkeys([*keys(results), *older_keys(older)])))
    flops = next(cost for cost in COSTS if cost.field == "train_flops")
    lines = []  # what they are sorted by, cells
    for row in rows:
        cells = [shown(row.value(key), interval=False) for key in columns]
        lines.append(((*place(row.paradigm), row.page), [row.name, str(len(row.results)), *cells, flops.show(row.cost(flops.field))]))
    for old in older:
        cells = [older_cell(old, key, interval=False) for key in columns]
        lines.append(
            ((*place(old["paradigm"]), old["page"]), [f"{old['page']} {MARK}", str(old["seeds"]), *cells, old["cost"][flops.field]])
        )
    lines.sort(key=lambda line: line[0])
    body = [cells for _, cells in lines]
    body += readme_controls(rows, published.older_controls if older else [], columns)
    about = [f"`{dataset}`, test split, means over seeds. Intervals, costs, commits, claims, speed: [RESULTS.md](recipes/RESULTS.md)."]
    if older:
        commits = ", ".join(dict.fromkeys(short(row["commit"]) for row in older))
        about.append(f"{MARK} trained with older code (commit {commits}) and not again yet.")
    heads = ["", "seeds", *map(column_name, columns), flops.label]
    return "\n".join([*table(heads, "lr" + "r" * len(columns) + "r", body), "", *about]) + "\n"


def readme_columns(known: list[Key]) -> list[Key]:
    """The first of each task's headline metrics, in the order of the tasks."""
    firsts = {key.task: key for key in reversed(headline(known))}
    return [firsts[task] for task in headlines() if task in firsts]


def readme_controls(rows: Sequence[Row], older: Sequence[Json], columns: Sequence[Key]) -> list[list[str]]:
    """Of the collected runs; where these have none, of the older ones, marked."""
    before = {each["variant"]: each for each in older}
    lines = []
    for variant in dict.fromkeys([*control_variants([result for row in rows for result in row.results]), *before]):
        values = [control(list(rows), key, variant) for key in columns]
        fresh = any(value.value is not None for value in values)
        name, mark = (f"*{variant}*", f" {MARK}") if fresh else (f"*{variant}* {MARK}", "")
        cells = []
        for key, value in zip(columns, values, strict=True):
            old = older_cell(before[variant], key, interval=False) if variant in before else words.MISSING
            use_old = value.value is None and old != words.MISSING
            cells.append(old + mark if use_old else words.quantity(value.value, value.unit))
        lines.append([name, "", *cells, ""])
    return lines


if __name__ == "__main__":
    main()
