"""Command line of the claims: `python -m recipes.claims siglip [--seeds 0,1,2] [--only NAME]` (= `make claims-siglip`)."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from data.fields import require, whole_numbers
from data.shards import DataError
from eval import EvalError
from models.shared.device import resolve_device
from recipes.claims.claim import ClaimError
from recipes.claims.examine import answer, examine
from recipes.claims.experiment import plan


def main() -> None:
    parser = argparse.ArgumentParser(description="Test a paper's claims as controlled experiments", prog="recipes.claims")
    parser.add_argument("page", help="page of recipes/ that declares claims")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seeds", help="comma-separated seeds, such as 0,1,2 (default: those of each claim)")
    parser.add_argument("--only", default="", help="name of a single claim to test")
    parser.add_argument("--data", default="", help="data set (default: that of the preset)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, help="number of parallel runs (default: one on a GPU, otherwise up to two)")
    parser.add_argument("--runs", type=Path, default=Path(".runs"))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        seeds = whole_numbers(args.seeds, "--seeds") if args.seeds is not None else None
        require(args.jobs is None or args.jobs >= 1, "--jobs", args.jobs, "1 or more parallel runs")
        asked = {"preset": args.preset, "seeds": seeds, "only": args.only, "data": args.data, "device": args.device, "runs": args.runs}
        if args.run:
            sys.exit(answer(args.run, plan(args.page, **asked), args.runs))
        sys.exit(examine(args.page, **asked, jobs=args.jobs or usual_jobs(args.device)))
    except (ClaimError, DataError, EvalError, OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


def usual_jobs(device: str) -> int:
    return 1 if resolve_device(device).type == "cuda" else min(2, os.cpu_count() or 1)


if __name__ == "__main__":
    main()
