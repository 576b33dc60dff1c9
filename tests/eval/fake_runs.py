"""Run folders as training and evaluation leave them, with made-up but plausible numbers: what the report is tested and looked at with.

python -m tests.eval.fake_runs /tmp/fake-runs && python -m eval.compare --runs /tmp/fake-runs --out /tmp/fake-report
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from eval.base import schemas

PARADIGMS = {
    "clip": "contrastive",
    "siglip": "contrastive",
    "flava": "masking",
    "maskvlm": "masking",
    "coca": "generative",
    "cm3leon": "generative",
    "frozen": "pretrained backbones",
    "minigpt4": "pretrained backbones",
    "blip2": "pretrained backbones",
    "magic": "training-free",
    "asif": "training-free",
}

SKILL = {"clip": 0.72, "siglip": 0.70, "flava": 0.55, "maskvlm": 0.6, "coca": 0.78, "cm3leon": 0.45, "frozen": 0.35, "minigpt4": 0.5}
SKILL |= {"blip2": 0.66, "magic": 0.4, "asif": 0.30}
SPLITS = {"test": 0.0, "heldout": 0.09, "style": 0.2}  # and what the shift costs
RECALLS = {f"{way} R@{k} (500)": (k / 500, 0.8 + k / 25) for k in (1, 5, 10) for way in ("i2t", "t2i")}
METRICS = {  # task -> metric -> (chance, how much of the skill it takes)
    "zeroshot": {"colour": (0.111, 1.3), "shape": (0.125, 0.95), "size": (0.5, 1.1), "fill": (0.333, 1.0)},
    "retrieval": RECALLS,
    "foils": {
        "replace_attribute": (0.5, 1.25),
        "swap_attribute": (0.5, 0.02),
        "replace_attribute_colour": (0.5, 1.3),
        "swap_attribute_colour": (0.5, 0.02),
        "swap_relation": (0.5, 0.0),
    },
}
SPEAKERS = {  # what only models that write can do; CIDEr-D is a score of all answers together
    "captioning": {"CIDEr-D": (0.0, 1.2), "colour F1": (0.3, 1.2), "shape F1": (0.2, 1.0), "unique captions": (0.0, 1.0)},
    "pope": {"accuracy": (0.5, 0.9), "yes-rate": (0.5, 0.0)},
}
BUILT_ON = {"blip2": {"vision": "clip", "language_model": "lm"}, "minigpt4": {"eyes": "blip2", "language_model": "lm"}}
BUILT_ON |= {"cm3leon": {"image_tokenizer": "vq", "retriever": "clip"}, "flava": {"image_tokenizer": "vq"}, "lit": {"vision": "classifier"}}
BUILT_ON |= {"frozen": {"language_model": "lm"}, "magic": {"clip": "clip", "language_model": "lm"}}
BUILT_ON |= {"asif": {"vision": "classifier", "language_model": "lm"}}
NOTES = {"retrieval": "gallery 500 images, 2412 captions"}
COLOURS = {"red": "#c83c32", "blue": "#3c64c8", "green": "#3c9650", "yellow": "#dcc03c", "purple": "#8c50aa"}
GENERATIVE = ("coca", "cm3leon", "frozen", "minigpt4", "blip2", "magic")


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
    samples: int = 80,
    skill: float | None = None,
    log: bool = True,
    page: str = "",
    stage: str = "",
    asked: Sequence[str] = (),
    notes: dict[str, str] | None = None,
) -> Path:
    """One evaluated run; with `stage` what it keeps of the model after that stage. cm3leon cannot do retrieval; asif has no gradient
    training; only some can write, or draw."""
    name = "-".join([page or model, "tiny", f"s{seed}", *map(str, (recipe or {}).values())])
    name += f"/stages/{stage}" if stage else ""
    run, folder = root / name, root / name / "eval" / dataset
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *model.encode()])
    level = SKILL[model] + rng.normal(0, 0.01) if skill is None else skill
    cells = [cell for task in METRICS for split in SPLITS for cell in task_cells(model, task, split, folder, level, samples, rng)]
    cells += [cell for task in SPEAKERS for cell in speaker_cells(model, task, folder, level, samples, rng)]
    cells = [cell for cell in cells if cell["task"] in asked or not asked]
    about: dict[str, Any] = {"schema": 1, "run": name, "model": model, "paradigm": PARADIGMS[model], "preset": "tiny", "seed": seed}
    about |= {"dataset": dataset, "trained_on": trained_on, "cells": cells, "seconds": 12.3, "hardware": "2 CPU cores"}
    about |= {"data_hashes": dict.fromkeys(SPLITS, data_hash), "prompts": {"zeroshot": prompt_hash}, "inference_flops_per_image": 2.1e8}
    about |= {"page": page or model, "stage": stage, "notes": notes or {}} if page or stage or notes else {}  # older ones lack them
    write(folder / "eval.json", about)
    shown = showcase(model, rng, level)
    if stage:
        for item in shown["items"]:
            for name in ("caption", "answers", "drawing"):
                item.pop(name, None)
    write(folder / "showcase.json", shown)
    written: dict[str, Any] = {"name": model, "seed": seed, "data": f".data/{trained_on}", "optim": {"lr": 0.001} | (recipe or {})}
    write(run / "recipe.json", written | {name: said for name, said in (("page", page), ("stage", stage)) if said})

    learns = model != "asif"
    cost: dict[str, Any] = {"samples_seen": 640_000, "total_parameters": 3_412_000, "trainable_parameters": 3_412_000 * learns}
    cost |= {"train_seconds": 281.0, "train_flops": 1.8e14 * (1 + SKILL[model]) if learns else None, "peak_memory_mb": 910.0}
    cost["prerequisites"] = {role: {"run": f"{part}-tiny-s{seed}"} for role, part in BUILT_ON.get(page or model, {}).items()}
    write(run / "cost.json", cost | {"hardware": "2 CPU cores", "threads": 2, "finished": not stage})
    if log and learns:
        write_lines(run / "train.jsonl", training_log(model, rng))
    return run


def task_cells(
    model: str, task: str, split: str, folder: Path, level: float, samples: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The cells of one task, and its records. Samples have a difficulty of their own, so that runs err together as real ones do."""
    if model == "cm3leon" and task == "retrieval":
        reason = "ranking 500 x 2412 pairs by likelihood is out of budget"
        return [cell(task, split, metric, None, status="n/a", note=reason) for metric in METRICS[task]]
    cells: list[dict[str, Any]] = []
    variants = {"model": level - SPLITS[split]} | ({"shuffled images": 0.02, "blank images": 0.0} if split == "test" else {})
    for variant, skill in variants.items():
        path = folder / f"{task}.{split}.{variant.split()[0]}.jsonl"
        lines: list[dict[str, Any]] = [{"key": f"{i:06d}"} for i in range(samples if variant == "model" else samples // 2)]
        for metric, (chance, pull) in METRICS[task].items():
            share = chance + (1 - chance) * min(0.995, max(0.0, skill * pull))
            difficulty = np.random.default_rng([len(split), *metric.encode()]).random(samples)[: len(lines)]
            right = difficulty * 0.8 + rng.random(len(lines)) * 0.2 < share
            for line, answer in zip(lines, right.tolist(), strict=True):
                line[metric] = int(answer)
            adapter = "likelihood" if model == "cm3leon" else "embedding similarity"
            made: dict[str, Any] = {"variant": variant, "adapter": adapter, "records": path.name, "note": NOTES.get(task, "")}
            cells.append(cell(task, split, metric, **estimated(right), **made))
        write_lines(path, [{"header": {"task": task}}, *lines, {"header": "end"}])
    if model == "coca":
        cells += [dict(each, variant="by likelihood", adapter="likelihood", records=None) for each in cells if each["variant"] == "model"]
    for metric, (chance, _) in METRICS[task].items():
        controls = {"chance": chance, "untrained": chance + 0.01, "oracle": 1.0}
        cells += [cell(task, split, metric, control, variant=variant, n=samples) for variant, control in controls.items()]
    return cells


def speaker_cells(model: str, task: str, folder: Path, level: float, samples: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Captions and yes-no answers on the test split, and a refusal of every model that cannot give them."""
    if model not in GENERATIVE:
        return [cell(task, "test", metric, None, status="n/a", note="needs caption or answer") for metric in SPEAKERS[task]]
    cells, made = [], dict[str, Any](adapter="generated caption" if task == "captioning" else "generated answer")
    for variant, skill in {"model": level, "blank images": 0.01}.items():
        path = folder / f"{task}.test.{variant.split()[0]}.jsonl"
        truth = rng.integers(0, 2, samples)
        margin = (truth - 0.5) * 4 * skill + rng.normal(size=samples)
        said = (margin > 0).astype(int)
        lines: list[dict[str, Any]] = [{"key": f"{i:06d}"} for i in range(samples)]
        for metric, (chance, pull) in SPEAKERS[task].items():
            right = (said == truth if task == "pope" else rng.random(samples) < chance + (1 - chance) * min(1, skill * pull)).astype(int)
            answers = said if metric == "yes-rate" else right
            for line, answer in zip(lines, answers.tolist(), strict=True):
                line[metric] = answer
            fields: dict[str, Any] = {"variant": variant, "records": path.name, "better": "neither" if metric == "yes-rate" else "higher"}
            fields |= {"field": "", "unit": "score"} if metric == "CIDEr-D" else {}
            cells.append(cell(task, "test", metric, **estimated(answers), **made, **fields))
        if task == "pope":
            for line, kind, *about in zip(lines, ("random", "adversarial") * samples, truth, said, margin, strict=False):
                line |= {"kind": kind} | dict(zip(("truth", "said"), map(int, about[:2]), strict=True))
                line |= {"margin": float(about[2])} if model != "coca" else {}
        write_lines(path, [{"header": {"task": task}}, *lines, {"header": "end"}])
    return cells


def estimated(right: np.ndarray) -> dict[str, Any]:
    value = float(right.mean())
    half = 1.96 * (value * (1 - value) / len(right)) ** 0.5
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": len(right)}


def cell(task: str, split: str, metric: str, value: float | None, variant: str = "model", **fields: Any) -> dict[str, Any]:
    return {"task": task, "split": split, "metric": metric, "variant": variant, "value": value, "unit": "share"} | fields


def training_log(model: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Two terms with chance values, or (siglip) a total with one and two parts without, and a validation loss that lags."""
    terms = {"image to text": 4.85, "text to image": 4.85} if model != "siglip" else {"total": 1.4, "positive": 1.2, "negative": 0.2}
    chance = terms if model != "siglip" else {"total": 1.4}
    lines: list[dict[str, Any]] = [{"event": "start"}]
    for step in range(10, 2500, 10):
        left = 0.12 + 0.88 * float(np.exp(-step / 500))
        now = {name: value * (left + float(rng.normal(0, 0.02))) for name, value in terms.items()}
        stage = {"stage": "train" if model != "blip2" or step < 1000 else "second"}
        lines.append({"step": step, "samples": step * 256, "loss": sum(now.values()), "terms": now, "chance": chance} | stage)
        if step % 250 == 0:
            lines.append({"event": "validate", "samples": step * 256, "loss": (left + 0.05) * next(iter(chance.values()))})
    return [*lines, {"event": "end"}]


def showcase(model: str, rng: np.random.Generator, level: float) -> dict[str, Any]:
    drawing = np.random.default_rng(7)
    items = []
    for index in range(6):
        a, b = drawing.permutation(list(COLOURS))[:2]
        truth, wrong = f"a large {a} circle above a small {b} square", f"a large {b} circle above a small {a} square"
        third, right = f"a {a} shape next to something {b}", bool(rng.random() < level)
        ranked = [(truth, True), (wrong, False)] if right else [(wrong, False), (truth, True)]
        item: dict[str, Any] = {"key": f"{index:06d}", "image": picture(COLOURS[a], COLOURS[b]), "truth": [truth], "prompt": truth}
        item["ranked"] = [{"text": text, "score": 0.4, "correct": correct} for text, correct in [*ranked, (third, True)]]
        if model in GENERATIVE:
            said = a if right else b
            item["caption"] = [["a large ", None], [said, right], [f" circle above a small {b} square", None]]
            item["answers"] = [{"question": "what colour is the circle?", "truth": a, "said": said, "right": right}]
        if model == "coca":
            item["look"] = {"shares": [[0.1, 0.2], [0.3, 0.4]], "area": [0.125, 0, 0.875, 1]}
        if model == "cm3leon":
            item["drawing"] = picture(COLOURS[a if right else b], COLOURS[b])
        items.append(item)
    return {
        "schema": schemas.SHOWCASE,
        "split": "test",
        "items": items,
        "adapters": {"ranked": "embedding similarity", "answers": "generated answer"},
    }


def claim(**fields: Any) -> dict[str, Any]:
    """What came of one claim, as recipes/claims/examine.py writes it."""
    about = {"schema": 1, "model": "siglip", "claim": "bias", "preset": "tiny", "dataset": "scenes-tiny", "seeds": [0, 1]}
    about |= {"sentence": "A low bias learns better.", "paper": "table 4", "note": "", "metric": "retrieval i2t R@1", "better": "higher"}
    arm = {"model": "siglip", "metric": "m", "runs": [], "samples_seen": 9, "low": 0.4, "high": 0.6}
    arms = [arm | {"name": "low", "values": [0.5, 0.6], "mean": 0.55, "differs": {}}]
    arms += [arm | {"name": "zero", "values": [0.4, 0.4], "mean": 0.4, "low": None, "high": None, "differs": {"bias": [-10, 0]}}]
    versus = {"against": "zero", "effect": 0.15, "low": 0.05, "high": 0.25, "differences": [0.1, 0.2], "how": "t", "verdict": "reproduced"}
    cost = {"runs": 4, "shared": 1, "samples_seen": 64_000, "train_seconds": 120.0, "train_flops": 1e12, "hardware": "2 CPUs"}
    return (
        about | {"arms": arms, "comparisons": [versus], "verdict": "reproduced", "cost": cost, "commands": ["make claims-siglip"]} | fields
    )


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
    for model in SKILL:
        for seed in range(3):
            write_run(target, model, seed, samples=2000)
    write_run(target, "clip", 0, recipe={"lr": 0.0003}, samples=2000, skill=0.6)
    write_run(target, "clip", samples=2000, skill=0.75, page="lit")
    write_run(target, "blip2", samples=2000, stage="represent", asked=("retrieval", "zeroshot"))
    for model in ("clip", "siglip"):
        write_run(target, model, 0, dataset="shapes-photos", data_hash="c" * 64, log=False)
    for verdict in ("reproduced", "reversed"):
        (target / "claims" / "siglip").mkdir(parents=True, exist_ok=True)
        write(target / "claims" / "siglip" / f"{verdict}.json", claim(claim=verdict, verdict=verdict))
