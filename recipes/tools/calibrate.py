"""Measure how much of the embedded data set can be learned: `make calibrate` trains a small detector on its ground truth; with DATA=pages
also how much of the pages' texts follows from what it detects.

The detector (`eval.scenes.recogniser`) is trained on the same images as the models of this suite, but with the position and attributes of
each object as labels. All questions are then answered by rules from the detected objects. If the detector answers a kind of question
correctly, the images suffice to learn it: a model that stays at chance lacks supervision or budget, not data. The printed table is
published in recipes/RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from data.fields import require
from data.files import write_json
from data.loader import in_order
from data.sample import Object, Sample
from data.scenes.language import answer
from data.scenes.pages import SPLITS, View, infer, pairs_of
from data.scenes.world import RELATIONS, direction
from data.shards import DataError, find, splits
from eval.base.console import plain_console
from eval.base.metrics import estimate
from eval.base.provenance import provenance
from eval.scenes.recogniser import ATTRIBUTES, BACKGROUND, looks, train
from eval.tasks.pages import Prior
from models.shared.device import hardware


def measure(
    samples: Sequence[Sample], found: Sequence[tuple[list[Object], dict[str, str]]], training: Sequence[Sample]
) -> list[dict[str, object]]:
    """One row per attribute and question type: accuracy with interval, and the accuracy without the image (chance, or the best guess)."""
    right: dict[str, list[float]] = defaultdict(list)
    for sample, (objects, background) in zip(samples, found, strict=True):
        for name, value in background.items():
            right[f"background: {name}"].append(sample.extra[name] == value)
        if len(sample.objects) == len(objects) == 1:
            for name in (*ATTRIBUTES, "place"):
                right[f"attribute: {name}"].append(_value(sample.objects[0], name) == _value(objects[0], name))
        relations = [
            [i, seen, j]
            for i, a in enumerate(objects)
            for j, b in enumerate(objects)
            if i != j and (seen := direction(a.box[0] - b.box[0], a.box[1] - b.box[1]))
        ]
        for question in sample.questions:
            kind = _kind(question.answer, question.kind)
            right[f"question: {kind}"].append(answer(question.question, objects, relations) == question.answer)
    prior = _text_only(samples, training)
    chance = {f"attribute: {name}": 1 / values for name, values in ATTRIBUTES.items()}
    chance |= {f"background: {name}": 1 / len(values) for name, values in BACKGROUND.items()}
    places = Counter(thing.attributes["place"] for sample in training if len(sample.objects) == 1 for thing in sample.objects)
    chance["attribute: place"] = max(places.values()) / places.total()
    rows = []
    for name, outcomes in sorted(right.items()):
        mean = estimate(outcomes)
        at_chance = chance.get(name, prior.get(name, 0.0))
        rows.append({"skill": name, "accuracy": mean.value, "low": mean.low, "high": mean.high, "n": len(outcomes), "chance": at_chance})
    return rows


def measure_pages(
    split: str, pages: Sequence[Sample], found: Sequence[Sequence[tuple[list[Object], dict[str, str]]]], prior: Prior
) -> list[dict[str, object]]:
    """One row per place of a page: how often its text is inferred from what was found in the pictures up to it and the texts before, and
    how often it is the text that follows most often on training pages."""
    right: dict[str, list[bool]] = defaultdict(list)
    guessed: dict[str, list[bool]] = defaultdict(list)
    for sample, seen in zip(pages, found, strict=True):
        views = [View(tuple(objects), background["tone"]) for objects, background in seen]
        texts = [text for _, text in pairs_of(sample)]
        for place, text in enumerate(texts):
            name = f"{split}: place {place}"
            right[name].append(infer(views[: place + 1], texts[:place]) == text)
            guessed[name].append(prior.guess(texts[place - 1] if place else "") == text)
    rows: list[dict[str, object]] = []
    for name, outcomes in right.items():
        mean, chance = estimate(outcomes), sum(guessed[name]) / len(outcomes)
        rows.append({"skill": name, "accuracy": mean.value, "low": mean.low, "high": mean.high, "n": len(outcomes), "chance": chance})
    return rows


def _text_only(samples: Sequence[Sample], training: Sequence[Sample]) -> dict[str, float]:
    """Accuracy of the most frequent training answer to the exact question, or to its kind if the question is not in the training set."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in training:
        for question in sample.questions:
            for words in (question.question, _kind(question.answer, question.kind)):
                answers[words][question.answer] += 1
    right: dict[str, list[bool]] = defaultdict(list)
    for sample in samples:
        for question in sample.questions:
            kind = _kind(question.answer, question.kind)
            guess = (answers[question.question] or answers[kind]).most_common(1)
            right[f"question: {kind}"].append(bool(guess) and guess[0][0] == question.answer)
    return {kind: sum(outcomes) / len(outcomes) for kind, outcomes in right.items()}


def _kind(truth: str, kind: str) -> str:
    return kind if kind != "relation" else "relation (which)" if truth in RELATIONS else "relation (yes or no)"


def _value(thing: Object, name: str) -> str:
    return (thing.attributes | looks(thing))[name]


def _report(seen: int, loss: float) -> None:
    if seen % 12_800 == 0:
        print(f"{seen:>7,} images  loss {loss:.3f}", flush=True)


def _show(rows: Sequence[dict[str, object]], title: str) -> None:
    table = Table("skill", "accuracy", "95% interval", "without the image", "n", title=title)
    for row in rows:
        table.add_row(
            str(row["skill"]), f"{row['accuracy']:.3f}", f"{row['low']:.3f} - {row['high']:.3f}", f"{row['chance']:.3f}", str(row["n"])
        )
    plain_console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=".data/scenes-tiny")
    parser.add_argument("--budget", type=int, default=100_000, help="number of training images, counting repetitions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(".runs/calibrate.json"))
    args = parser.parse_args()
    try:
        require(args.budget >= 1, "--budget", args.budget, "1 or more images")
        require(0 <= args.seed < 1 << 32, "--seed", args.seed, f"0 to {(1 << 32) - 1:,}")
        calibrate(args.data, args.budget, args.seed, args.out)
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def calibrate(data: str, budget: int, seed: int, out: Path) -> None:
    """Train the recogniser on a data set's pictures, and write what it recognises on test pictures to `out`."""
    training, test = (_samples(data, split) for split in ("train", "test"))
    started = time.monotonic()
    model = train(training, budget=budget, seed=seed, report=_report)
    rows = measure(test, model.recognise([sample.image for sample in test]), training)
    prior = Prior.of_samples(training)
    for split in (split for split in SPLITS if split in splits(data)):
        pages = _samples(data, split)
        found = iter(model.recognise([image for sample in pages for image in sample.images]))
        rows += measure_pages(split, pages, [[next(found) for _ in sample.images] for sample in pages], prior)
    _show(rows, f"{budget:,} images in {time.monotonic() - started:.0f} s, seed {seed}, {data}/test")
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"data": find(data, "test").name, "budget": budget, "seed": seed, "hardware": hardware(torch.device("cpu"))}
    write_json(out, about | provenance() | {"rows": rows})


def _samples(data: str, split: str) -> list[Sample]:
    return [sample for batch in in_order(find(data, split), batch_size=256) for sample in batch]


if __name__ == "__main__":
    main()
