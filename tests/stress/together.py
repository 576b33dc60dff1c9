"""Two of everything in one place at one time: they leave what one of them leaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from PIL import Image

from data.importers.table import import_table
from data.scenes.build import make_sample, write_splits
from data.scenes.pages import page_sample
from data.scenes.pool import polluted_sample
from data.scenes.several import several_sample
from data.shards import find
from tests.recipes.test_train import same_weights
from tests.stress.child import start
from tests.stress.ground import Found, Ground, evaluate, report, reported, train_page, unlike

FEW = {"train": 9, "val": 4}  # samples of a split
SETS = {"scenes": make_sample, "pages": page_sample, "pool": polluted_sample, "several": several_sample}


def two_at_once(ground: Ground) -> Found:
    whole, evaluated, runs, table = (
        ground.trained("clip")[0],
        ground.evaluated(),
        ground.compared("clip", "coca"),
        _table(ground.place("table")),
    )
    alone = reported(runs, ground.place("report-alone"))
    whole_sets: dict[str, dict[str, bytes]] = {}
    for number in count():
        out = ground.place("imported-twice")
        attack = partial(import_table, table=table, out=out, split="train")
        fault = _both(attack, attack, "already there|meanwhile")
        yield f"imports {number}", fault or ("" if find(out, "train").samples == 30 else "not one import")

        out = ground.place("trained-twice")
        attack = partial(train_page, ground, "clip", out)
        yield f"trainings {number}", _both(attack, attack) or ("" if same_weights(whole, out) else "other weights than of one training")

        out = ground.place("evaluated-twice")
        attack = partial(evaluate, out)
        yield f"evaluations {number}", _both(attack, attack) or unlike(evaluated, out)

        out = ground.place("report-twice")
        attack = partial(report, runs, out)
        yield f"reports {number}", _both(attack, attack) or ("" if _files(out) == alone else "another report than of one command")

        name = list(SETS)[number % len(SETS)]
        write = partial(write_splits, name=name, preset_name="tiny", make=SETS[name], workers=1, samples=FEW)
        if name not in whole_sets:
            write(out=ground.place("set-alone"))
            whole_sets[name] = _files(ground.room / "set-alone")
        out, damaged = ground.place("set-twice"), ground.chance.choice([None, *whole_sets[name]])
        for path, content in whole_sets[name].items() if damaged else ():  # a file is short, the others are there
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(content[: len(content) // 2] if path == damaged else content)
        attack = partial(write, out=out)
        same = _both(attack, attack) or ("" if _files(out) == whole_sets[name] else "another data set than of one")
        yield f"data sets {number}, {name}", same


def _both(one: Callable[[], object], other: Callable[[], object], refusal: str = "(?!)") -> str:
    """What is wrong with their ends. One of the two may refuse in the words `refusal`."""
    outcomes = [child.outcome() for child in [start(one, 300), start(other, 300)]]
    if not any(outcome.kind == "done" for outcome in outcomes):
        return f"none of the two is done: {outcomes[0].said}"
    return "; ".join(outcome.said for outcome in outcomes if outcome.kind != "done" and not re.search(refusal, outcome.said))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _table(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(30):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / f"{number}.png")
    table = folder / "table.csv"
    table.write_text("path,caption\n" + "".join(f"{number}.png,picture {number}\n" for number in range(30)))
    return table
