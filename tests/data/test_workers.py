"""Workers that cannot hand over their batches end with a message that names the cure; a hang would be silent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.loader import Loader
from data.sample import Sample
from data.shards import DataError, find
from tests.data.kit import make_split

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:This DataLoader will create")]

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from data.loader import Loader
from data.shards import DataError, find
from tests.data.test_workers import collate_large

for budget in (0, 1 << 30):
    try:
        batches = iter(Loader(find(sys.argv[1], "train"), batch_size=4, collate=collate_large, workers=2, memory_budget=budget))
        for _ in range(3):
            next(batches)
        sys.exit(f"no error with the budget {budget}")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
"""


def collate_large(samples: list[Sample], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    return {"pixels": torch.zeros(4 << 20)}  # 16 MB


def collate_killed(samples: list[Sample], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    os.kill(os.getpid(), signal.SIGBUS)  # what a write beyond the end of /dev/shm does
    return {}


def test_a_small_shared_memory_is_an_error_that_names_the_cure(tmp_path: Path) -> None:
    """Streamed and from memory."""
    mount = "mount -t tmpfs -o size=8M tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small /dev/shm")
    make_split(tmp_path / "toy", [20, 20])
    (tmp_path / "script.py").write_text(SCRIPT)
    command = f'{mount} && exec "{sys.executable}" "{tmp_path}/script.py" "{tmp_path}/toy"'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    for line in lines:
        assert "unable to allocate shared memory" in line  # torch 2.11 gives "Success (0)" as the reason
        assert "--workers 0" in line
        assert "--shm-size" in line


def test_a_batch_without_room_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    split = find(make_split(tmp_path / "toy", [20, 20]), "train")
    with pytest.raises(DataError, match=r"No space left.*--workers 0.*--shm-size"):
        next(iter(Loader(split, batch_size=4, collate=collate_large, workers=2)))
    assert next(iter(Loader(split, batch_size=4, collate=collate_large)))  # in this process nothing is shared


def test_a_killed_worker_is_an_error_that_names_the_cure(tmp_path: Path) -> None:
    split = find(make_split(tmp_path / "toy", [20, 20]), "train")
    with pytest.raises(DataError, match=r"DataLoader worker.*--workers 0"):
        next(iter(Loader(split, batch_size=4, collate=collate_killed, workers=2)))
