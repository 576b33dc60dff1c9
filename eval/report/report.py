"""The report as data: what is compared on which data set, what could be proven, what is still missing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eval.report import words
from eval.report.paired import Difference, differences
from eval.report.results import Key, Result, Run, read_results, refuse_unlike
from eval.report.rows import Row, headline, keys, to_rows
from eval.report.tables import Footnotes, Table, make_table


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    name: str
    rows: list[Row]
    keys: list[Key]
    headline: list[Key]
    overview: Table
    tasks: list[Table]
    proofs: dict[Key, dict[tuple[int, int], Difference]]
    footnotes: Footnotes

    @property
    def anchor(self) -> str:
        return "data-" + re.sub(r"[^a-zA-Z0-9]+", "-", self.name)

    @property
    def results(self) -> list[Result]:
        return [result for row in self.rows for result in row.results]

    @property
    def hashes(self) -> dict[str, str]:
        """Split -> the data hash all runs agree on, or why there is none."""
        splits = dict.fromkeys(split for result in self.results for split in result.data_hashes)
        found = {split: next((h for result in self.results if (h := result.data_hashes.get(split))), None) for split in splits}
        return {split: known[:12] if known else "not indexed, so unverified" for split, known in found.items()}

    @property
    def decided(self) -> list[Key]:
        """Headline metrics on which at least one model is proven better than another."""
        return [key for key in self.headline if any(pair.proven for pair in self.proofs.get(key, {}).values())]

    @property
    def undecided(self) -> list[Key]:
        return [key for key in self.headline if key in self.proofs and key not in self.decided]

    @property
    def shifts(self) -> list[tuple[Key, list[Key]]]:
        """Each headline metric with the same metric on other splits."""
        away = {
            key: [other for other in self.keys if other != key and (other.task, other.metric) == (key.task, key.metric)]
            for key in self.headline
        }
        return [(key, others) for key, others in away.items() if others]

    @property
    def shift_names(self) -> list[str]:
        return list(dict.fromkeys(key.split for _, away in self.shifts for key in away))

    @property
    def pictures(self) -> list[Picture]:
        return pictures(self.rows)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What one model ranks first for a picture, best first."""

    model: str
    texts: list[tuple[str, bool | None, float | None]]  # text, whether it is true of the picture, score
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    key: str
    split: str
    image: str  # a data: URI
    truth: list[str]
    rankings: list[Ranking]

    @property
    def agree(self) -> bool:
        """Whether all models put the same text first."""
        return len({ranking.texts[0][0] if ranking.texts else ranking.caption for ranking in self.rankings}) == 1


@dataclass(frozen=True, kw_only=True)
class Report:
    datasets: list[DatasetReport]
    runs: list[Run]  # those with results
    models: tuple[str, ...]
    untrained: list[str]
    unevaluated: list[str]  # trained, no result yet

    @property
    def commands(self) -> list[str]:
        """What regenerates the report: per run its training, then its evaluations."""
        judged: dict[str, list[tuple[Row, Result]]] = {}
        for row in (row for dataset in self.datasets for row in dataset.rows):
            for result in row.results:
                judged.setdefault(result.run.name, []).append((row, result))
        lines = []
        for pairs in judged.values():
            row, result = pairs[0]
            data, out = result.run.recipe.get("data"), result.run.folder
            changed = {name: value for other, _ in pairs for name, value in other.varying.items()}
            options = {name: " ".join(map(str, value)) if isinstance(value, list) else value for name, value in changed.items()}
            arguments = " ".join(f"--{name} {value}" for name, value in options.items())
            lines.append(words.make(f"train-{row.model}", PRESET=row.preset, SEED=result.seed, DATA=data, OUT=out, ARGS=arguments))
            lines += [judgement.command for _, judgement in pairs]
        return [*lines, "make compare"]


def build(runs: list[Run], models: tuple[str, ...], only: str | None = None) -> Report:
    """Read everything and refuse what is not comparable (EvalError). `only` names one data set."""
    everything = read_results(runs)
    results = [result for result in everything if only in (None, result.dataset)]
    refuse_unlike(results)
    at_home = sorted(results, key=lambda result: result.dataset != result.trained_on)  # the data sets that models were trained on first
    names = list(dict.fromkeys(result.dataset for result in at_home))
    names.sort(key=lambda name: -sum(result.dataset == name for result in results))  # stable: most runs first
    datasets = [build_dataset(name, results, models) for name in names]
    evaluated = {result.model for result in everything}
    trained = {str(run.recipe.get("name")) for run in runs if run.cost}
    return Report(
        datasets=datasets,
        runs=list({result.run.name: result.run for result in results}.values()),
        models=models,
        untrained=[model for model in models if model not in evaluated | trained],
        unevaluated=[model for model in models if model in trained - evaluated],
    )


def build_dataset(name: str, results: list[Result], models: tuple[str, ...]) -> DatasetReport:
    here = [result for result in results if result.dataset == name]
    rows, all_keys = to_rows(here, models), keys(here)
    proofs = differences(rows, all_keys)
    footnotes = Footnotes()
    return DatasetReport(
        name=name,
        rows=rows,
        keys=all_keys,
        headline=headline(all_keys),
        overview=make_table("Overview", rows, headline(all_keys), proofs, footnotes, overview=True),
        tasks=[
            make_table(task, rows, [key for key in all_keys if key.task == task], proofs, footnotes)
            for task in dict.fromkeys(key.task for key in all_keys)
        ],
        proofs=proofs,
        footnotes=footnotes,
    )


def pictures(rows: list[Row]) -> list[Picture]:
    """The showcase pictures, each with every row's ranking (its first seed's). Images that are no embedded raster are left out."""
    found: dict[str, Picture] = {}
    for row in rows:
        showcase = row.results[0].showcase
        for item in showcase.get("items", []):
            image = str(item.get("image", ""))
            if not re.fullmatch(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/=]+", image):
                continue
            picture = found.setdefault(
                str(item["key"]),
                Picture(
                    key=str(item["key"]),
                    split=str(showcase.get("split", "")),
                    image=image,
                    truth=[str(text) for text in item.get("captions", [])],
                    rankings=[],
                ),
            )
            texts = [(str(entry["text"]), entry.get("correct"), entry.get("score")) for entry in item.get("ranked", [])]
            picture.rankings.append(Ranking(model=row.name, texts=texts, caption=str(item.get("caption") or "")))
    return list(found.values())
