"""Losses of a tokenizer's reconstruction: pixels, features of a classifier, and a discriminator."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import VGG16_Weights, vgg16  # type: ignore[import-untyped]

from models.shared.sources import foreign
from models.shared.tensors import read_tensors

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixel_loss(reconstruction: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """(|e| / 2 + e^2) averaged over channels and, by `weight` `[B, 1, S, S]`, over pixels. -> `[B]`."""
    error = reconstruction - pixels
    each = (error.abs() / 2 + error.square()).mean(dim=1, keepdim=True)
    return (each * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))


def squared_error(reconstruction: Tensor, pixels: Tensor, where: Tensor) -> Tensor:
    """Mean over the pixels of each picture where `where` `[B, 1, S, S]` is true; NaN where there are none. -> `[B]`."""
    error = (reconstruction - pixels).square().mean(dim=1, keepdim=True)
    return (error * where).sum(dim=(1, 2, 3)) / where.sum(dim=(1, 2, 3))


def psnr(squared: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors in [-1, 1]; pictures without a value are left out."""
    found = squared.isfinite()
    each = torch.where(found, torch.log10(squared.clamp(min=1e-10) / 4), 0.0)
    return -10 * each.sum() / found.sum().clamp(min=1)


class Perceptual:
    """Squared distance between unit-length VGG-16 features at five depths: LPIPS (arXiv 1801.03924) with all its weights 1.

    `weights` names torchvision weights ("IMAGENET1K_V1", fetched once) or a safetensors file of VGG-16, read when they are first needed:
    a trained tokenizer does without. Not a module: the frozen classifier is no part of the tokenizer's own weights.
    """

    depths = (3, 8, 15, 22, 29)  # the ReLU before each pooling

    def __init__(self, weights: str) -> None:
        self.weights = weights

    @cached_property
    def features(self) -> nn.Sequential:
        """VGG-16's convolutions. Raises FileNotFoundError or ValueError where its weights cannot be loaded."""
        with torch.device("meta"):  # skips the random initialisation of 120 M weights
            features = vgg16().features
        state = {name.removeprefix("features."): tensor for name, tensor in _vgg16(self.weights).items() if name.startswith("features.")}
        with foreign(f"perceptual weights {self.weights}"):
            features.load_state_dict(state, assign=True)
        return features.eval().requires_grad_(False)

    def __call__(self, reconstruction: Tensor, pixels: Tensor) -> Tensor:
        """Pixels in [-1, 1] -> `[B]`."""
        self.features.to(pixels.device)
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        x, y = (((image + 1) / 2 - mean) / std for image in (reconstruction, pixels))
        distance = pixels.new_zeros(len(pixels))
        for index, layer in enumerate(self.features[: self.depths[-1] + 1]):
            x, y = layer(x), layer(y)
            if index in self.depths:
                distance = distance + (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(dim=1).mean(dim=(1, 2))
        return distance


def _vgg16(weights: str) -> dict[str, Tensor]:
    if weights.endswith(".safetensors"):
        if not Path(weights).is_file():
            raise FileNotFoundError(f"perceptual weights {weights}: there is no such file")
        return read_tensors(Path(weights), "Expected weights of VGG-16, under torchvision's names")
    try:
        found: dict[str, Tensor] = VGG16_Weights[weights].get_state_dict(check_hash=True, weights_only=True)
    except (OSError, KeyError) as error:
        raise ValueError(
            f"perceptual weights {weights!r} cannot be loaded ({error}): name torchvision weights of VGG-16 such as IMAGENET1K_V1, "
            'a safetensors file, or "" to train without this term'
        ) from error
    return found


class PatchDiscriminator(nn.Module):
    """One logit per patch: is it real? (pix2pix, arXiv 1611.07004.) Pixels `[B, 3, S, S]` -> `[B, 1, s, s]`.

    Group normalisation instead of pix2pix's BatchNorm, whose statistics would mix real and reconstructed pictures and ranks.
    """

    def __init__(self, width: int = 64, levels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level in range(1, levels + 1):
            before, after = width * 2 ** min(level - 1, 3), width * 2 ** min(level, 3)
            stride = 2 if level < levels else 1
            layers += [nn.Conv2d(before, after, 4, stride, padding=1, bias=False), nn.GroupNorm(16, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(after, 1, 4, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)

    def generator_loss(self, reconstruction: Tensor) -> Tensor:
        """-D(x^) with gradients only for the reconstruction; D's weights are treated as constants. -> `[B]`."""
        constants = {name: weight.detach() for name, weight in self.named_parameters()}
        return -functional_call(self, constants, (reconstruction,)).mean(dim=(1, 2, 3))

    def own_loss(self, reconstruction: Tensor, pixels: Tensor) -> Tensor:
        """Hinge loss, with gradients only for D. -> `[B]`."""
        real, fake = self(pixels), self(reconstruction.detach())
        return (F.relu(1 - real) + F.relu(1 + fake)).mean(dim=(1, 2, 3)) / 2
