"""Use a quarter of an hour on a GPU whole: `python -m recipes.gpu --minutes 12` (= `make gpu`).

In this order: the machine; every model at `tiny` against the CPU; steady steps of every `small` preset; ratios against the reference
libraries; whole trainings of `small` with evaluation, as many as the time holds. Every item runs in a process of its own with a time
limit, and the result file is written after each, so being cut off loses nothing: run again, it goes on with what is missing on the
same commit and device. No network is needed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import torch

from data.files import FileError
from eval.base.provenance import provenance
from models.shared.device import hardware, resolve_device
from recipes.gpu.schedule import GRACE, Book, run
from recipes.gpu.stages import STAGES

RESULTS = Path(__file__).parents[1] / "results"
SETTINGS = {
    "HF_HUB_OFFLINE": "1",  # nothing waits for a network that is not there
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking for a GPU must not initialise CUDA before processes are forked
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # the same products give the same bits
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHINDUCTOR_COMPILE_THREADS": "4",  # several items compile at once
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="recipes.gpu", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="stop after this time (default: 12)")
    parser.add_argument(
        "--out", type=Path, help="result file (default: recipes/results/gpu.json; of a rehearsal: .runs/gpu/rehearsal.json)"
    )
    parser.add_argument("--work", type=Path, help="folder for data, runs and logs (default: .runs/gpu, .runs/gpu/rehearsal)")
    parser.add_argument("--only", default="", help=f"some stages ({', '.join(STAGES)}) or items (check clip), separated by commas")
    parser.add_argument("--again", default="", help="items to run although they have been, separated by commas")
    parser.add_argument("--commit", default="", help="commit of this code, where there is no git checkout")
    parser.add_argument("--rehearse", action="store_true", help="run every stage at reduced sizes on the CPU")
    args = parser.parse_args()
    if not 0 < args.minutes < float("inf"):
        sys.exit(f"error: --minutes {args.minutes:g}: expected a number above 0")
    if not args.rehearse and not torch.cuda.is_available():
        print(f"no GPU: torch {torch.__version__} finds no CUDA device, so nothing was run; --rehearse runs all stages on the CPU")
        return
    os.environ |= SETTINGS
    from recipes.gpu.plan import REHEARSAL, Sizes, plan  # after the settings, and not at all without a GPU

    sizes = REHEARSAL if args.rehearse else Sizes()
    work = args.work or Path(".runs/gpu/rehearsal" if args.rehearse else ".runs/gpu")
    out = args.out or (work / "rehearsal.json" if args.rehearse else RESULTS / "gpu.json")
    origin = provenance() | {"hardware": hardware(resolve_device(sizes.device))}
    origin["commit"] = args.commit or origin["commit"] or "unknown"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no process is left behind
    only, again = ([name.strip() for name in text.split(",") if name.strip()] for text in (args.only, args.again))
    try:
        book = Book(out, origin, again, {"rehearsal": args.rehearse})
        stages = plan(sizes, work, None if args.rehearse else out.parent)
        run(stages, book, seconds=max(1.0, 60 * args.minutes - GRACE), logs=work / "logs", only=only, preload=["recipes.gpu.plan"])
    except FileError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    states = [each["status"] for each in book.items.values()]
    print(f"{out}: " + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))


if __name__ == "__main__":
    main()
