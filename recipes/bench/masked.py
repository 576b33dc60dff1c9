"""FLAVA's training step against transformers' on the same weights and batch; rows of `make bench`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import FlavaConfig, FlavaForPreTraining

from models.contract import IGNORE_INDEX
from models.flava import FLAVA, FLAVAConfig
from models.flava.collate import PAIR, Mixture
from models.flava.convert import from_transformers
from models.shared.images import OPENAI_MEAN, OPENAI_STD, normalise
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from models.vq import VQConfig
from models.vq.network import NetworkConfig
from recipes.bench.ratios import Bench, Row, interleaved, row_of
from recipes.train.distributed import Process
from recipes.train.optimiser import optimiser
from recipes.train.recipe import Optim
from recipes.train.step import backward

TOKENS, SIZE, PATCH = 32, 64, 8
WORDS, CODES = 30_522, (8, 5, 5, 5)


def masked_step(bench: Bench) -> list[Row]:
    """Pairs, of which a quarter do not match: contrast, matching, and both masked predictions. Codes of the pictures are given to
    both; pixels come normalised to theirs and raw to ours."""
    setting, process = bench.setting, bench.process
    width, depth, batch, repeats = setting.width, setting.depth, setting.batch, setting.repeats
    theirs = _theirs(width, depth)
    ours = _ours(width, depth)
    frozen = {name: value for name, value in ours.state_dict().items() if name.startswith("codebook.")}
    ours.load_state_dict(from_transformers(theirs.state_dict()) | frozen)
    ours, theirs = ours.to(process.device), theirs.to(process.device).train()
    data = {name: rows.to(process.device) for name, rows in _batch(batch).items()}
    codes = ours.codes(data["pixels"])
    ours.codes = lambda pixels: codes[data["match"]]  # type: ignore[method-assign]  # no others are asked for

    def our_loss(autocast: Any) -> Tensor:
        return backward(ours, data, micro_batch=None, autocast=autocast).total

    def their_loss(autocast: Any) -> Tensor:
        with autocast:
            loss: Tensor = theirs(
                input_ids=data["ids"],
                input_ids_masked=data["masked_ids"],
                attention_mask=torch.ones_like(data["ids"]),
                pixel_values=normalise(data["pixels"], OPENAI_MEAN, OPENAI_STD),
                bool_masked_pos=data["patches"],
                mim_labels=codes[..., 0].clone(),
                mlm_labels=data["labels"].clone(),
                itm_labels=data["match"].long(),
                skip_unmasked_multimodal_encoder=True,
                return_loss=True,
            ).loss
        loss.backward()
        return loss

    reference = f"transformers {transformers.__version__}"
    contestants: dict[str, Callable[[], float]] = {}
    for precision in ("fp32", "bf16"):
        contestants[precision] = _step(ours, our_loss, process, precision)
        contestants[f"{reference} {precision}"] = _step(theirs, their_loss, process, precision)
    first = {name: step() for name, step in contestants.items()}
    pairs = [(precision, f"{reference} {precision}") for precision in ("fp32", "bf16")]
    if any(abs(first[mine] - first[other]) > 0.05 for mine, other in pairs):
        raise RuntimeError(
            f"the same weights and samples should give the same loss, but gave {first}: this compares different computations"
        )
    timed = interleaved(contestants, repeats)
    shapes = f"three encoders {width} x {depth}, {SIZE} px / {PATCH}, {TOKENS} tokens, batch {batch}"
    return [row_of("flava step", mine, other, shapes, timed, batch, alike=mine) for mine, other in pairs]


def _step(model: nn.Module, loss: Callable[[Any], Tensor], process: Process, precision: str) -> Callable[[], float]:
    autocast, optimizer = process.autocast(precision), optimiser(model, Optim(lr=1e-4), fused=process.device.type == "cuda")

    def step() -> float:
        value = loss(autocast)
        optimizer.step()
        optimizer.zero_grad()
        return value.item()  # waits for the device

    return step


def _ours(width: int, depth: int) -> FLAVA:
    tower: dict[str, Any] = {"width": width, "depth": depth, "heads": width // 64, "norm_eps": 1e-12}
    network = NetworkConfig(image_size=SIZE, patch=PATCH, width=32, multiplier=(1,), blocks=1)
    config = FLAVAConfig(
        vision=VisionConfig(image_size=SIZE, patch_size=PATCH, **tower),
        text=TransformerConfig(**tower),
        fusion=TransformerConfig(**tower),
        codebook=VQConfig(network=network, quantiser="fsq", levels=CODES),
        embed_dim=width,
        context=TOKENS,
        vocab_size=WORDS,
        mixture=Mixture(),
    )
    tokenizer: Any = BPETokenizer.train(["a"], 300)
    tokenizer.mask = 103  # BERT's, so that no row is added
    return FLAVA(config, tokenizer)


def _theirs(width: int, depth: int) -> FlavaForPreTraining:
    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
    torch.manual_seed(0)
    return FlavaForPreTraining(
        FlavaConfig(
            text_config={"vocab_size": WORDS, "max_position_embeddings": TOKENS, **sizes},
            image_config={"image_size": SIZE, "patch_size": PATCH, "vocab_size": 1000, "mask_token": True, **sizes},
            multimodal_config=sizes,
            projection_dim=width,
            hidden_size=width,
            init_codebook=False,
        )
    )


def _batch(size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, WORDS, (size, TOKENS), generator=generator)
    ids[:, -1] = 2  # the end: no text is shorter
    chosen = torch.rand(ids.shape, generator=generator) < 0.15
    chosen[:, 0], chosen[:, -1] = True, False
    return {
        "pixels": torch.randint(256, (size, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8),
        "ids": ids,
        "masked_ids": ids.masked_fill(chosen, 103),
        "labels": torch.where(chosen, ids, IGNORE_INDEX),
        "patches": torch.rand(size, (SIZE // PATCH) ** 2, generator=generator) < 0.4,
        "kind": torch.full((size,), PAIR),
        "match": torch.arange(size) % 4 > 0,
    }


BENCHES = {"masked": masked_step}
