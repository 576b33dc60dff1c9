"""Try all trained runs on a picture of yours: `python -m recipes.demo --runs .runs` (= `make demo`), then open the address that it prints.

Every run shows similarity to a sentence, caption, answer to a question, drawing of the sentence, and where it looks in the picture.
Requires starlette and uvicorn: `pip install -e '.[demo]'`, which `make demo` does.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import tyro

from data.shards import DataError
from eval import EvalError
from eval.harness.source import from_shards
from models.shared.device import resolve_device
from recipes.demo.runs import Known, Runs

HOST = "127.0.0.1"


def main(runs: Path = Path(".runs"), data: str = ".data/scenes-tiny", device: str = "auto", port: int = 7860) -> None:
    """Serve the page.

    Args:
        runs: folder of run folders.
        data: data set whose pictures can be chosen, and with whose captions a sentence is compared; "" for none.
        device: auto, cpu, cuda, cuda:1 or mps.
        port: 0 takes any that is free.
    """
    try:
        serve(found(runs, data, device), port)
    except (DataError, EvalError, OSError, ValueError) as error:
        sys.exit(f"demo: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"demo: {error.name} is missing: `pip install -e '.[demo]'`")


def found(runs: Path, data: str, device: str) -> Runs:
    """Raises ValueError if there is no run, and DataError or FileNotFoundError without the data set."""
    all_runs = Runs(runs, str(resolve_device(device)), Known.of(from_shards(data)) if data else Known())
    if not all_runs.names:
        raise ValueError(f"{runs} has no trained run: `make train-clip` trains one")
    return all_runs


def serve(runs: Runs, port: int) -> None:
    """Until Ctrl-C. Raises OSError if the port is taken."""
    import uvicorn

    from recipes.demo.server import app

    config = uvicorn.Config(app(runs), log_level="warning")
    with listening(port) as place:
        print(f"{len(runs.names)} runs: open http://{HOST}:{place.getsockname()[1]} (Ctrl-C ends)", flush=True)
        uvicorn.Server(config).run(sockets=[place])


def listening(port: int) -> socket.socket:
    """A socket that only this machine reaches."""
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((HOST, port))
    except (OSError, OverflowError) as error:
        place.close()
        raise OSError(f"port {port} cannot be used ({error}): choose another with --port, or 0 for any") from error
    return place


if __name__ == "__main__":
    tyro.cli(main)
