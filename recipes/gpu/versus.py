"""The benchmarks of recipes/bench on the device, each a result of its own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import median

from data.files import locked
from data.shards import find
from recipes.bench.__main__ import found
from recipes.bench.ratios import Bench, Setting
from recipes.gpu.schedule import Json, Save
from recipes.train.distributed import Process

# Large enough that the device and not Python decides.
LARGE = Setting(width=768, depth=12, batch=256, draw_batch=128, draw_depth=12, anchors=50_000, loader_batch=512, image=128, repeats=5)
REHEARSED = Setting(
    width=64, depth=1, batch=4, draw_batch=4, draw_depth=1, anchors=500, loader_batch=8, loader_batches=2, image=16, repeats=1
)


def versus(save: Save, name: str, setting: Setting, device: str, data: str, lock: str) -> Json:
    """Ratios of seconds, theirs to ours, as rows of results/bench.json."""
    with locked(Path(lock), f"{name}: waiting for the device"):
        rows = found()[name](Bench(setting, find(data, "train"), Process.find(device)))
    return {
        "rows": [
            {key: value for key, value in asdict(row).items() if key in ("what", "ours", "theirs", "alike", "shapes")}
            | {"times_faster": median(row.ratios), "low": min(row.ratios), "high": max(row.ratios), "repetitions": len(row.ratios)}
            for row in rows
        ],
        "setting": asdict(setting),
    }
