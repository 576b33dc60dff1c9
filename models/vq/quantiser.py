"""Quantise latents with a learned codebook (van den Oord et al., 2017, arXiv 1711.00937) or without one (FSQ, arXiv 2309.15505)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantised(NamedTuple):
    """`vectors` `[B, h, w, D]` carry the latents' gradient straight through; `loss` is per picture, `[B]`."""

    vectors: Tensor
    codes: Tensor  # int64 [B, h, w]
    loss: Tensor


class Codebook(nn.Module):
    """The nearest of `size` vectors, learned by gradient or as running means of the latents assigned to them (EMA).

    loss = commitment * |z - sg(e)|^2 + codebook * |sg(z) - e|^2. VQ-VAE's equation 3 has weights .25 and 1; VQ-GAN's code, and
    every tokenizer trained by it, has the reverse, 1 and .25, which is the default here. With
    `decay` > 0 the second term is replaced by the running mean (VQ-VAE, appendix A.1).

    A code whose share of use falls below `dead` times 1 / size is restarted from a latent of the current batch.
    """

    vectors: Tensor
    sums: Tensor
    usage: Tensor
    stays_whole = True  # `revive` replaces rows of it

    def __init__(self, size: int, dim: int, *, commitment: float, codebook: float, decay: float, dead: float) -> None:
        super().__init__()
        self.size, self.dim = size, dim
        self.commitment, self.codebook, self.decay, self.dead = commitment, codebook, decay, dead
        vectors = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        if decay:
            self.register_buffer("vectors", vectors)
            self.register_buffer("sums", vectors / size)
        else:
            self.vectors = nn.Parameter(vectors)
        self.register_buffer("usage", torch.full((size,), 1 / size))  # running share of the latents, sums to 1

    def forward(self, latents: Tensor) -> Quantised:  # [B, h, w, D]
        latents = latents.float()
        codes = self.nearest(latents)
        vectors = F.embedding(codes, self.vectors)
        loss = self.commitment * (vectors.detach() - latents).square().mean(dim=(1, 2, 3))
        if not self.decay:
            loss = loss + self.codebook * (vectors - latents.detach()).square().mean(dim=(1, 2, 3))
        return Quantised(latents + (vectors - latents).detach(), codes, loss)

    def nearest(self, latents: Tensor) -> Tensor:
        """Index of the closest vector, `[..., D]` -> `[...]`."""
        distances = self.vectors.square().sum(dim=1) - 2 * latents @ self.vectors.T  # |z|^2 is the same for all
        return distances.argmin(dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.vectors)

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor) -> None:
        """Count the codes of a whole batch, and with `decay` move them. latents `[N, D]`, codes `[N]`."""
        rate = self.decay or 0.99
        used = F.one_hot(codes, self.size).to(latents.dtype)  # [N, K]
        share = used.mean(dim=0)
        self.usage.lerp_(share, 1 - rate)
        if self.decay:
            self.sums.lerp_(used.T @ latents / len(latents), 1 - rate)
            self.vectors.copy_(self.sums / self.usage.clamp(min=1e-7)[:, None])

    @torch.no_grad()
    def revive(self, latents: Tensor, generator: torch.Generator, *, everything: bool = False) -> int:
        """Restart unused codes from latents `[N, D]`; returns their number."""
        dead = self.usage < (math.inf if everything else self.dead / self.size)
        count = int(dead.sum())
        if count:
            rows = torch.randint(len(latents), (count,), generator=generator).to(latents.device)
            self.vectors[dead] = latents[rows].to(self.vectors.dtype)
            self.usage[dead] = 1 / self.size
            self.usage /= self.usage.sum()
            if self.decay:
                self.sums.copy_(self.vectors * self.usage[:, None])
        return count


class FSQ(nn.Module):
    """Finite scalar quantisation: each of a few channels is squashed and rounded to one of `levels[i]` values.

    The codes are the cells of a grid: there is nothing to learn, to commit to, or to collapse. Equations: section 3.1 and
    appendix A.1 of the paper; `vectors` are scaled to [-1, 1].
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be at least 2 each, got {levels}")
        self.size, self.dim = math.prod(levels), len(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]), persistent=False)

    def forward(self, latents: Tensor) -> Quantised:  # [B, h, w, D]
        bounded = self.bound(latents.float())
        steps = bounded.round()
        codes = ((steps + self.levels // 2) * self.basis).sum(dim=-1).long()
        vectors = (bounded + (steps - bounded).detach()) / (self.levels // 2)
        return Quantised(vectors, codes, latents.new_zeros(len(latents), dtype=torch.float32))

    def bound(self, latents: Tensor) -> Tensor:
        """Into the open interval whose integers are the levels; an even number of them is shifted by half a step."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = (self.levels % 2 == 0) * 0.5
        return torch.tanh(latents + torch.atanh(offset / half)) * half - offset

    def lookup(self, codes: Tensor) -> Tensor:
        steps = codes[..., None] // self.basis % self.levels - self.levels // 2
        return steps / (self.levels // 2)


def perplexity(codes: Tensor, size: int) -> Tensor:
    """exp of the entropy of code usage: `size` if all codes are used equally, 1 if the codebook has collapsed."""
    ones = torch.ones_like(codes.flatten())
    share = torch.zeros(size, dtype=torch.long, device=codes.device).scatter_add(0, codes.flatten(), ones) / codes.numel()
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())
