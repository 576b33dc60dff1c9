"""The loop in two processes that meet over gloo, as torchrun starts them."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from recipes.recipe import AnyRecipe
from recipes.train import train
from recipes.watch import Watch


def test_two_ranks_save_together_stop_together_and_resume(recipe: AnyRecipe, tmp_path: Path) -> None:
    mp.spawn(_rank, args=(recipe, tmp_path, [_free_port() for _ in range(4)]), nprocs=2)  # type: ignore[attr-defined]
    stopped, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("stopped", "whole"))
    assert all(torch.equal(stopped[name], whole[name]) for name in whole)
    (tmp_path / "stopped" / "cost.json").unlink()
    with pytest.raises(ValueError, match="begun by 2 processes, now there are 1"):
        train(recipe, tmp_path / "stopped")


def _rank(rank: int, recipe: AnyRecipe, folder: Path, ports: list[int]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}

    def run(name: str) -> int:
        os.environ["MASTER_PORT"] = str(ports.pop())
        return train(recipe, folder / name)

    assert run("whole") == 0

    real = Watch.step

    def step(self: Watch, *args: object) -> None:
        real(self, *args)  # type: ignore[arg-type]
        if rank == 1 and self.progress["step"] == 6:  # the scheduler may tell one rank only
            os.kill(os.getpid(), signal.SIGTERM)

    Watch.step = step  # type: ignore[method-assign]
    Watch.due_to_save = lambda self: rank == self.progress["step"] % 3  # type: ignore[method-assign]  # clocks differ
    status = run("stopped")
    assert status == 128 + signal.SIGTERM
    assert json.loads((folder / "stopped" / "cost.json").read_text())["samples_seen"] == 6 * 16

    Watch.step = real  # type: ignore[method-assign]
    assert run("stopped") == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
