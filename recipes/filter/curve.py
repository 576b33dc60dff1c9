"""What filters are worth, as a curve: `python -m recipes.filter.curve --data .data/pool-tiny` (= `make filter-curve DATA=pool`).

Says first how long it will take. Then it trains CLIP on the whole pool, filters the pool by it and by rules, writes the lists of
`LISTS` into the folder `curve` of the data set, and tests the claims of recipes/filtering.py, which train CLIP on each list. Run
again, it goes on where it was stopped. `make results ARGS=collect` publishes the claims.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.fields import require, whole_numbers
from data.keep import read_header
from data.loader import in_order
from data.shards import DataError, Split, find
from eval import EvalError
from models.shared.device import resolve_device
from recipes.claims.__main__ import usual_jobs
from recipes.claims.claim import ClaimError
from recipes.claims.estimate import estimate
from recipes.claims.examine import examine
from recipes.claims.experiment import Planned, plan
from recipes.filter.filters import Cut, Filter, Verdict
from recipes.filter.pictures import Blur, Duplicates
from recipes.filter.pool import report, see, write_kept
from recipes.filter.scores import TRUTH, CLIPScore, Random, Truth, load_clip
from recipes.filter.text import Boilerplate, Length
from recipes.filtering import CLAIMS
from recipes.train.folder import finished
from recipes.train.loop import train

RULES = ("length", "boilerplate", "blur", "duplicates")
LISTS: dict[str, dict[str, float | None]] = {  # list -> the filters that it passes, with the share that graded ones keep
    "clip-0.1": {"clip": 0.1},
    "clip-0.3": {"clip": 0.3},
    "clip-0.5": {"clip": 0.5},
    "random-0.3": {"random": 0.3},
    "rules": dict.fromkeys(RULES),
    "rules-clip-0.5": {**dict.fromkeys(RULES), "clip": 0.5},
    "truth": {"truth": None},
}
NEED_TRUTH = ("truth", "precision")  # claims


def main() -> None:
    parser = argparse.ArgumentParser(prog="recipes.filter.curve", description="Train CLIP on what filters keep of a pool.")
    parser.add_argument("--data", required=True, help="data set folder, such as .data/pool-tiny")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seeds", help="comma-separated seeds, such as 0,1,2 (default: those of each claim)")
    parser.add_argument("--only", default="", help="name of a single claim to test")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, help="number of parallel runs (default: one on a GPU, otherwise up to two)")
    parser.add_argument("--runs", type=Path, default=Path(".runs"))
    args = parser.parse_args()
    try:
        seeds = whole_numbers(args.seeds, "--seeds") if args.seeds is not None else None
        require(args.jobs is None or args.jobs >= 1, "--jobs", args.jobs, "1 or more parallel runs")
        require(Path(args.data).is_dir(), "DATA", args.data, "the folder of a data set, where the lists can go")
        asked = {"preset": args.preset, "seeds": seeds, "data": args.data, "device": args.device, "runs": args.runs}
        sys.exit(curve(**asked, only=args.only, jobs=args.jobs or usual_jobs(args.device)))
    except (ClaimError, DataError, EvalError, OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


def curve(*, data: str, preset: str, seeds: Sequence[int] | None, only: str, device: str, runs: Path, jobs: int) -> int:
    """Returns a process exit status: 0; 1 if a claim could not be tested; or 128 + the number of the signal that stopped it."""
    asked: dict[str, Any] = {"preset": preset, "data": data, "device": device, "runs": runs}
    scorer = scorer_of(asked)
    missing = {each.run.key: each.run for each in plan("filtering", only=only, seeds=seeds, **asked) if each.answer is None}
    untrained = [run for run in ({scorer.key: scorer} | missing).values() if not finished(run.folder)]  # only the scorer needs no list
    print(estimate(untrained, len(missing), jobs, runs), flush=True)
    if not finished(scorer.folder):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the runs of the claims, of which this is one
        status = train(scorer.recipe, scorer.folder, scorer.preset, shared=runs, page=scorer.page)
        torch.set_num_threads(threads)
        if status:
            return status
    known = write_lists(Path(data), scorer.folder, device)
    status = 0
    for name in [only] if only else [claim.name for claim in CLAIMS if known or claim.name not in NEED_TRUTH]:
        status = max(status, examine("filtering", only=name, seeds=seeds, jobs=jobs, **asked))
        if status > 1:
            break
    return status


def scorer_of(asked: dict[str, Any]) -> Planned:
    """The CLIP that scores the pool: the run on all of it, seed 0."""
    questions = plan("filtering", only="clip-score", seeds=[0], **asked)
    return next(question.run for question in questions if not question.run.recipe.keep)


def write_lists(data: Path, scorer: Path, device: str) -> bool:
    """Write the lists, unless they are there and of these data and this scorer. Returns whether the truth about the samples is known."""
    split = find(data, "train")
    known = TRUTH in next(in_order(split, batch_size=1, memory_budget=0))[0].extra
    paths = {name: data / "curve" / f"{name}.jsonl" for name in LISTS if known or name != "truth"}
    if all(_is_of(path, split, scorer) for path in paths.values()):
        return known
    rules: dict[str, Filter] = {"length": Length(), "boilerplate": Boilerplate(), "blur": Blur(), "duplicates": Duplicates()}
    clip = CLIPScore(load_clip(str(scorer), str(resolve_device(device))), str(scorer), Cut(1.0))
    chance = Random(Cut(1.0), seed=0)
    filters: dict[str, Filter] = rules | {"clip": clip, "random": chance} | ({"truth": Truth()} if known else {})
    pool = see(split, filters.values())
    verdicts = {name: each.verdict() for name, each in filters.items()}
    for name, path in paths.items():
        passed = {each: verdicts[each] if share is None else _cut(verdicts[each], share) for each, share in LISTS[name].items()}
        print("\n".join([f"{name}:", *list(report(write_kept(pool, passed, path), path))[1:-1]]), flush=True)
    return known


def _cut(graded: Verdict, share: float) -> Verdict:
    found = Cut(share).verdict(graded.scores)
    return replace(found, about=graded.about | found.about)


def _is_of(path: Path, split: Split, scorer: Path) -> bool:
    if not path.exists():
        return False
    header = read_header(path)
    return header.get("hash") == split.hash and header.get("by", {}).get("clip", {}).get("clip", str(scorer)) == str(scorer)
