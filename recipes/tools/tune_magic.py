"""Tune MAGIC's alpha and beta on the val split: `python -m recipes.tools.tune_magic .runs/magic-tiny-s0` (= `make tune-magic`).

Captions are generated with every pair of weights. The table is printed and written to tune.json in the run folder, with the best pair by
object F1; the presets use that pair. CLIPScore does not decide, because it is usually computed with the same CLIP that guides MAGIC; object
F1 is computed from the ground truth.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

from rich.table import Table

import models
from data.fields import require
from data.files import read_json, write_json
from data.shards import DataError
from eval import EvalError
from eval.base.console import plain_console
from eval.base.metrics import estimate
from models.magic import Search
from models.shared.device import hardware, resolve_device
from recipes.claims.claim import ClaimError
from recipes.claims.measures.magic import What, judge_of, pictures, scores, write

COLUMNS: tuple[What, ...] = ("object F1", "CLIPScore", "repeated words")
Row = dict[str, Any]


def sweep(folder: Path, data: str, weights: list[Search], *, most: int, device: str) -> list[Row]:
    """One row per search configuration: its weights, three metrics with intervals, seconds, and a sample caption."""
    model: Any = models.load(folder, device)
    samples, judge = pictures(data, "val", most), judge_of(folder, device)
    rows = []
    for how in weights:
        started = time.perf_counter()
        captions = write(model, samples, how)
        row: Row = asdict(how) | {"seconds": time.perf_counter() - started, "caption": captions[0]}
        for what in COLUMNS:
            found = estimate(*map(list, zip(*scores(what, captions, samples, judge), strict=True)))
            row[what] = {"value": found.value, "low": found.low, "high": found.high}
        rows.append(row)
        print(f"k {how.k}, alpha {how.alpha:g}, beta {how.beta:g}: {row['object F1']['value']:.3f}", file=sys.stderr, flush=True)
    return rows


def show(rows: list[Row], title: str) -> None:
    best = max(rows, key=lambda row: row["object F1"]["value"])
    table = Table("k", "alpha", "beta", *COLUMNS, "seconds", title=title)
    for row in rows:
        numbers = [f"{row[what]['value']:.3f} ({row[what]['low']:.3f} - {row[what]['high']:.3f})" for what in COLUMNS]
        style = "bold" if row is best else None
        table.add_row(str(row["k"]), f"{row['alpha']:g}", f"{row['beta']:g}", *numbers, f"{row['seconds']:.0f}", style=style)
    console = plain_console()
    console.print(table)
    console.print(f"best: k {best['k']}, alpha {best['alpha']:g}, beta {best['beta']:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tune MAGIC's alpha and beta on the val split", prog="recipes.tools.tune_magic")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default=".data/scenes-tiny")
    parser.add_argument("--k", type=_numbers, default=[], help="default: that of the run")
    parser.add_argument("--alpha", type=_numbers, default=[0.0, 0.1, 0.3])
    parser.add_argument("--beta", type=_numbers, default=[0.0, 0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--most", type=int, default=300, help="maximum number of images")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    try:
        device = resolve_device(args.device)
        require(args.most >= 1, "--most", args.most, "1 or more images")
        require(all(k >= 1 and k == int(k) for k in args.k), "--k", args.k, "whole numbers from 1 up")
        require(all(0 <= weight < inf for weight in (*args.alpha, *args.beta)), "--alpha and --beta", (args.alpha, args.beta), "0 or more")
        own: Search = models.from_dict(Search, read_json(args.run / "model.json")["config"]["search"])
        sizes = [int(k) for k in args.k] or [own.k]
        weights = [replace(own, k=k, alpha=alpha, beta=beta) for k in sizes for alpha in args.alpha for beta in args.beta]
        rows = sweep(args.run, args.data, weights, most=args.most, device=str(device))
    except (ClaimError, DataError, EvalError, KeyError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    show(rows, f"{args.most} images of {args.data}/val, {args.run}")
    write_json(args.run / "tune.json", {"data": args.data, "pictures": args.most, "hardware": hardware(device), "rows": rows})


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
