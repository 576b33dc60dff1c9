"""Attack trainings, evaluations, reports and the loader as accidents and strangers do, for some minutes: `python -m tests.stress`.

Prints how many inputs each attack tried and every fault that it found, and writes that to recipes/results/stress.json (`make results` puts
it into RESULTS.md). The exit status is 1 where there is a fault.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # what is forked must not have threads

import torch

from data.files import write_json
from data.scenes.build import build
from eval.base.provenance import provenance
from models.shared.device import hardware
from recipes.train.pages import names, page
from tests.recipes.test_contract import short
from tests.stress.attacks import ATTACKS
from tests.stress.ground import Ground

OUT = Path(__file__).parents[2] / "recipes" / "results" / "stress.json"
SCHEMA = 1


def campaign(seconds: float, seed: int = 0) -> dict[str, Any]:
    """All attacks in turn, the next one where an attack has had its share of the time; what each tried, and its faults."""
    torch.set_num_threads(1)
    began = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory(prefix="stress-") as room:
        ground = Ground(Path(room) / "scenes", Path(room) / "runs", Path(room) / "room", random.Random(seed))
        build(ground.data, "tiny", workers=1, samples={"train": 60, "val": 24})
        kept = {name: page(name).PRESETS for name in names()}
        for name, presets in kept.items():
            page(name).PRESETS = {key: short(recipe, str(ground.data)) for key, recipe in presets.items()}
        try:
            shares = list(accumulate(ATTACKS.values()))
            for attack, share in zip(ATTACKS, shares, strict=True):
                until = began + seconds * share / shares[-1]
                ground.note = ""
                tried, faults = 0, []
                for what, fault in attack(ground):
                    tried += 1
                    if fault:
                        faults.append(f"{what}: {fault}")
                        print(f"FAULT {attack.__name__}, {what}: {fault}", file=sys.stderr, flush=True)
                    if time.monotonic() > until:
                        break
                rows.append({"attack": attack.__name__.replace("_", " "), "tried": tried, "faults": faults, "note": ground.note})
                print(f"{rows[-1]['attack']}: {tried} inputs, {len(faults)} faults{ground.note and f' ({ground.note})'}", flush=True)
        finally:
            for name, presets in kept.items():
                page(name).PRESETS = presets
    about = {"schema": SCHEMA, "seed": seed, "seconds": round(time.monotonic() - began), "hardware": hardware(torch.device("cpu"))}
    return about | provenance() | {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fault injection", prog="tests.stress")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all attacks together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if not 0 < args.seconds < float("inf"):
        sys.exit(f"error: --seconds is {args.seconds}, expected a number above 0")
    found = campaign(args.seconds, args.seed)
    write_json(args.out, found)
    faults = sum(len(row["faults"]) for row in found["rows"])
    print(f"{sum(row['tried'] for row in found['rows'])} inputs tried, faults found = {faults} ({args.out})")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
