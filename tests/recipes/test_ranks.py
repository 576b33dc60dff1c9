"""The loop in two processes that meet over gloo, as torchrun starts them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from data.sample import Sample
from data.shards import write_index, write_shard
from recipes.train.loop import train
from recipes.train.recipe import AnyRecipe
from recipes.train.watch import Watch
from tests.data.kit import encode, picture
from tests.processes import METHOD, command, execute, on_ranks, ready


def test_two_ranks_save_together_stop_together_and_resume(recipe: AnyRecipe, tmp_path: Path) -> None:
    on_ranks(_rank, recipe, tmp_path, [_free_port() for _ in range(4)])
    stopped, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("stopped", "whole"))
    assert all(torch.equal(stopped[name], whole[name]) for name in whole)
    (tmp_path / "stopped" / "cost.json").unlink()
    with pytest.raises(ValueError, match="started with 2 processes, not 1"):
        train(recipe, tmp_path / "stopped")


def torchrun(*arguments: str) -> None:
    """`torchrun --standalone --nproc-per-node 2 -m recipes.train ARGUMENTS`."""
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*ranks, "-m", "recipes.train", *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)


def agent(*arguments: str) -> None:
    """The same with forked ranks: torchrun's own agent, which starts them, hands them their places and watches them."""
    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test"}
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, start_method=METHOD, **meeting)
    ready()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        assert set(elastic_launch(config, execute)("recipes.train", arguments).values()) == {0}
    finally:
        for number, handler in handlers.items():  # the agent leaves its own behind
            signal.signal(number, handler)


@pytest.mark.parametrize("start", [agent, pytest.param(torchrun, marks=pytest.mark.slow)])
def test_torchrun_learns_what_one_process_does(start: Callable[..., None], tmp_path: Path) -> None:
    """The whole command. A rank draws captions by itself, so each picture has only one here."""
    samples = [Sample(f"{n:06d}", picture(n, 64), captions=(f"picture {n}",)) for n in range(64)]
    entry = write_shard(tmp_path / "dots" / "train" / "00000.tar", ((sample, "png", encode(sample.image)) for sample in samples))
    write_index(tmp_path / "dots" / "train", name="dots", split="train", shards=[entry])
    options = ["clip", "tiny", "--data", str(tmp_path / "dots"), "--budget", "64", "--batch", "16", "--optim.warmup", "0"]
    options += ["--device", "cpu", "--precision", "fp32", "--log.every", "1", "--vocab-size", "300", "--out"]
    start(*options, str(tmp_path / "two"))
    assert command("recipes.train", *options, str(tmp_path / "one")).returncode == 0
    one, two = (
        [line for line in map(json.loads, (tmp_path / name / "train.jsonl").read_text().splitlines()) if "event" not in line]
        for name in ("one", "two")
    )
    assert [line["samples"] for line in two] == [16, 32, 48, 64]
    assert two[0]["chance"] == one[0]["chance"]  # negatives come from both processes
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=1e-3)


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
        if rank == 1 and self.progress.step == 6:  # the scheduler may tell one rank only
            os.kill(os.getpid(), signal.SIGTERM)

    Watch.step = step  # type: ignore[method-assign]
    Watch.due_to_save = lambda self: rank == self.progress.step % 3  # type: ignore[method-assign]  # clocks differ
    status = run("stopped")
    assert status == 128 + signal.SIGTERM
    assert json.loads((folder / "stopped" / "cost.json").read_text())["samples_seen"] == 6 * 16

    Watch.step = real  # type: ignore[method-assign]
    assert run("stopped") == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
