"""The loop in several processes that meet over gloo, as torchrun starts them: replicated and sharded models."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from data.files import FileError
from data.sample import Sample
from data.shards import write_index, write_shard
from models.shared.recompute import recompute, repeated_blocks
from recipes.train import distributed
from recipes.train.distributed import Process
from recipes.train.loop import train
from recipes.train.parallel import parallel, whole
from recipes.train.progress import Progress
from recipes.train.recipe import AnyRecipe, Optim
from recipes.train.stages import enter, set_training
from recipes.train.step import backward
from recipes.train.watch import Watch
from tests.data.kit import encode, picture
from tests.processes import METHOD, command, execute, on_ranks, ready
from tests.recipes.fake_cuda import prepared, small
from tests.recipes.test_contract import BATCH as BATCH_OF_RANK
from tests.recipes.test_contract import _neighbours, _uneven
from tests.recipes.test_recompute import TRAINED

STEPS, BATCH = 4, 16
HOW = ("", "lora", "freeze")
FEW = [("flava", ""), ("coca", ""), ("simvlm", ""), ("clip", "lora")]  # rows that differ, blocks that are read twice, or as rows ask for


class Way(NamedTuple):
    sharded: bool = False
    micro_batch: int | None = None
    recompute: bool = False


WAYS = (Way(micro_batch=2), Way(sharded=True), Way(sharded=True, micro_batch=2, recompute=True))
NARROW = {"atol": 2e-5, "rtol": 1e-3}  # sums in another order, after some steps of AdamW


@pytest.fixture(scope="module")
def dots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rank draws captions by itself, so each picture has only one here. Shards have different sizes."""
    folder = tmp_path_factory.mktemp("data") / "dots"
    samples = [Sample(f"{n:06d}", picture(n, 64), captions=(f"picture {n}",)) for n in range(64)]
    parts = [samples[:5], samples[5:30], samples[30:61], samples[61:]]
    entries = [
        write_shard(folder / "train" / f"{n:05d}.tar", ((sample, "png", encode(sample.image)) for sample in part))
        for n, part in enumerate(parts)
    ]
    write_index(folder / "train", name="dots", split="train", shards=entries)
    return folder


@pytest.fixture(scope="module")
def short(recipe: AnyRecipe, dots: Path) -> AnyRecipe:
    return replace(recipe, data=str(dots), budget=STEPS * BATCH, batch=BATCH, optim=replace(recipe.optim, warmup=0), vocab_size=300)


@pytest.fixture(scope="module")
def muon(short: AnyRecipe) -> AnyRecipe:
    return replace(short, optim=Optim(lr=1e-3, muon=True), micro_batch=3, recompute=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


# ------------------------------------------------------------------------------------------- what ranks learn


def test_two_ranks_learn_what_one_does(short: AnyRecipe, muon: AnyRecipe, tmp_path: Path) -> None:
    """Replicated with AdamW; sharded with Muon, micro-batches and recomputation."""
    runs = {"replicated": short, "muon-sharded": replace(muon, sharded=True)}
    on_ranks(_runs, [(tmp_path / name, each, 0) for name, each in runs.items()], 2, _ports(len(runs)))
    for name, one in (("one", short), ("one-muon", muon)):
        assert train(one, tmp_path / name) == 0
    for name in runs:
        assert_close(weights(tmp_path / name), weights(tmp_path / ("one-muon" if "muon" in name else "one")), **NARROW)
        lines = [steps(tmp_path / each) for each in (name, "one-muon" if "muon" in name else "one")]
        assert [line["samples"] for line in lines[0]] == [BATCH * (n + 1) for n in range(STEPS)]
        for field in ("loss", "grad_norm"):
            assert [line[field] for line in lines[0]] == pytest.approx([line[field] for line in lines[1]], rel=1e-3), field
        assert lines[0][0]["chance"] == lines[1][0]["chance"]  # negatives come from both processes


@pytest.mark.parametrize("cases", [FEW, *(pytest.param([(name, how) for how in HOW], marks=pytest.mark.slow, id=name) for name in TRAINED)])
def test_ranks_have_the_losses_and_gradients_of_one_process(cases: list[tuple[str, str]], few: Path, tmp_path: Path) -> None:
    """In every stage, for ranks whose rows differ in what they count."""
    on_ranks(_gradients, cases, str(few), tmp_path)


def _gradients(rank: int, cases: list[tuple[str, str]], data: str, folder: Path) -> None:
    torch.set_num_threads(1)
    for module, found in list(sys.modules.items()):
        if module.startswith("models.") and hasattr(found, "hard_negatives"):
            vars(found)["hard_negatives"] = _neighbours
    stages = [(case, *each) for case in cases for each in _stages(*case, data, folder / f"{'-'.join(case)}-{rank}")]
    expected = [_losses(model, recipe, number, batch, None) for _, model, recipe, number, batch in stages]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for (case, model, recipe, number, batch), one in zip(stages, expected, strict=True):
        half = {field: rows.chunk(2)[rank] for field, rows in batch.items()}
        scale = torch.stack([value.norm() for value in one.values()]).norm()
        for way in WAYS:
            mean, where = _losses(model, recipe, number, half, way), f"{case}, stage {number}, {way}"
            assert mean.keys() == one.keys(), f"{where}: {mean.keys() ^ one.keys()}"
            for what, value in one.items():
                assert (mean[what] - value).norm() <= 1e-4 * value.norm() + 1e-5 * scale, f"{what} of {where}"
    dist.destroy_process_group()


def _stages(name: str, how: str, data: str, folder: Path) -> list[tuple[Any, AnyRecipe, int, dict[str, torch.Tensor]]]:
    """The model with its recipe, and the number and batch of each stage."""
    model, recipe, batches = prepared(replace(small(name), lora_rank=2 * (how == "lora")), data, folder, batch=2 * BATCH_OF_RANK)
    if how == "freeze":
        recipe = replace(recipe, freeze=_some_part(model, recipe))
    return [(model, recipe, number, _uneven(batch)) for number, batch in enumerate(batches)]


def _some_part(model: Any, recipe: AnyRecipe) -> str:
    """A block or module without which every stage still trains something."""
    for name in (*repeated_blocks(model), *(name for name, _ in model.named_children())):
        with contextlib.suppress(ValueError):
            for number in range(len(recipe.schedule)):
                enter(copy.deepcopy(model), replace(recipe, freeze=name), number, Progress())
            return name
    raise AssertionError("nothing can be frozen")


def _losses(model: Any, recipe: AnyRecipe, number: int, batch: dict[str, torch.Tensor], way: Way | None) -> dict[str, torch.Tensor]:
    """The total and every gradient, of one process (None) or the mean of ranks."""
    model, one = copy.deepcopy(model), way is None
    way = way or Way()
    if way.recompute:
        recompute(model)
    enter(model, recipe, number, Progress())
    set_training(model)
    passes = parallel(model, Process(0, 1 if one else 2, torch.device("cpu")), shard=way.sharded)
    some = {"micro_batch": way.micro_batch, "autocast": torch.autocast("cpu", enabled=False)}
    total = backward(model, batch, **some, passes=passes).total.detach().clone()
    if not one:
        dist.all_reduce(total)
        total /= 2
    return {"total": total} | {key: whole(each.grad) for key, each in model.named_parameters() if each.grad is not None}


def steps(folder: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (folder / "train.jsonl").read_text().splitlines()) if "event" not in line]


# ------------------------------------------------------------------------------------------- save, stop, resume


def test_a_run_goes_on_with_other_numbers_of_ranks_sharded_or_not(short: AnyRecipe, tmp_path: Path) -> None:
    """Its samples and weights are those of a run that nothing interrupted: none is left out or comes twice."""
    folder, split = tmp_path / "moved", replace(short, sharded=True)
    for world, recipe, stop in ((4, split, 1), (2, short, 2), (2, split, 3)):
        on_ranks(_runs, [(folder, recipe, stop)], world, _ports(1), world=world)
        assert json.loads((folder / "cost.json").read_text())["samples_seen"] == stop * BATCH
        left = sorted(path.name for path in folder.glob("checkpoint*"))
        assert [name.rpartition("-")[0] or name for name in left] == ["checkpoint"] * recipe.sharded + ["checkpoint.safetensors"]
    (shares,) = folder.glob("checkpoint-*")
    assert {path.suffix for path in shares.iterdir()} == {".safetensors"}
    _cut_short_is_an_error(shares, split, folder)
    assert train(split, folder) == 0  # one process: sharded or not is the same
    assert train(short, tmp_path / "whole") == 0
    assert_close(weights(folder), weights(tmp_path / "whole"), **NARROW)


def _cut_short_is_an_error(shares: Path, recipe: AnyRecipe, folder: Path) -> None:
    first, *_ = sorted(shares.iterdir())
    content = first.read_bytes()
    first.unlink()
    with pytest.raises(FileError, match="has 1 files, expected 2"):
        train(recipe, folder)
    first.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileError, match=r"checkpoint\.safetensors is not a checkpoint of this run"):
        train(recipe, folder)
    first.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_two_ranks_save_together_and_stop_together(sharded: bool, short: AnyRecipe, tmp_path: Path) -> None:
    """To the bit, with clocks that differ, and a signal that reaches one rank only."""
    recipe = replace(short, sharded=sharded)
    on_ranks(_runs, [(tmp_path / "whole", recipe, 0), (tmp_path / "stopped", recipe, 2), (tmp_path / "stopped", recipe, 0)], 2, _ports(3))
    assert_close(weights(tmp_path / "stopped"), weights(tmp_path / "whole"), atol=0, rtol=0)


def _runs(rank: int, runs: list[tuple[Path, AnyRecipe, int]], world: int, ports: list[int]) -> None:
    """Runs one after another, each stopped after so many steps (0: not) by a signal to the last rank. Ranks ask to save in turn."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    real = Watch.step
    Watch.due_to_save = lambda self: rank == self.progress.step % 3  # type: ignore[method-assign]
    for (folder, recipe, stop), port in zip(runs, ports, strict=True):

        def step(self: Watch, *args: Any, stop: int = stop) -> None:
            real(self, *args)
            if rank == world - 1 and self.progress.step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        Watch.step = step  # type: ignore[method-assign]
        os.environ["MASTER_PORT"] = str(port)
        assert train(recipe, folder) == (128 + signal.SIGTERM if stop else 0)


# ----------------------------------------------------------------------------------------------------- torchrun


def torchrun(*arguments: str) -> None:
    """`torchrun --standalone --nproc-per-node 2 -m recipes.train ARGUMENTS`."""
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*ranks, "-m", "recipes.train", *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)


def agent(*arguments: str, work: Callable[..., Any] = execute, restarts: int = 0) -> None:
    """The same with forked ranks: torchrun's own agent, which starts them, hands them their places and watches them."""
    meeting: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "test"}
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, start_method=METHOD, max_restarts=restarts, **meeting)
    ready()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        assert set(elastic_launch(config, work)("recipes.train", arguments).values()) == {0}
    finally:
        for number, handler in handlers.items():  # the agent leaves its own behind
            signal.signal(number, handler)


def options(dots: Path, out: Path, *more: str) -> list[str]:
    found = ["clip", "tiny", "--data", str(dots), "--budget", "64", "--batch", "16", "--optim.warmup", "0", "--vocab-size", "300", *more]
    return [*found, "--device", "cpu", "--precision", "fp32", "--log.every", "1", "--out", str(out)]


@pytest.mark.slow
def test_torchrun_learns_what_one_process_does(dots: Path, tmp_path: Path) -> None:
    torchrun(*options(dots, tmp_path / "two"))
    assert command("recipes.train", *options(dots, tmp_path / "one")).returncode == 0
    one, two = (steps(tmp_path / name) for name in ("one", "two"))
    assert [line["samples"] for line in two] == [16, 32, 48, 64]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=1e-3)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("restarts", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_dead_rank_ends_the_job_and_torchrun_restarts_it_and_names_it(restarts: int, dots: Path, tmp_path: Path) -> None:
    """Killed in its second step, while the other one waits for it, and after a restart in its third. Shards of different sizes, streamed:
    one rank is through its own long before the other one."""
    small = ["--model.vision.depth", "1", "--model.text.depth", "1"]
    arguments = options(dots, tmp_path / "run", *small, "--memory-gb", "0", "--save-minutes", "0")
    with pytest.raises(ChildFailedError) as failure:
        agent(*arguments, work=_dies_twice, restarts=restarts)
    assert time.time() - (tmp_path / "run" / f"died-{2 + restarts}").stat().st_mtime < 60
    assert failure.value.get_first_failure()[0] == 1
    assert "Signal 9 (SIGKILL)" in str(failure.value)
    lines = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("event") == "resume"] == [1] * restarts
    assert [line["step"] for line in lines if "event" not in line][: 1 + restarts] == [1, 2][: 1 + restarts]


def _dies_twice(module: str, arguments: list[str]) -> Any:
    real = Watch.step

    def step(self: Watch, *args: Any) -> None:
        died = Path(arguments[-1]) / f"died-{self.progress.step}"
        if self.process.rank == 1 and self.progress.step in (2, 3) and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *args)

    Watch.step = step  # type: ignore[method-assign]
    if status := execute(module, arguments):
        sys.exit(status)
    return 0


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("sharded", [False, True])
def test_ranks_save_when_torchrun_is_asked_to_stop(sharded: bool, dots: Path, tmp_path: Path) -> None:
    """It sends SIGTERM to each rank's whole group of processes, in which the loader's workers must not be."""
    more = ["--memory-gb", "0", "--workers", "1", "--budget", "64000", "--save-minutes", "0", *["--sharded"] * sharded]
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "recipes.train"]
    run = subprocess.Popen([*ranks, *options(dots, tmp_path / "run", *more)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not (tmp_path / "run" / "checkpoint.safetensors").exists():
        assert run.poll() is None
        time.sleep(0.2)
    run.terminate()
    assert run.wait() != 0
    last = json.loads((tmp_path / "run" / "train.jsonl").read_text().splitlines()[-1])
    assert "stopped by a signal and saved" in last["message"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_rank_that_hangs_ends_the_job(dots: Path, tmp_path: Path) -> None:
    """After the time limit of a message; torchrun kills it."""
    with pytest.raises(ChildFailedError) as failure:
        agent(*options(dots, tmp_path / "run"), work=_hangs)
    assert failure.value.get_first_failure()[0] == 0  # which could not go on
    assert (tmp_path / "run" / "said").read_text() == "[1]"


def _hangs(module: str, arguments: list[str]) -> Any:
    distributed.LIMIT = timedelta(seconds=10)
    step, gone = Watch.step, distributed.unaware

    def stops(self: Watch, *args: Any) -> None:
        step(self, *args)
        if self.process.rank == 1 and self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGSTOP)

    def says(seconds: float) -> list[int]:
        found = gone(seconds)
        Path(arguments[-1], "said").write_text(str(found))
        return found

    Watch.step, distributed.unaware = stops, says  # type: ignore[method-assign]
    if status := execute(module, arguments):
        sys.exit(status)
    return 0


def test_ranks_that_lost_another_say_which(tmp_path: Path) -> None:
    on_ranks(_misses, tmp_path, world=3)


def _misses(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    assert rank == 1 or distributed.unaware(1.0) == [1]
    (folder / str(rank)).touch()
    while len(list(folder.glob("[0-2]"))) < 3:
        time.sleep(0.05)


def _ports(count: int) -> list[int]:
    return [_free_port() for _ in range(count)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
