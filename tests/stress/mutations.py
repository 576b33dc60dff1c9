"""Tars, results and run folders with other bytes."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import models
from data.loader import in_order
from data.shards import find
from eval import EvalError
from eval.report.page import html
from eval.report.plain import markdown, table_csv
from eval.report.report import build
from eval.report.results import read_runs
from recipes.train import checkpoint
from recipes.train.folder import CHECKPOINT
from tests.eval.fake_runs import write_run
from tests.stress.child import short_of_memory
from tests.stress.ground import Found, Ground, train_page

PARTS = ("recipe.json", "cost.json", "train.jsonl", "eval/scenes-tiny/eval.json", "eval/scenes-tiny/showcase.json")
PARTS += ("eval/scenes-tiny/zeroshot.test.model.jsonl", "eval/scenes-tiny/pope.test.model.jsonl")
MODEL = ("model.json", "tokenizer.json", "model.safetensors", "recipe.json", "cost.json", CHECKPOINT)
ODD: list[Any] = [None, True, -1, 0, 1e308, float("nan"), 10**400, [], {}, [[None]], {"a": {"b": 1}}]
ODD += ["", "text", "\x1b[31m<b>", "../.."]


def mutated_tars(ground: Ground) -> Found:
    """Broken shards are read to their end or refused in a sentence, within seconds and without much memory."""
    (shard, *_) = sorted((ground.data / "val").glob("*.tar"))
    folder = ground.place("tars")
    folder.mkdir(parents=True)
    for number in count():
        (folder / "00000.tar").write_bytes(mutated(shard.read_bytes(), ground.chance))
        yield f"tar {number}", short_of_memory(partial(_read_all, folder)).fault


def _read_all(folder: Path) -> int:
    return sum(len(batch) for batch in in_order(find(folder, "train"), batch_size=16, max_drop_share=1.0))


def mutated_results(ground: Ground) -> Found:
    """A broken run is left out of the report or loses a part of it; the run beside it keeps its row."""
    sound, runs = ground.place("sound"), ground.place("broken")
    for model in ("clip", "coca"):
        write_run(sound, model, samples=8)
    for number in count():
        shutil.rmtree(runs, ignore_errors=True)
        shutil.copytree(sound, runs)
        path = runs / "coca-tiny-s0" / ground.chance.choice(PARTS)
        content = path.read_bytes()
        path.write_bytes(altered(content, ground.chance) if ground.chance.random() < 0.7 else mutated(content, ground.chance))
        yield f"{path.name} {number}", short_of_memory(partial(_report, runs, whole=number % 8 == 0), 60).fault


def _report(runs: Path, *, whole: bool) -> None:
    try:
        report = build(read_runs(runs), (), None, runs / "claims")
    except EvalError as error:
        if "differs between runs" in str(error):  # other data or prompts: refused, and rightly
            return
        raise AssertionError(f"one run ends the report: {error}") from error
    if "clip" not in {row.page for dataset in report.datasets for row in dataset.rows}:
        raise AssertionError(f"the run beside it has no row: {report.faults}")
    for render in (markdown, table_csv, html) if whole else (markdown, table_csv):
        render(report)


def mutated_models(ground: Ground) -> Found:
    """A run folder with a broken file is loaded or refused in a sentence; the training that goes on there likewise."""
    whole, folder = ground.trained("clip")[0], ground.place("model")
    for number in count():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        path = folder / ground.chance.choice(MODEL)
        content = path.read_bytes()
        structured = path.suffix == ".json" and ground.chance.random() < 0.7
        path.write_bytes(altered(content, ground.chance) if structured else mutated(content, ground.chance))
        attack = partial(checkpoint.read_progress, path) if path.name == CHECKPOINT else partial(models.load, folder)
        if path.name in ("recipe.json", "cost.json"):
            attack = partial(train_page, ground, "clip", folder)
        yield f"{path.name} {number}", short_of_memory(attack).fault


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Cut, emptied, with bytes or blocks changed, repeated, swapped or put in."""
    if not content:
        return b"\x00" * 100
    start, size = chance.randrange(len(content)), chance.choice((1, 8, 512, 4096))
    block = content[start : start + size]
    ways: list[Callable[[], bytes]] = [
        lambda: content[:start],
        lambda: b"",
        lambda: content[:start] + chance.randbytes(len(block)) + content[start + size :],
        lambda: content[:start] + content[start + size :],
        lambda: content[:start] + block * 3 + content[start + size :],
        lambda: content[:start] + b"\xff" * size + content[start:],
        lambda: content[start:] + content[:start],
        lambda: b"\x00" * len(content),
        lambda: chance.randbytes(2000),
    ]
    return chance.choice(ways)()


def altered(content: bytes, chance: random.Random) -> bytes:
    """JSON, or lines of it, in which some value is another, or gone."""
    lines = content.splitlines() if content.count(b"\n{") > 1 and content.startswith(b"{") else [content]
    number = chance.randrange(len(lines))
    value = json.loads(lines[number])
    inner = value
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not keys:
            break
        key = chance.choice(keys)
        if isinstance(inner[key], dict | list) and inner[key] and chance.random() < 0.8:
            inner = inner[key]
            continue
        if chance.random() < 0.2:
            del inner[key]
        else:
            inner[key] = chance.choice(ODD)
        break
    lines[number] = json.dumps(value).encode()
    return b"\n".join(lines) + b"\n"
