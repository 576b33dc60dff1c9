"""Captions and their likelihoods, for models whose text decoder attends to image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.coca.decoder import Writer
from models.contract import IGNORE_INDEX
from models.shared.collate import PairCollate
from models.shared.generate import GREEDY, Decoding, generate, not_text
from models.shared.images import distinct
from models.shared.text import Tokenizer, until_end
from models.shared.tree import forests


class Captioning:
    """Two capabilities of a `Model` that has the attributes and methods below."""

    config: Any
    tokenizer: Tokenizer
    collate: PairCollate
    text: Any
    """a text decoder with the methods of `TextDecoder` that are used here and by `Writer`"""
    score_kind = "likelihood"

    def _image_tokens(self, pixels: Tensor) -> Tensor:
        """uint8 `[B, 3, S, S]` -> image tokens for the decoder `[B, S, D]`."""
        raise NotImplementedError

    def _text_states(self, ids: Tensor) -> Tensor:
        """Texts `[B, T]` -> their states before the layers that attend to the image `[B, T, D]`."""
        raise NotImplementedError

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> Tensor:
        """log p(text | image) in nats, float32 `[N]`, summed over the text's tokens including the end token.

        There is no length normalisation, so longer texts score lower. To compare texts of different lengths (such as class
        names), subtract log p(text): by Bayes' rule, the difference ranks texts by p(image | text). Texts are truncated to
        the context.
        """
        ids = self._ids(texts)
        pictures, places = distinct(images)
        tokens = self._image_tokens(self._pixels(pictures))  # the same picture with many texts is looked at once
        states = self._text_states(ids)
        real = until_end(ids, self.tokenizer)
        following = ids[:, 1:].masked_fill(~real[:, 1:], IGNORE_INDEX)
        rows = [row[: count - 1] for row, count in zip(ids.tolist(), real.sum(dim=1).tolist(), strict=True)]  # nothing follows the end
        found = torch.zeros(len(ids), device=ids.device)
        for forest in forests(rows, places):
            x = states.new_zeros(*forest.sees.shape[:2], states.shape[-1])
            for number, path in zip(forest.sequences, forest.nodes, strict=True):
                x.flatten(0, 1)[path] = states[number, : len(path)]
            logits = self.text.look(x, tokens[forest.groups], sees=forest.sees.to(x.device))
            found[forest.sequences] = forest.log_likelihoods(logits, following[forest.sequences])
        return found

    @torch.no_grad()
    def caption(self, images: Sequence[np.ndarray], *, prompt: str = "", how: Decoding = GREEDY) -> list[str]:
        """Generate one caption per image, which begins with `prompt` and is at most as long as the context. Greedy by default.

        Raises ValueError if the prompt leaves no room for another token.
        """
        begin = self.tokenizer.encode(prompt)
        room = self.config.context - 2 - len(begin)  # start and end are tokens, too
        if room < 1:
            raise ValueError(f"a prompt of {len(begin)} tokens leaves no room for a caption in a context of {self.config.context} tokens")
        tokens = self._image_tokens(self._pixels(images))
        writer = Writer(self.text, tokens, self.config.context)
        logits = writer.read(torch.tensor([[self.tokenizer.start, *begin]], device=tokens.device).expand(len(images), -1))
        written = generate(writer, logits, end=self.tokenizer.end, limit=room, never=not_text(self.tokenizer), how=how)
        return [self.tokenizer.decode([*begin, *more]) for more in written]

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        return self.collate.images(images).to(next(self.parameters()).device)  # type: ignore[attr-defined]

    def _ids(self, texts: Sequence[str]) -> Tensor:
        return self.collate.texts(texts).to(next(self.parameters()).device)  # type: ignore[attr-defined]
