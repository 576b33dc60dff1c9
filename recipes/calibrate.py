"""Is the embedded data set learnable? `make calibrate` trains one small detector on the truth and asks it everything.

The detector sees the training pictures as the models of this suite do, but is told where each object is and what it looks
like. Questions are then answered by rule from the objects it finds. Whatever it gets right can be learned from these
pictures: a model that stays at chance there lacks supervision or budget, not data. The table that it prints stands in
data/scenes/README.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from data.loader import in_order
from data.sample import Object, Sample
from data.scenes.language import VOCABULARY, answer
from data.scenes.world import RELATIONS, TEXTURES, TONES, direction, position
from data.shards import find
from eval.metrics import estimate
from models.layers import VisionConfig, vision_transformer
from recipes.place import Place

CELL = 8  # pixels; no two centres fall into one cell
ATTRIBUTES = {name: len(values) for name, values in VOCABULARY.items()}
BACKGROUND = {"tone": TONES, "texture": TEXTURES}


class Detector(nn.Module):
    """For every cell of the picture: is an object's centre here, where exactly, and what does it look like?"""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.trunk = vision_transformer(
            VisionConfig(width=128, depth=2, heads=4, activation="relu", image_size=pixels, patch_size=CELL, stem="conv", pool="avg")
        )
        self.out = nn.Linear(128, 3 + sum(ATTRIBUTES.values()))
        self.background = nn.Linear(128, len(TONES) + len(TEXTURES))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """uint8 `[B, 3, S, S]` -> per cell objectness `[B, cells]`, centre `[B, cells, 2]` and logits of every attribute; per
        picture logits of the background."""
        tokens = self.trunk.forward_features(pixels.float() / 127.5 - 1)  # [B, cells, D]
        names = ("objectness", "centre", *ATTRIBUTES)
        outputs = dict(zip(names, self.out(tokens).float().split([1, 2, *ATTRIBUTES.values()], dim=-1), strict=True))
        outputs |= zip(BACKGROUND, self.background(tokens.mean(dim=1)).float().split([len(TONES), len(TEXTURES)], dim=-1), strict=True)
        return outputs | {"objectness": outputs["objectness"].squeeze(-1), "centre": outputs["centre"].sigmoid()}


def train(samples: Sequence[Sample], *, budget: int, seed: int, batch: int = 64) -> Detector:
    place = Place.find("auto")
    torch.manual_seed(seed)
    pixels, targets = _pixels(samples), _targets(samples)
    model = Detector(pixels.shape[-1]).to(place.device)
    steps = budget // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.5e-3, total_steps=steps, pct_start=0.05)
    draws = np.random.default_rng(seed)
    for step in range(steps):
        chosen = torch.from_numpy(draws.integers(len(samples), size=batch))
        with place.autocast("auto"):
            outputs = model(pixels[chosen].to(place.device))
        loss = _loss(outputs, {name: target[chosen].to(place.device) for name, target in targets.items()})
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"step {step:>5} of {steps}  loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def detect(model: Detector, samples: Sequence[Sample]) -> Iterator[tuple[list[Object], dict[str, str]]]:
    """The objects found in each picture, whose boxes are empty since only their centres are known, and its background."""
    device = next(model.parameters()).device
    for pixels in _pixels(samples).split(256):
        outputs = {name: output.cpu() for name, output in model(pixels.to(device)).items()}
        row = pixels.shape[-1] // CELL
        for index in range(len(pixels)):
            found = []
            for cell in (outputs["objectness"][index] > 0).nonzero().flatten().tolist():
                x, y = (CELL * (outputs["centre"][index, cell] + torch.tensor([cell % row, cell // row]))).tolist()
                looks = {name: VOCABULARY[name][int(outputs[name][index, cell].argmax())] for name in ATTRIBUTES}
                looks["place"] = position(x, y, pixels.shape[-1])
                found.append(Object(looks.pop("shape"), (x, y, x, y), looks))
            yield found, {name: values[int(outputs[name][index].argmax())] for name, values in BACKGROUND.items()}


def measure(
    samples: Sequence[Sample], found: Sequence[tuple[list[Object], dict[str, str]]], training: Sequence[Sample]
) -> list[dict[str, object]]:
    """One row for every attribute and question type: accuracy with interval, chance, and the best answer without the picture."""
    right: dict[str, list[float]] = defaultdict(list)
    for sample, (objects, background) in zip(samples, found, strict=True):
        for name, value in background.items():
            right[f"background: {name}"].append(sample.extra[name] == value)
        if len(sample.objects) == len(objects) == 1:
            for name in (*ATTRIBUTES, "place"):
                right[f"attribute: {name}"].append(_looks(sample.objects[0])[name] == _looks(objects[0])[name])
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


def _text_only(samples: Sequence[Sample], training: Sequence[Sample]) -> dict[str, float]:
    """Accuracy of the most frequent training answer to each question's exact words."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in training:
        for question in sample.questions:
            answers[question.question][question.answer] += 1
    right: dict[str, list[bool]] = defaultdict(list)
    for sample in samples:
        for question in sample.questions:
            guess = answers[question.question].most_common(1)
            right[f"question: {_kind(question.answer, question.kind)}"].append(bool(guess) and guess[0][0] == question.answer)
    return {kind: sum(outcomes) / len(outcomes) for kind, outcomes in right.items()}


def _kind(truth: str, kind: str) -> str:
    return kind if kind != "relation" else "relation (which)" if truth in RELATIONS else "relation (yes or no)"


def _looks(thing: Object) -> dict[str, str]:
    return {"shape": thing.name, **thing.attributes}


def _pixels(samples: Sequence[Sample]) -> Tensor:
    return torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)


def _targets(samples: Sequence[Sample]) -> dict[str, Tensor]:
    row = samples[0].image.shape[1] // CELL
    cells = len(samples), row * row
    targets = {"objectness": torch.zeros(cells), "centre": torch.zeros(*cells, 2)}
    targets |= {name: torch.zeros(cells, dtype=torch.long) for name in ATTRIBUTES}
    targets |= {name: torch.tensor([values.index(sample.extra[name]) for sample in samples]) for name, values in BACKGROUND.items()}
    for index, sample in enumerate(samples):
        for thing in sample.objects:
            x, y = (thing.box[0] + thing.box[2]) / 2 / CELL, (thing.box[1] + thing.box[3]) / 2 / CELL
            cell = int(y) * row + int(x)
            targets["objectness"][index, cell] = 1
            targets["centre"][index, cell] = torch.tensor([x % 1, y % 1])
            for name in ATTRIBUTES:
                targets[name][index, cell] = VOCABULARY[name].index(_looks(thing)[name])
    return targets


def _loss(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    here = targets["objectness"] > 0
    loss = 10 * F.binary_cross_entropy_with_logits(outputs["objectness"], targets["objectness"])
    loss = loss + F.l1_loss(outputs["centre"][here], targets["centre"][here])
    for name in ATTRIBUTES:
        loss = loss + F.cross_entropy(outputs[name][here], targets[name][here])
    for name in BACKGROUND:
        loss = loss + F.cross_entropy(outputs[name], targets[name])
    return loss


def _show(rows: Sequence[dict[str, object]], title: str) -> None:
    table = Table("skill", "accuracy", "95% interval", "without the picture", "n", title=title)
    for row in rows:
        table.add_row(
            str(row["skill"]), f"{row['accuracy']:.3f}", f"{row['low']:.3f} - {row['high']:.3f}", f"{row['chance']:.3f}", str(row["n"])
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=".data/scenes-tiny")
    parser.add_argument("--budget", type=int, default=100_000, help="pictures to train on, repeats counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(".runs/calibrate.json"))
    args = parser.parse_args()
    training, test = (
        [sample for batch in in_order(find(args.data, split), batch_size=256) for sample in batch] for split in ("train", "test")
    )
    started = time.monotonic()
    model = train(training, budget=args.budget, seed=args.seed)
    rows = measure(test, list(detect(model, test)), training)
    _show(rows, f"{args.budget:,} pictures in {time.monotonic() - started:.0f} s, seed {args.seed}, {args.data}/test")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"budget": args.budget, "seed": args.seed, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
