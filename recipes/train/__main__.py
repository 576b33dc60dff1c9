"""Command line of training: `python -m recipes.train clip tiny --out .runs/clip-tiny-s0 [--optim.lr 1e-3 ...]` (= `make train-clip`)."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import torch

from data.shards import DataError
from recipes.train.distributed import peer_lost, unaware
from recipes.train.loop import train
from recipes.train.pages import with_options

PATIENCE = 3.0  # seconds in which torchrun notices the rank that ended first, so that it names this one and not those that wait for it
RESUME = "The same command resumes, also with fewer processes; `torchrun --max-restarts 3` does so by itself"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train a model. Every field of its recipe is an option, such as --optim.lr 1e-3", add_help=False
    )
    parser.add_argument("page", help="page of recipes/, such as clip or lit")
    parser.add_argument("preset", help="one of the page's PRESETS")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--shared", type=Path, help="folder of the prerequisite runs (default: the parent of --out)")
    args, rest = parser.parse_known_args()
    try:
        recipe = with_options(args.page, args.preset, rest, "recipes.train")
        sys.exit(train(recipe, args.out, args.preset, args.shared, page=args.page))
    except (DataError, OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(f"error: {str(error).splitlines()[0]} A smaller --micro-batch needs less memory and changes nothing else")
    except RuntimeError as error:
        if not peer_lost(error):
            raise
        gone = ", ".join(map(str, unaware(PATIENCE)))
        which = f"no answer from rank {gone}" if gone else "another rank has ended, which torchrun names"
        sys.exit(f"error: rank {os.environ.get('RANK')} cannot go on: {which}. {RESUME}")
    except KeyboardInterrupt:  # before the first step: later ones save first
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
