"""A closed-form start of the layer between an image encoder and a language model, both of which exist before training: it predicts the
words of a picture's captions from the picture's states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RIDGE = 0.5  # of the variance of a standardised dimension; between .3 and 1, photos not fitted have their captions' words predicted best


def mean_embeddings(texts: Sequence[Sequence[Sequence[int]]], embeddings: Tensor) -> Tensor:
    """Mean embedding `[N, D]` of the tokens of each of N pictures' captions. A token weighs the share of the captions that contain it times
    its inverse document frequency log(N / pictures that have it): "a" and "is" weigh nearly nothing. Embeddings are `[V, D]`."""
    found = [(row, token, 1 / len(captions)) for row, captions in enumerate(texts) for tokens in captions for token in set(tokens)]
    if not found:
        return embeddings.new_zeros(len(texts), embeddings.shape[1])
    rows, tokens, parts = (np.array(values) for values in zip(*found, strict=True))
    vocabulary, columns = np.unique(tokens, return_inverse=True)
    shares = np.zeros((len(texts), len(vocabulary)), np.float32)
    np.add.at(shares, (rows, columns), parts)
    weights = torch.from_numpy(shares * np.log(len(texts) / (shares > 0).sum(axis=0), dtype=np.float32)).to(embeddings.device)
    return weights @ embeddings[torch.from_numpy(vocabulary)].float() / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)


def ridge(inputs: Tensor, outputs: Tensor) -> Tensor:
    """The weight `[O, I]` of ridge regression from standardised inputs `[N, I]` to outputs `[N, O]`, both centred."""
    inputs, outputs = inputs - inputs.mean(dim=0), outputs - outputs.mean(dim=0)
    variance = inputs.T @ inputs / len(inputs) + RIDGE * torch.eye(inputs.shape[1], device=inputs.device)
    return torch.linalg.solve(variance, inputs.T @ outputs / len(inputs)).T
