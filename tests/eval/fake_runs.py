"""Run folders as training and evaluation leave them, with made-up but plausible numbers: what the report is tested and looked at with.

python -m tests.eval.fake_runs /tmp/fake-runs && python -m eval.compare --runs /tmp/fake-runs --out /tmp/fake-report
"""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

PARADIGM = {
    "clip": "contrastive",
    "siglip": "contrastive",
    "coca": "contrastive + captioning",
    "cm3leon": "generative",
    "asif": "training-free",
}
SKILL = {"clip": 0.72, "siglip": 0.70, "coca": 0.78, "cm3leon": 0.45, "asif": 0.30}
SPLITS = {"test": 0.0, "heldout": 0.09, "style": 0.2}
METRICS = {  # task -> metric -> (chance, how much of the skill it takes, whether shape words or order decide)
    "zeroshot": {"colour": (0.111, 1.3), "shape": (0.125, 0.95), "size": (0.5, 1.1), "fill": (0.333, 1.0)},
    "retrieval": {
        "i2t R@1 (500)": (0.002, 0.9),
        "i2t R@5": (0.01, 1.1),
        "i2t R@10": (0.02, 1.2),
        "t2i R@1": (0.002, 0.85),
        "t2i R@5": (0.01, 1.1),
    },
    "foils": {"replace": (0.5, 1.25), "swap": (0.5, 0.02), "relation": (0.5, 0.0)},
}
COLOURS = {"red": "#c83c32", "blue": "#3c64c8", "green": "#3c9650", "yellow": "#dcc03c", "purple": "#8c50aa"}


def write_run(
    root: Path,
    model: str,
    seed: int = 0,
    *,
    dataset: str = "scenes-tiny",
    trained_on: str = "scenes-tiny",
    data_hash: str = "a" * 64,
    prompt_hash: str = "b" * 64,
    recipe: dict[str, Any] | None = None,
    samples: int = 300,
    skill: float | None = None,
    log: bool = True,
) -> Path:
    """One evaluated run. Samples have a common difficulty, so that runs are correlated as real ones are."""
    name = f"{model}-tiny-s{seed}" + "".join(f"-{value}" for value in (recipe or {}).values())
    folder = root / name / "eval" / dataset
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *model.encode()])
    level = (SKILL.get(model, 0.5) if skill is None else skill) + (rng.normal(0, 0.01) if skill is None else 0)
    cells: list[dict[str, Any]] = []
    for task, metrics in METRICS.items():
        if model == "cm3leon" and task == "retrieval":
            cells += [
                cell(task, split, m, status="n/a", note="ranking 500 x 2412 pairs by likelihood is out of budget")
                for split in SPLITS
                for m in metrics
            ]
            continue
        for split, loss in SPLITS.items():
            columns = {}
            for metric, (chance, pull) in metrics.items():
                share = chance + (1 - chance) * min(0.995, max(0.0, (level - loss) * pull))
                difficulty = np.random.default_rng([len(split), *metric.encode()]).random(samples)
                columns[metric] = (difficulty * 0.8 + rng.random(samples) * 0.2 < share).astype(int)
                value = float(columns[metric].mean())
                half = 1.96 * (value * (1 - value) / samples) ** 0.5
                made = {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": samples}
                made |= {
                    "adapter": "likelihood" if model == "cm3leon" else "embedding similarity",
                    "records": f"{task}.{split}.model.jsonl",
                }
                made["note"] = "gallery 500 images, 2412 captions" if task == "retrieval" else ""
                cells.append(cell(task, split, metric, **made))
                cells += [
                    cell(task, split, metric, variant=v, value=chance + e, n=samples)
                    for v, e in (("chance", 0), ("untrained", 0.01), ("shuffled images", 0.004))
                ]
                cells.append(cell(task, split, metric, variant="oracle", value=1.0, n=samples))
            lines = [
                {"header": {"task": task}},
                *({"key": f"{i:06d}", **{m: int(c[i]) for m, c in columns.items()}} for i in range(samples)),
            ]
            write_lines(folder / f"{task}.{split}.model.jsonl", lines)
    about = {"schema": 1, "run": name, "model": model, "paradigm": PARADIGM.get(model, "other"), "preset": "tiny", "seed": seed}
    about |= {
        "dataset": dataset,
        "trained_on": trained_on,
        "data_hashes": dict.fromkeys(SPLITS, data_hash),
        "prompts": {"zeroshot": prompt_hash},
    }
    about |= {"cells": cells, "seconds": 12.3, "inference_flops_per_image": 2.1e8, "hardware": "2 CPU cores"}
    write(folder / "eval.json", about)
    write(folder / "showcase.json", showcase(rng, level))
    write(root / name / "recipe.json", {"model": model, "seed": seed, "out": f".runs/{name}", "optim": {"lr": 0.001} | (recipe or {})})
    trained = model != "asif"
    cost = {
        "samples_seen": 640_000 if trained else 8_000,
        "trainable_parameters": 3_412_000 if trained else 0,
        "total_parameters": 3_412_000,
    }
    cost |= {"train_seconds": 281.0 if trained else 4.0, "train_flops": 1.3e14 * (1 + SKILL.get(model, 0.5)) if trained else None}
    write(root / name / "cost.json", cost | {"peak_memory_mb": 910.0, "hardware": "2 CPU cores", "threads": 2, "finished": True})
    if log and trained:
        write_lines(root / name / "train.jsonl", training_log(model, rng))
    return root / name


def cell(task: str, split: str, metric: str, **fields: Any) -> dict[str, Any]:
    return {
        "task": task,
        "split": split,
        "metric": metric,
        "variant": "model",
        "value": None,
        "low": None,
        "high": None,
        "n": None,
        "unit": "share",
    } | fields


def training_log(model: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    chance = {"contrastive": 5.545} if model != "siglip" else {"sigmoid": 0.693}
    if model in ("coca", "cm3leon"):
        chance = ({"contrastive": 5.545} if model == "coca" else {}) | {"captioning": 6.2}
    lines: list[dict[str, Any]] = [{"event": "start", "seconds": 0}]
    for step in range(0, 2500, 10):
        terms = {
            name: value * (0.12 + 0.88 * float(np.exp(-step / 500))) + float(rng.normal(0, 0.02)) * value for name, value in chance.items()
        }
        if model == "siglip":
            terms["bias drift"] = 10 - step / 2000
        lines.append(
            {
                "step": step,
                "samples": step * 256,
                "loss": sum(terms.values()),
                "terms": terms,
                "chance": chance,
                "lr": 1e-3,
                "seconds": step / 9,
            }
        )
    return [*lines, {"event": "end"}]


def showcase(rng: np.random.Generator, level: float) -> dict[str, Any]:
    drawing = np.random.default_rng(7)
    items = []
    for index in range(6):
        a, b = drawing.permutation(list(COLOURS))[:2]
        truth, wrong = f"a large {a} circle above a small {b} square", f"a large {b} circle above a small {a} square"
        third = f"a {a} shape next to something {b}"
        first = rng.random() < level
        ranked = (
            [(truth, 0.41, True), (wrong, 0.38, False), (third, 0.30, True)]
            if first
            else [(wrong, 0.41, False), (truth, 0.38, True), (third, 0.3, True)]
        )
        ranked_json = [{"text": text, "score": score, "correct": correct} for text, score, correct in ranked]
        items.append({"key": f"{index:06d}", "image": picture(COLOURS[a], COLOURS[b]), "captions": [truth], "ranked": ranked_json})
    return {"schema": 1, "split": "test", "items": items}


def picture(a: str, b: str) -> str:
    image = Image.new("RGB", (64, 64), "#e9e6dc")
    draw = ImageDraw.Draw(image)
    draw.ellipse((16, 6, 44, 34), fill=a)
    draw.rectangle((30, 42, 44, 56), fill=b)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for model, seeds in (("clip", 3), ("siglip", 3), ("coca", 1), ("cm3leon", 1), ("asif", 1)):
        for seed in range(seeds):
            write_run(target, model, seed, samples=2000)
    write_run(target, "clip", 0, recipe={"lr": 0.0003}, samples=2000, skill=0.6)
    for model in ("clip", "siglip"):
        write_run(target, model, 0, dataset="shapes-photos", data_hash="c" * 64, log=False)
