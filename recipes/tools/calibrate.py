"""Measure how much of the embedded data set can be learned: `make calibrate` trains a small detector on its ground truth; with DATA=pages
also how much of the pages' texts follows from what it detects, and with DATA=several of the replies about several pictures.

The detector (`eval.scenes.recogniser`) is trained on the same images as the models of this suite, but with the position and attributes of
each object as labels. All questions are then answered by rules from the detected objects. If the detector answers a kind of question
correctly, the images suffice to learn it: a model that stays at chance lacks supervision or budget, not data. Where texts follow a hidden
rule, the truth itself may not suffice; then the share of texts that follow from it is the ceiling, in the column "from the truth". The
printed table is published in recipes/RESULTS.md.
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

from data.dialogues import turns_of
from data.fields import require
from data.files import write_json
from data.loader import in_order
from data.sample import Object, Sample
from data.scenes.language import answer
from data.scenes.pages import SPLITS, View, infer, pairs_of, views_of
from data.scenes.several import SPLIT as SEVERAL
from data.scenes.several import respond
from data.scenes.world import RELATIONS, direction
from data.shards import DataError, find, splits
from eval.base.console import plain_console
from eval.base.metrics import estimate
from eval.base.provenance import provenance
from eval.scenes.recogniser import ATTRIBUTES, BACKGROUND, Recogniser, looks, train
from eval.tasks.pages import Prior
from models.shared.device import hardware
from models.shared.instructions import Request, conclusion, reasoning

Detected = tuple[list[Object], dict[str, str]]


def measure(samples: Sequence[Sample], found: Sequence[Detected], training: Sequence[Sample]) -> list[dict[str, object]]:
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
    return [_row(name, outcomes, chance.get(name, prior.get(name, 0.0))) for name, outcomes in sorted(right.items())]


def measure_pages(split: str, pages: Sequence[Sample], found: Sequence[Sequence[Detected]], prior: Prior) -> list[dict[str, object]]:
    """One row per place of a page: how often its text is inferred from what was found in the pictures up to it and the texts before, how
    often from the truth about them, and how often it is the text that follows most often on training pages."""
    right: dict[str, list[bool]] = defaultdict(list)
    true: dict[str, list[bool]] = defaultdict(list)
    guessed: dict[str, list[bool]] = defaultdict(list)
    for sample, seen in zip(pages, found, strict=True):
        views, known = _views(seen), views_of(sample)
        texts = [text for _, text in pairs_of(sample)]
        for place, text in enumerate(texts):
            name = f"{split}: place {place}"
            right[name].append(infer(views[: place + 1], texts[:place]) == text)
            true[name].append(infer(known[: place + 1], texts[:place]) == text)
            guessed[name].append(prior.guess(texts[place - 1] if place else "") == text)
    return [_row(name, outcomes, _mean(guessed[name]), _mean(true[name])) for name, outcomes in right.items()]


def measure_several(samples: Sequence[Sample], found: Sequence[Sequence[Detected]], training: Sequence[Sample]) -> list[dict[str, object]]:
    """One row per kind of request about several pictures: how often its reply follows from what was found in them, from the truth, and how
    often it is the most frequent training reply to the same request, or to requests of the kind if it is new."""
    replies: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in training:
        for (request, reply), kind in zip(turns_of(sample), sample.extra.get("kinds", ()), strict=True):
            replies[request][reply] += 1
            replies[kind][reply] += 1
    right: dict[str, list[bool]] = defaultdict(list)
    true: dict[str, list[bool]] = defaultdict(list)
    guessed: dict[str, list[bool]] = defaultdict(list)
    for sample, seen in zip(samples, found, strict=True):
        for (request, reply), kind in zip(turns_of(sample), sample.extra["kinds"], strict=True):
            name = f"several: {kind}"
            right[name].append(respond(request, _views(seen)) == reply)
            true[name].append(respond(request, views_of(sample)) == reply)
            usual = (replies[request] or replies[kind]).most_common(1)
            guessed[name].append(bool(usual) and usual[0][0] == reply)
    return [_row(name, outcomes, _mean(guessed[name]), _mean(true[name])) for name, outcomes in sorted(right.items())]


def measure_reasoning(samples: Sequence[Sample], found: Sequence[Detected], training: Sequence[Sample]) -> list[dict[str, object]]:
    """One row per kind of question that takes two steps: how often its conclusion follows from the objects found, and how often it is the
    most frequent one of training questions of the kind."""
    usual: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in training:
        for request in reasoning(sample):
            usual[_two_step_kind(request)][conclusion(request.reply)] += 1
    right: dict[str, list[bool]] = defaultdict(list)
    guessed: dict[str, list[bool]] = defaultdict(list)
    for sample, (objects, _) in zip(samples, found, strict=True):
        told = {request.text: request.reply for request in reasoning(Sample(sample.key, sample.image, objects=tuple(objects)))}
        for request in reasoning(sample):
            name, truth = f"dialogue: {_two_step_kind(request)}", conclusion(request.reply)
            right[name].append(conclusion(told.get(request.text, "")) == truth)
            guess = usual[_two_step_kind(request)].most_common(1)
            guessed[name].append(bool(guess) and guess[0][0] == truth)
    return [_row(name, outcomes, _mean(guessed[name])) for name, outcomes in sorted(right.items())]


def _two_step_kind(request: Request) -> str:
    return "which is larger" if request.text.startswith("which is larger") else "colour of the object beside"


def _views(seen: Sequence[Detected]) -> list[View]:
    return [View(tuple(objects), background["tone"]) for objects, background in seen]


def _row(name: str, outcomes: Sequence[float], chance: float, truth: float | None = None) -> dict[str, object]:
    """`truth`: the share that follows from the truth, where that is not all."""
    mean = estimate(outcomes)
    row: dict[str, object] = {
        "skill": name,
        "accuracy": mean.value,
        "low": mean.low,
        "high": mean.high,
        "n": len(outcomes),
        "chance": chance,
    }
    return row if truth is None else row | {"truth": truth}


def _mean(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes)


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
    table = Table("skill", "accuracy", "95% interval", "without the image", "from the truth", "n", title=title)
    for row in rows:
        accuracy, low, high, chance, truth = (f"{row.get(name, 1.0):.3f}" for name in ("accuracy", "low", "high", "chance", "truth"))
        table.add_row(str(row["skill"]), accuracy, f"{low} - {high}", chance, truth, str(row["n"]))
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
    detected = model.recognise([sample.image for sample in test])
    rows = [*measure(test, detected, training), *measure_reasoning(test, detected, training)]
    prior, there = Prior.of_samples(training), splits(data)
    for split in (split for split in SPLITS if split in there):
        pages = _samples(data, split)
        rows += measure_pages(split, pages, _recognised(model, pages), prior)
    if SEVERAL in there:
        samples = _samples(data, SEVERAL)
        rows += measure_several(samples, _recognised(model, samples), training)
    _show(rows, f"{budget:,} images in {time.monotonic() - started:.0f} s, seed {seed}, {data}/test")
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"data": find(data, "test").name, "budget": budget, "seed": seed, "hardware": hardware(torch.device("cpu"))}
    write_json(out, about | provenance() | {"rows": rows})


def _recognised(model: Recogniser, samples: Sequence[Sample]) -> list[list[Detected]]:
    """What is found in all pictures of each sample."""
    found = iter(model.recognise([image for sample in samples for image in sample.images]))
    return [[next(found) for _ in sample.images] for sample in samples]


def _samples(data: str, split: str) -> list[Sample]:
    return [sample for batch in in_order(find(data, split), batch_size=256) for sample in batch]


if __name__ == "__main__":
    main()
