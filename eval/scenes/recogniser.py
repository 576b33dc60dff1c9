"""A small detector, trained on the truth of the embedded data, which reads a model's drawings.

Every cell of 8 x 8 pixels predicts whether an object's centre lies in it, its position, and the object's attributes. Half of
every batch is shrunk to half its size and enlarged again, so that blurred drawings are read, too. The models' train split has no
held-out pairs of colour and shape; pictures of them are added, because the recogniser has to judge them.
It is trained once for a data set and kept in `.runs/recogniser-<data set>.safetensors`, with its accuracy on real pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.files import locked, replacing
from data.sample import Object, Sample
from data.scenes.build import make_sample
from data.scenes.language import VOCABULARY
from data.scenes.world import TEXTURES, TONES, position
from eval import EvalError
from eval.base.capabilities import Images
from eval.harness.source import Source
from eval.scenes.oracle import preset_of
from models.shared.device import multiplies_bf16, resolve_device

VERSION = 2
CELL = 8  # pixels; no two centres fall into one cell
APART = 12  # pixels; no two centres are closer, hence no two in four neighbouring cells
PRESENT = 0.2  # summed over four neighbouring cells; chosen on val
BUDGET = 80_000  # pictures, repeats counted: some 80 s on one thread for pictures of 64 px
TRAIN_SAMPLES = 20_000
HELD_OUT_SAMPLES = 4_000
ATTRIBUTES = {name: len(values) for name, values in VOCABULARY.items()}
BACKGROUND = {"tone": TONES, "texture": TEXTURES}


class Recogniser(nn.Module):
    """A residual network of stride 8 over pictures of `pixels` x `pixels`."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        if pixels % CELL:
            raise ValueError(f"pictures of {pixels} px: expected a multiple of {CELL}")
        self.pixels = pixels
        self.trunk = nn.Sequential(
            _convolution(3, 24, stride=2),
            _convolution(24, 48, stride=2),
            Residual(48),
            _convolution(48, 96, stride=2),
            Residual(96),
            Residual(96),
        )
        self.out = nn.Conv2d(96, 3 + sum(ATTRIBUTES.values()), 1)
        self.background = nn.Linear(96, len(TONES) + len(TEXTURES))
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """0..255, `[B, 3, S, S]` -> per cell objectness `[B, cells]`, centre `[B, cells, 2]` (in cells, from its corner) and
        logits of every attribute `[B, cells, values]`; logits of the background's tone and texture `[B, values]`."""
        grid = self.trunk((pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last))  # [B, D, S/8, S/8]
        cells = self.out(grid).float().flatten(2).transpose(1, 2).split([1, 2, *ATTRIBUTES.values()], dim=-1)
        outputs = dict(zip(("objectness", "centre", *ATTRIBUTES), cells, strict=True))
        background = self.background(grid.mean(dim=(2, 3))).float().split([len(TONES), len(TEXTURES)], dim=-1)
        outputs |= zip(BACKGROUND, background, strict=True)
        return outputs | {"objectness": outputs["objectness"].squeeze(-1), "centre": outputs["centre"].sigmoid()}

    @torch.no_grad()
    def recognise(self, images: Images) -> list[tuple[list[Object], dict[str, str]]]:
        """For each picture, of any size: the objects in it, most certain first, and its background {"tone": ..., "texture": ...}.

        Boxes are empty, `(x, y, x, y)`: only centres are known, in pixels of the recogniser's own size.
        """
        device = self.out.weight.device
        found = []
        for start in range(0, len(images), 256):
            pixels = torch.cat([_resized(image, self.pixels) for image in images[start : start + 256]])
            outputs = {name: output.cpu() for name, output in self(pixels.to(device)).items()}
            found += [self._read({name: output[row] for name, output in outputs.items()}) for row in range(len(pixels))]
        return found

    def _read(self, outputs: dict[str, Tensor]) -> tuple[list[Object], dict[str, str]]:
        row = self.pixels // CELL
        things: list[Object] = []
        present = outputs["objectness"].sigmoid().reshape(1, row, row)
        # A centre on an edge or a corner is shared by cells none of which is sure: four neighbours count together.
        _, strongest = F.max_pool2d(present, 2, stride=1, return_indices=True)
        together = 4 * F.avg_pool2d(present, 2, stride=1).flatten()
        order = together.argsort(descending=True)[: int((together > PRESENT).sum())]
        for cell in dict.fromkeys(strongest.flatten()[order].tolist()):
            x, y = (CELL * (outputs["centre"][cell] + torch.tensor([cell % row, cell // row]))).tolist()
            if any((x - thing.box[0]) ** 2 + (y - thing.box[1]) ** 2 < APART**2 for thing in things):
                continue  # seen already, from the cell next to this one
            seen = {name: values[int(outputs[name][cell].argmax())] for name, values in VOCABULARY.items()}
            things.append(Object(seen.pop("shape"), (x, y, x, y), seen | {"place": position(x, y, self.pixels)}))
        return things, {name: values[int(outputs[name].argmax())] for name, values in BACKGROUND.items()}


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def _convolution(width: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


# ------------------------------------------------------------------------------------------------------ training


def train(
    samples: Sequence[Sample], *, budget: int = BUDGET, seed: int = 0, batch: int = 64, report: Callable[[int, float], None] | None = None
) -> Recogniser:
    """A recogniser of pictures like those of `samples`, which have one size and the truth of `data.scenes`; `report` gets
    the number of pictures seen, and the loss."""
    sizes = {sample.image.shape for sample in samples}
    if len(sizes) != 1 or len({*next(iter(sizes))[:2]}) != 1:
        raise EvalError(f"a recogniser needs square pictures of one size to learn from, found {sorted(sizes)[:5]}")
    device = resolve_device("auto")
    pixels = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)  # [N, 3, S, S]
    targets = _targets(samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Recogniser(pixels.shape[-1]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=max(budget // batch, 1), pct_start=0.1)
    draws = np.random.default_rng(seed)
    for step in range(max(budget // batch, 1)):
        chosen = torch.from_numpy(draws.integers(len(samples), size=batch))
        sharp, blurred = pixels[chosen].to(device).float().chunk(2)
        shown = torch.cat([sharp, _blurred(blurred)])
        with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16(device)):
            outputs = model(shown)
        loss = _loss(outputs, {name: target[chosen].to(device) for name, target in targets.items()})
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if report:
            report((step + 1) * batch, loss.item())
    return model.eval().requires_grad_(False)


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
            for name, value in looks(thing).items():
                targets[name][index, cell] = VOCABULARY[name].index(value)
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


def _blurred(pixels: Tensor) -> Tensor:
    """Shrunk to half the size and enlarged again."""
    small = F.interpolate(pixels, pixels.shape[-1] // 2, mode="bilinear", antialias=True).round()
    return F.interpolate(small, pixels.shape[-1], mode="bilinear")


def _resized(image: np.ndarray, side: int) -> Tensor:
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    return pixels if pixels.shape[2:] == (side, side) else F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)


# ------------------------------------------------------------------------------------------- one for a data set


def recogniser_of(source: Source, folder: Path = Path(".runs")) -> Recogniser:
    """The recogniser of a data set's train split, trained now unless `folder` has it. Prints how accurate it is."""
    path = folder / f"recogniser-{source.name}.safetensors"
    beginning = source.beginning("train", 500)
    about = {"version": str(VERSION), "data": _fingerprint(beginning), "pixels": str(beginning[0].image.shape[0])}
    model, accuracy = _read(path, about)
    if model is None:
        with locked(folder, f"{path} is being trained by another process: waiting for it"):
            model, accuracy = _read(path, about)
            if model is None:
                print(f"recogniser: trained once for {source.name}, about a minute and a half on one CPU thread ...")
                model, accuracy = _trained(source)
                with replacing(path) as partial:
                    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
                    save_file(weights, partial, about | {"accuracy": accuracy})
    for what, shares in json.loads(accuracy).items():
        print(f"recogniser of {source.name}, {what}: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
    return model


def _trained(source: Source) -> tuple[Recogniser, str]:
    """The recogniser and its accuracy, as JSON."""
    samples = list(islice(source.streams["train"](), TRAIN_SAMPLES))
    preset = preset_of(samples[0].image)
    model = train([*samples, *(make_sample(preset, "heldout", index, seed=-1) for index in range(HELD_OUT_SAMPLES))])
    return model, json.dumps(real_accuracy(model, source.samples(source.primary)))


def real_accuracy(model: Recogniser, samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Accuracy on real pictures of one object, whole and shrunk to half the size; {"real pictures": {"shape": share, ...}, ...}.

    "count" is the share of all pictures in which exactly as many objects are found as there are.
    """
    found = {}
    for what, side in (("real pictures", model.pixels), ("real pictures of half the size", model.pixels // 2)):
        images = [_resized(sample.image, side)[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy() for sample in samples]
        seen = [things for things, _ in model.recognise(images)]
        pairs = [(looks(sample.objects[0]), things) for sample, things in zip(samples, seen, strict=True) if len(sample.objects) == 1]
        shares = {name: [bool(things) and looks(things[0])[name] == true[name] for true, things in pairs] for name in reversed(ATTRIBUTES)}
        shares["count"] = [len(sample.objects) == len(things) for sample, things in zip(samples, seen, strict=True)]
        found[what] = {name: sum(right) / len(right) for name, right in shares.items() if right}
    return found


def looks(thing: Object) -> dict[str, str]:
    """The value of every attribute, shape among them."""
    return {name: thing.name if name == "shape" else thing.attributes[name] for name in ATTRIBUTES}


def _read(path: Path, about: dict[str, str]) -> tuple[Recogniser | None, str]:
    if not path.exists():
        return None, ""
    with safe_open(path, framework="pt") as file:
        known = file.metadata() or {}
        if any(known.get(name) != value for name, value in about.items()):
            return None, ""
        model = Recogniser(int(about["pixels"]))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118, not a dict
    return model.eval().requires_grad_(False), known["accuracy"]


def _fingerprint(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.key, sample.image.shape, [looks(thing) for thing in sample.objects])).encode() + sample.image.tobytes())
    return digest.hexdigest()
