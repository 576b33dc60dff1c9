"""The content of the report, independent of its layout: tables and comparisons per data set, claims, and runs that are missing."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.report import words
from eval.report.claims import Claim, read_claims
from eval.report.columns import attribute_columns, overview_columns, task_columns, use_columns
from eval.report.headline import headline
from eval.report.paired import Proofs, differences
from eval.report.pictures import Gallery, Picture, abilities, gallery, pictures
from eval.report.results import Key, Result, Run, refuse_unlike, usable
from eval.report.rows import Row, keys, to_rows
from eval.report.tables import Footnotes, Table, TableMaker


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetReport:
    name: str
    rows: list[Row]
    keys: list[Key]
    headline: list[Key]
    overview: Table
    image_use: Table
    attributes: Table
    tasks: list[Table]
    proofs: Proofs
    footnotes: Footnotes

    @property
    def anchor(self) -> str:
        return "data-" + re.sub(r"[^a-zA-Z0-9]+", "-", self.name)

    @property
    def results(self) -> list[Result]:
        return [result for row in self.rows for result in row.results]

    @property
    def hashes(self) -> dict[str, str]:
        """Split -> the data hash shared by all runs, or a remark that there is none."""
        splits = dict.fromkeys(split for result in self.results for split in result.data_hashes)
        found = {split: next((h for result in self.results if (h := result.data_hashes.get(split))), None) for split in splits}
        return {split: known[:12] if known else "not indexed, so unverified" for split, known in found.items()}

    @property
    def decided(self) -> list[Key]:
        """Headline metrics on which at least one model is significantly better than another."""
        return [key for key in self.headline if any(pair.proven for pair in self.proofs.get(key, {}).values())]

    @property
    def undecided(self) -> list[Key]:
        return [key for key in self.headline if key in self.proofs and key not in self.decided]

    @property
    def shifts(self) -> list[tuple[Key, list[Key]]]:
        """Each headline metric, with the keys of the same metric on other splits."""
        away = {
            key: [other for other in self.keys if other != key and (other.task, other.metric) == (key.task, key.metric)]
            for key in self.headline
        }
        return [(key, others) for key, others in away.items() if others]

    @cached_property
    def pictures(self) -> list[Picture]:
        return pictures(self.rows)

    @property
    def abilities(self) -> list[str]:
        return abilities(self.pictures)


@dataclass(frozen=True, kw_only=True)
class Report:
    datasets: list[DatasetReport]
    claims: list[Claim]
    runs: list[Run]  # runs with results
    built_on: dict[str, dict[str, str]]  # page -> role -> page of the prerequisite
    untrained: list[str]
    unevaluated: list[str]  # pages that are trained but have no results
    stale: list[str]  # results that are not of the model in the run folder: why, and what evaluates it again
    faults: list[str]  # files that could not be used: a sentence about each

    @cached_property
    def gallery(self) -> Gallery:
        return gallery([(dataset.name, dataset.rows, dataset.pictures) for dataset in self.datasets])

    @property
    def commands(self) -> list[str]:
        """The commands that regenerate the report: for each run its training, then its evaluations."""
        judged: dict[str, list[tuple[Row, Result]]] = {}
        for row in (row for dataset in self.datasets for row in dataset.rows):
            for result in row.results:
                judged.setdefault(result.run.name, []).append((row, result))
        lines = []
        for pairs in judged.values():
            row, result = pairs[0]
            if result.published:
                lines += [judgement.command for _, judgement in pairs]
                continue
            data, out = result.run.recipe.get("data"), result.run.home
            changed = {name: value for other, _ in pairs for name, value in other.varying.items()}
            options = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in changed.items()}
            arguments = " ".join(f"--{name} {value}" for name, value in options.items())
            lines.append(words.make(f"train-{row.page}", PRESET=row.preset, SEED=result.seed, DATA=data, OUT=out, ARGS=arguments))
            lines += [judgement.command for _, judgement in pairs]
        return list(dict.fromkeys([*lines, "make compare"]))


def build(runs: list[Run], pages: Sequence[str] = (), only: str | None = None, claims: Path | None = None) -> Report:
    """Build the report from the results of `runs`, without those that are broken. Raises EvalError if they are not comparable.

    Pages in `pages` without a trained or evaluated run are reported as missing. `only` restricts the report to one data set. `claims` is
    the folder with the results of claims.
    """
    runs, everything, faults = usable(runs)
    results = [result for result in everything if only in (None, result.dataset)]
    refuse_unlike(results)
    at_home = sorted(results, key=lambda result: result.dataset != result.trained_on)  # data sets that models were trained on come first
    names = list(dict.fromkeys(result.dataset for result in at_home))
    names.sort(key=lambda name: -sum(result.dataset == name for result in results))  # stable: most runs first
    datasets = [build_dataset(name, results) for name in names]
    evaluated = {result.page for result in everything}
    trained = {run.page for run in runs if run.cost}
    tested, broken = read_claims(claims, pages) if claims else ([], [])
    shown = list({result.run.name: result.run for result in results}.values())
    for run in shown:
        _ = run.log, run.validation  # reads them, so that `faults` is complete
    for dataset in datasets:
        _ = dataset.pictures
    return Report(
        datasets=datasets,
        claims=tested,
        runs=shown,
        stale=[f"{result.run.name} on {result.dataset}: {result.stale} ({result.command})" for result in results if result.stale],
        faults=[words.plain(fault) for fault in dict.fromkeys([*faults, *(fault for run in shown for fault in run.faults), *broken])],
        built_on=built_on(runs, {result.page for result in results}),
        untrained=[page for page in pages if page not in evaluated | trained],
        unevaluated=[page for page in pages if page in trained - evaluated],
    )


def built_on(runs: Sequence[Run], shown: Collection[str]) -> dict[str, dict[str, str]]:
    """Page -> role -> prerequisite page, for the shown pages and their prerequisites, as recorded in the runs' cost.json."""
    pages = {run.name: run.page for run in runs}
    found: dict[str, dict[str, str]] = {}

    def walk(page: str, cost: dict[str, Any]) -> None:
        for role, part in (cost.get("prerequisites") or {}).items():
            name = str(part.get("run", role))
            other = pages.get(name) or name.split("-")[0]  # the run may be missing here, but its name starts with the page
            found.setdefault(page, {})[str(role)] = other
            walk(other, part)

    for run in runs:
        if run.page in shown and not run.stage:
            walk(run.page, run.cost)
    return dict(sorted(found.items()))


def build_dataset(name: str, results: list[Result]) -> DatasetReport:
    here = [result for result in results if result.dataset == name]
    rows, all_keys = to_rows(here), keys(here)
    homes = {key.task: key.split for key in reversed(all_keys)}  # first split of each task; testing the shifts too would double the time
    proofs, footnotes = differences(rows, [key for key in all_keys if key.split == homes[key.task]]), Footnotes()
    table = TableMaker(rows, proofs, footnotes)
    return DatasetReport(
        name=name,
        rows=rows,
        keys=all_keys,
        headline=headline(all_keys),
        overview=table("Overview", overview_columns(all_keys, rows), overview=True),
        image_use=table("Image use", use_columns(all_keys, rows), controls=False),
        attributes=table("By attribute", attribute_columns(all_keys, rows), controls=False),
        tasks=[table(task, task_columns(task, all_keys, rows)) for task in dict.fromkeys(key.task for key in all_keys)],
        proofs=proofs,
        footnotes=footnotes,
    )
