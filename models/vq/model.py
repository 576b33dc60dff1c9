"""The image tokenizer: a picture becomes a grid of codes and back (VQ-GAN, arXiv 2012.09841; Make-A-Scene, arXiv 2203.13131).

CM3leon reads and generates images as these codes. `paper` has Make-A-Scene's 256 px -> 32 x 32 codes out of 8,192, with the
layers of VQ-GAN as in the released Chameleon. Deviations of `tiny`: 4 x 4 pixels are first folded into channels, there is no
normalisation or attention, FSQ replaces the codebook, which could collapse, and pixels inside object boxes have a higher
weight, if boxes are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from data.sample import Sample
from models.contract import Losses, Model
from models.shared.distributed import gather
from models.shared.images import HALF, ImageTransform, inside_boxes, normalise
from models.shared.text import Tokenizer
from models.vq.network import Decoder, Encoder, NetworkConfig
from models.vq.objective import PatchDiscriminator, Perceptual, pixel_loss, psnr, squared_error
from models.vq.quantiser import FSQ, Codebook, perplexity


@dataclass(frozen=True)
class VQConfig:
    network: NetworkConfig = field(default_factory=NetworkConfig)
    quantiser: Literal["gradient", "ema", "fsq"] = "gradient"
    codes: int = 8192
    embed_dim: int = 256  # of the codebook's vectors
    commitment: float = 1.0  # VQ-GAN's code; see `Codebook`
    codebook: float = 0.25
    decay: float = 0.99  # of EMA codebooks
    dead: float = 0.05  # a code used less than this share of the average is restarted
    revive_every: int = 50  # steps
    levels: tuple[int, ...] = (8, 5, 5, 5)  # of FSQ
    continuous: int = 0  # samples at the start for which latents are not quantised
    object_weight: float = 0.0  # added to the weight 1 of pixels inside of objects' boxes
    perceptual: str = ""  # weights of VGG-16: IMAGENET1K_V1 or a safetensors file; "" for no such term
    perceptual_weight: float = 1.0
    adversarial_weight: float = 0.0
    adversarial_after: int = 0  # samples

    @classmethod
    def tiny(cls) -> VQConfig:
        """64 px -> 8 x 8 codes out of 1,000, 0.6 M parameters."""
        network = NetworkConfig(image_size=64, patch=4, width=64, multiplier=(1, 1), blocks=1, latent=64, norm="none", middle=False)
        return cls(network=network, quantiser="fsq", continuous=12_800, object_weight=15.0)

    @classmethod
    def coarse(cls) -> VQConfig:
        """`tiny` with 125 codes: fewer to guess from."""
        return replace(cls.tiny(), levels=(5, 5, 5))

    @classmethod
    def small(cls) -> VQConfig:
        """128 px -> 16 x 16 codes out of 1,024 that are running means, for one GPU."""
        network = NetworkConfig(image_size=128, width=64, multiplier=(1, 2, 2, 4), latent=64)
        return cls(
            network=network, quantiser="ema", codes=1024, embed_dim=64, object_weight=4.0, adversarial_weight=0.1, adversarial_after=500_000
        )

    @classmethod
    def dalle(cls) -> VQConfig:
        """DALL-E's encoder in shape, for FLAVA (2112.04482, section 3.3): 112 px -> 14 x 14 codes out of 8,192."""
        return cls(network=NetworkConfig(image_size=112, multiplier=(1, 1, 2, 4)))

    @classmethod
    def paper(cls) -> VQConfig:
        return cls(perceptual="IMAGENET1K_V1", adversarial_weight=0.75, adversarial_after=5_000_000)


class VQ(Model):
    paradigm = "prerequisite"
    Config = VQConfig
    needs = ()

    steps: Tensor
    seen: Tensor

    def __init__(self, config: VQConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer  # for text; this model reads only images
        self.transform = ImageTransform(config.network.image_size)
        self.encoder = Encoder(config.network)
        self.decoder = Decoder(config.network)
        self.quantiser: Codebook | FSQ
        if config.quantiser == "fsq":
            self.quantiser = FSQ(config.levels)
        else:
            decay = config.decay if config.quantiser == "ema" else 0.0
            self.quantiser = Codebook(
                config.codes, config.embed_dim, commitment=config.commitment, codebook=config.codebook, decay=decay, dead=config.dead
            )
        self.quant_conv = nn.Conv2d(config.network.latent, self.quantiser.dim, 1)
        self.post_quant_conv = nn.Conv2d(self.quantiser.dim, config.network.latent, 1)
        self.discriminator = PatchDiscriminator() if config.adversarial_weight else None
        self.perceptual = Perceptual(config.perceptual) if config.perceptual else None
        self.register_buffer("steps", torch.tensor(0))  # of training
        self.register_buffer("seen", torch.tensor(0))  # samples: some terms start later
        self.counted = 0, 0  # both, where the host can read them without waiting for a GPU
        self.register_load_state_dict_post_hook(_count)
        self._batch: tuple[Tensor, Tensor] | None = None  # latents [N, D] and codes [N] of the step under way

    def fetch(self) -> dict[str, str]:
        """Read the weights of the perceptual term, if any. They stay outside of the model's own."""
        if self.perceptual is not None:
            _ = self.perceptual.features
        return {}

    @property
    def size(self) -> int:
        """Number of codes."""
        return self.quantiser.size

    @property
    def side(self) -> int:
        """Cells per side of a picture."""
        return self.config.network.image_size // self.config.network.reduction

    # ------------------------------------------------------------------------------------------------ training

    def collate(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """uint8 pixels `[B, 3, S, S]`, and where objects are: bool `[B, 1, S, S]`, the inside of their boxes."""
        return {
            "pixels": self.transform([sample.image for sample in samples]),
            "objects": self.transform(inside_boxes(samples))[:, :1] > 127,
        }

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per picture: each loss `[B]`, squared errors `[B]`, codes `[B, h, w]` and latents `[B, h, w, D]`."""
        config = self.config
        pixels = normalise(batch["pixels"], HALF, HALF)
        latents = self._latents(pixels)
        quantised = self.quantiser(latents)
        vectors = quantised.vectors
        _, seen = self.counted
        if self.training and seen < config.continuous:
            vectors = self.quantiser.bound(latents.float()) / (self.quantiser.levels // 2) if isinstance(self.quantiser, FSQ) else latents
        reconstruction = self._pixels(vectors).float()
        weight = 1 + config.object_weight * batch["objects"].float()
        features = {
            "pixels": pixel_loss(reconstruction, pixels, weight),
            "quantisation": quantised.loss,
            "error": squared_error(reconstruction.clamp(-1, 1), pixels, torch.ones_like(weight)).detach(),
            "error_objects": squared_error(reconstruction.clamp(-1, 1), pixels, batch["objects"]).detach(),
            "codes": quantised.codes,
            "latents": latents.detach().float(),
        }
        if self.perceptual is not None:
            features["perceptual"] = self.perceptual(reconstruction, pixels)
        if self.discriminator is not None and seen >= config.adversarial_after:
            features["generator"] = self.discriminator.generator_loss(reconstruction)
            features["discriminator"] = self.discriminator.own_loss(reconstruction, pixels)
        return features

    def objective(self, features: dict[str, Tensor]) -> Losses:
        """Weighted sum of the terms; PSNR in dB (whole pictures, inside of objects' boxes) and the codes' perplexity are for the log."""
        weights = {
            "pixels": 1.0,
            "quantisation": 1.0,
            "perceptual": self.config.perceptual_weight,
            "generator": self.config.adversarial_weight,
            "discriminator": 1.0,
        }
        losses = {name: features[name].mean() for name in weights if name in features}
        codes = gather(features["codes"])
        if self.training:
            self._batch = gather(features["latents"]).flatten(0, 2), codes.flatten()
        measures = {
            "psnr": psnr(features["error"]),
            "psnr_objects": psnr(features["error_objects"]),
            "perplexity": perplexity(codes, self.size),
        }
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        return Losses(total, losses | measures, {})

    def after_step(self) -> str | None:
        """Move an EMA codebook, restart dead codes. Returns a warning for the log if the codebook has collapsed."""
        if self._batch is None:
            return None
        latents, codes = self._batch
        self._batch = None
        pictures = len(codes) // self.side**2
        steps, seen = self.counted[0] + 1, self.counted[1] + pictures
        begins = seen - pictures < self.config.continuous <= seen
        self.counted = steps, seen
        self.steps += 1
        self.seen += pictures
        if isinstance(self.quantiser, FSQ):
            return None
        generator = torch.Generator().manual_seed(steps)  # the same on every rank
        if begins or steps == 1:  # the vectors start where the latents are
            self.quantiser.revive(latents, generator, everything=True)
            return None
        self.quantiser.update(latents, codes)
        if steps % self.config.revive_every or seen < self.config.continuous:
            return None
        used = int((self.quantiser.usage >= self.config.dead / self.size).sum())
        revived = self.quantiser.revive(latents, generator)
        if used < self.size // 4:
            return f"the codebook has collapsed: {used:,} of {self.size:,} codes are in use; {revived:,} dead codes restart from latents"
        return None

    # --------------------------------------------------------------------------------------------- reading, writing

    @torch.no_grad()
    def tokens(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 `[height, width, 3]` pictures of any size -> codes int64 `[N, side * side]`, row by row."""
        return self.tokenise(self.transform(images).to(self.steps.device))

    @torch.no_grad()
    def tokenise(self, pixels: Tensor) -> Tensor:
        """uint8 `[N, 3, image_size, image_size]` -> codes `[N, side * side]`."""
        return self.quantiser(self._latents(normalise(pixels, HALF, HALF))).codes.flatten(1)

    @torch.no_grad()
    def paint(self, tokens: Tensor) -> list[np.ndarray]:
        """Codes `[N, side * side]` -> uint8 `[image_size, image_size, 3]` each. Raises ValueError for a code that does not exist."""
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.size:
            raise ValueError(f"image tokens must lie in 0..{self.size - 1}, found {int(tokens.min())}..{int(tokens.max())}")
        pixels = self._pixels(self.quantiser.lookup(tokens.view(-1, self.side, self.side)).float()).float()
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return list(levels.permute(0, 2, 3, 1).cpu().numpy())

    def reconstruct(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Pictures encoded to codes and decoded again."""
        return self.paint(self.tokens(images)) if len(images) else []

    def grid(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """One picture to look at: each image above its reconstruction, uint8 `[2 * image_size, N * image_size, 3]`."""
        originals = self.transform(images).permute(0, 2, 3, 1).numpy()
        return np.concatenate([np.concatenate(list(row), axis=1) for row in (originals, self.reconstruct(images))])

    def _latents(self, pixels: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(pixels)).permute(0, 2, 3, 1)

    def _pixels(self, vectors: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(vectors.permute(0, 3, 1, 2)))


def _count(model: VQ, _: object) -> None:
    model.counted = int(model.steps), int(model.seen)
