"""A CM3leon of a few thousand weights on squares of one colour, and what its tests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from data.sample import Sample
from models.clip import CLIP, CLIPConfig
from models.cm3leon import CM3leon, CM3leonConfig
from models.cm3leon.collate import Mix
from models.cm3leon.decoder import DecoderConfig
from models.cm3leon.sequence import Kind
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from models.vq import VQ, VQConfig
from models.vq.network import NetworkConfig
from tests.models.kit import randomise

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (40, 160, 40), "pink": (250, 130, 190)}
TOKENIZER = BPETokenizer.train([f"a large {colour} square on a plain background" for colour in COLOURS] * 3, 300)
NETWORK = NetworkConfig(image_size=16, patch=4, width=16, multiplier=(1,), blocks=1, latent=16, norm="none", attention=False)
CONFIG = CM3leonConfig(
    decoder=DecoderConfig(width=32, depth=2, heads=2, hidden=64, positions=220),
    image_tokenizer=VQConfig(network=NETWORK, quantiser="fsq", levels=(4, 3, 3)),
    retriever=CLIPConfig(
        vision=VisionConfig(width=16, depth=1, heads=2, image_size=16, patch_size=8),
        text=TransformerConfig(width=16, depth=1, heads=2),
        embed_dim=8,
        context=16,
        vocab_size=TOKENIZER.vocab_size,
    ),
    vocab_size=TOKENIZER.vocab_size,
    text=24,
    framed=True,
    memory=20,
    skip_above=0.999,
    mix=Mix(spans=0.0, documents=(1.0,)),
    guidance=2.0,
    top_p=1.0,
    samples=1,
)
FRAMED = pytest.mark.parametrize("framed", [True, False], ids=["framed", "consecutive"])


def to_adopt() -> dict[str, torch.nn.Module]:
    torch.manual_seed(1)
    tokenizer, retriever = VQ(CONFIG.image_tokenizer, TOKENIZER), CLIP(CONFIG.retriever, TOKENIZER)
    randomise(tokenizer, 2)
    return {"image_tokenizer": tokenizer.eval(), "retriever": retriever.eval()}


def build(**changes: object) -> CM3leon:
    torch.manual_seed(0)
    model = CM3leon(replace(CONFIG, **changes), TOKENIZER)  # type: ignore[arg-type]
    model.adopt(to_adopt())
    return model


def coloured(count: int, seed: int = 0) -> list[Sample]:
    """One square each, of one of four colours, on a ground that differs from picture to picture."""
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        colour = list(COLOURS)[index % 4]
        image = np.full((16, 16, 3), rng.integers(40, 220), np.uint8)
        top, left = rng.integers(1, 7, size=2)
        image[top : top + 8, left : left + 8] = COLOURS[colour]
        samples.append(Sample(str(index), image, (f"a large {colour} square on a plain background",)))
    return samples


def ids_of(model: CM3leon, batch: dict[str, Tensor]) -> Tensor:
    return model._fill(batch["ids"], batch["pixels"])


def resolved(model: CM3leon, row: Sequence[tuple[int, int, Kind]], image: np.ndarray | None) -> tuple[list[int], list[int]]:
    codes = model.image_tokenizer.tokens([image])[0].tolist() if image is not None else []
    ids = [id_ if id_ >= 0 else model.vocabulary.image.start + codes[-1 - id_] for id_, _, _ in row]
    framed = model.config.framed
    return ids, [place + 2 * model.frame.length if framed else index for index, (_, place, _) in enumerate(row)]


@torch.no_grad()
def drawn_slowly(model: CM3leon, texts: Sequence[str], guidance: float) -> list[Tensor]:
    drawn = []
    for text in texts:
        rows = [model.builder.drawing(TOKENIZER.encode(text) or None), model.builder.drawing(None)]
        codes: list[int] = []
        for cell in range(model.cells):
            logits = []
            for row in rows:
                ids, places = resolved(model, row, None)
                ids += [model.vocabulary.image.start + code for code in codes]
                if model.config.framed:
                    places += [2 * model.frame.length + model.frame.picture + earlier for earlier in range(cell)]
                else:
                    places = list(range(len(ids)))
                state = model.decoder(torch.tensor([ids]), torch.tensor([places]))[0, -1]
                logits.append(model.decoder.logits(state)[model.vocabulary.image])
            codes.append(int((logits[1] + guidance * (logits[0] - logits[1])).argmax()))
        drawn.append(torch.tensor(codes))
    return drawn
