"""Speed against the reference libraries, as ratios: `python -m recipes.bench` (= `make bench`).

Both sides run in this process, in turn, on the same hardware at the same time: other load hits both. Each ratio is the
median over repetitions of theirs / ours within one repetition, with its range, and beside it what bounds ours. Each file of this folder
says what it compares.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from rich.table import Table

from data.fields import require
from data.files import write_json
from data.shards import DataError, find
from eval.base.console import plain_console
from eval.base.provenance import provenance
from models.shared.device import hardware
from recipes.bench.ratios import QUICK, Bench, Row, Setting
from recipes.tools.markdown import bounded
from recipes.train.distributed import Process


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed against open_clip and transformers, as ratios")
    parser.add_argument("--data", default=".data/scenes-tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--workers", type=int, default=2, help="of the streaming loaders, theirs and ours")
    parser.add_argument("--quick", action="store_true", help="small shapes and few repetitions: seconds, rough figures")
    parser.add_argument("--only", help="some of the benchmarks, separated by commas")
    parser.add_argument("--out", type=Path, default=Path(".runs/bench.json"))
    args = parser.parse_args()
    setting = QUICK if args.quick else Setting()
    try:
        require(args.repeats is None or args.repeats >= 1, "--repeats", args.repeats, "1 or more")
        require(args.workers >= 0, "--workers", args.workers, "0 or more")
        setting = replace(setting, repeats=args.repeats or setting.repeats)
        split, process, benches = find(args.data, "train"), Process.find(args.device), found()
    except (DataError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    chosen = args.only.split(",") if args.only else list(benches)
    if unknown := [name for name in chosen if name not in benches]:
        sys.exit(f"error: --only {unknown[0]}: no such benchmark; there are {', '.join(benches)}")
    rows = [row for name in chosen for row in benches[name](Bench(setting, split, process, args.workers))]
    _print(rows, process)
    about = {"hardware": hardware(process.device), "setting": asdict(setting), "repeats": setting.repeats, "data": split.name}
    known = provenance()
    known["versions"] |= {"webdataset": version("webdataset")}
    write_json(args.out, about | known | {"rows": [asdict(row) for row in rows]})


def found() -> dict[str, Callable[[Bench], list[Row]]]:
    """Name -> benchmark, of every file of this folder that lists `BENCHES`."""
    names = [each.name for each in pkgutil.iter_modules([str(Path(__file__).parent)]) if each.name != "__main__"]
    modules = [importlib.import_module(f"recipes.bench.{name}") for name in names]
    return {name: bench for module in modules for name, bench in getattr(module, "BENCHES", {}).items()}


def _print(rows: list[Row], process: Process) -> None:
    table = Table(title=f"samples/s, median of {len(rows[0].ratios)} interleaved repetitions, {hardware(process.device)}")
    table.caption = "\n".join(f"{row.what}: {row.shapes}" for row in {row.what: row for row in rows}.values())
    for column in ("", "ours", "samples/s", "theirs", "samples/s", "times faster (range)", "bound by (share of its time)"):
        table.add_column(column)
    for row in rows:
        mine, other = (f"{statistics.median(rates):,.0f}" for rates in (row.our_rates, row.their_rates))
        ratio = f"{statistics.median(row.ratios):.2f} ({min(row.ratios):.2f} - {max(row.ratios):.2f})"
        table.add_row(row.what, row.ours, mine, row.theirs, other, ratio, bounded(row.bound))
    plain_console().print(table)


if __name__ == "__main__":
    main()
