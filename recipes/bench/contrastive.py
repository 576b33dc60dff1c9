"""A training step of CLIP and CoCa against open_clip, and of SigLIP against transformers, with the same weights: forward, loss, backward,
AdamW.

open_clip's step gets pixels that are normalised already and texts of 77 tokens, as its loader gives them; ours normalises inside the step
and by default cuts texts to the longest of the batch, which changes no feature.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import open_clip
import torch
import transformers
from open_clip.loss import ClipLoss, CoCaLoss
from torch import Tensor, nn

from data.loader import Loader
from data.texts import texts
from models.clip import CLIP
from models.clip.convert import config_from_open_clip, from_open_clip
from models.coca import CoCa
from models.coca.convert import config_from_open_clip as coca_config_from_open_clip
from models.coca.convert import from_open_clip as coca_from_open_clip
from models.shared.collate import PairCollate
from models.shared.images import HALF, OPENAI_MEAN, OPENAI_STD, ImageTransform, normalise
from models.shared.text import BPETokenizer, OpenCLIPTokenizer, Tokenizer
from models.siglip import SigLIP
from models.siglip.convert import config_from_transformers, from_transformers
from recipes.bench.ratios import Bench, Row, Setting, interleaved, row_of
from recipes.train.distributed import Process
from recipes.train.optimiser import optimiser
from recipes.train.recipe import Optim
from recipes.train.step import backward

OPTIM = Optim(lr=1e-4)
WORDS = 4096  # of CoCa's vocabulary


def clip_step(bench: Bench) -> list[Row]:
    setting, process = bench.setting, bench.process
    cfg = {
        "embed_dim": setting.width,
        "vision_cfg": {"image_size": setting.image, "patch_size": 8, "layers": setting.depth, "width": setting.width},
        "text_cfg": {
            "vocab_size": 49408,
            "context_length": 77,
            "layers": setting.depth,
            "width": setting.width,
            "heads": setting.width // 64,
        },
    }
    torch.manual_seed(0)
    weights = open_clip.CLIP(**cfg).state_dict()
    batch, full = _batch(bench, context=77)
    pixels = normalise(batch["pixels"], OPENAI_MEAN, OPENAI_STD)

    def ours(ids: Tensor, precision: str) -> Callable[[], float]:
        model = CLIP(config_from_open_clip(cfg), OpenCLIPTokenizer()).to(process.device)
        model.load_state_dict(from_open_clip(weights))
        return _our_step(model, batch | {"ids": ids}, process, precision)

    def theirs(precision: str) -> Callable[[], float]:
        model = open_clip.CLIP(**cfg).to(process.device)
        model.load_state_dict(weights)
        objective = ClipLoss()
        return _their_step(model, lambda: objective(*model(pixels, full)), process, precision)

    steps = {
        "fp32, 77 tokens": ours(full, "fp32"),
        "bf16, 77 tokens": ours(full, "bf16"),
        f"defaults: {_default(process)}, {batch['ids'].shape[1]} tokens": ours(batch["ids"], "auto"),
        "open_clip fp32": theirs("fp32"),
        "open_clip amp_bf16": theirs("bf16"),
    }
    our_fp32, our_bf16, default, fp32, bf16 = steps
    pairs = [(our_fp32, fp32, "fp32"), (our_bf16, bf16, "bf16"), (default, fp32, ""), (default, bf16, "")]
    return _step_rows("clip step", steps, pairs, setting)


def coca_step(bench: Bench) -> list[Row]:
    """Both sides pad texts to 76 tokens, and both read every place's logits. A smaller vocabulary than CLIP's, which would leave nothing
    but the output layer to compare."""
    setting, process = bench.setting, bench.process
    tokenizer = BPETokenizer.train(texts(bench.split, limit=5_000), WORDS)
    vision = {"image_size": setting.image, "patch_size": 8, "layers": setting.depth, "width": setting.width, "output_tokens": True}
    vision |= {"attentional_pool": True, "attn_pooler_queries": 64, "attn_pooler_heads": setting.width // 64}
    sizes = {"context_length": 76, "vocab_size": tokenizer.vocab_size, "width": setting.width, "heads": setting.width // 64}
    text, multimodal = sizes | {"layers": setting.depth, "embed_cls": True, "output_tokens": True}, sizes | {"layers": setting.depth}
    cfg: dict[str, Any] = {"embed_dim": setting.width, "vision_cfg": vision, "text_cfg": text, "multimodal_cfg": multimodal}
    theirs_cfg = cfg | {"text_cfg": text | {"pad_id": tokenizer.pad}}
    torch.manual_seed(0)
    reference = open_clip.CoCa(**theirs_cfg, pad_id=tokenizer.pad)
    nn.init.normal_(reference.text_decoder.text_projection, std=0.02)  # open_clip leaves it uninitialised
    weights = reference.state_dict()
    batch, full = _batch(bench, context=76, tokenizer=tokenizer)
    pixels = normalise(batch["pixels"], OPENAI_MEAN, OPENAI_STD)

    def ours(ids: Tensor, precision: str) -> Callable[[], float]:
        model = CoCa(coca_config_from_open_clip(cfg), tokenizer).to(process.device)
        model.load_state_dict(coca_from_open_clip(weights))
        return _our_step(model, batch | {"ids": ids}, process, precision)

    def theirs(precision: str) -> Callable[[], float]:
        model = open_clip.CoCa(**theirs_cfg, pad_id=tokenizer.pad).to(process.device)
        model.load_state_dict(weights)
        objective = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=tokenizer.pad)

        def loss() -> Tensor:
            out = model(pixels, full)
            parts = (out[name] for name in ("image_features", "text_features", "logits", "labels", "logit_scale"))
            contrastive, captioning = objective(*parts)
            return contrastive + captioning

        return _their_step(model, loss, process, precision)

    steps = {
        "fp32, 76 tokens": ours(full, "fp32"),
        "bf16, 76 tokens": ours(full, "bf16"),
        "open_clip fp32": theirs("fp32"),
        "open_clip amp_bf16": theirs("bf16"),
    }
    our_fp32, our_bf16, fp32, bf16 = steps
    return _step_rows("coca step", steps, [(our_fp32, fp32, "fp32"), (our_bf16, bf16, "bf16")], setting)


def siglip_step(bench: Bench) -> list[Row]:
    """Against transformers, whose SigLIP can be built in any size. Texts always have 64 tokens: SigLIP reads the last one."""
    setting, process = bench.setting, bench.process
    layers = {"num_hidden_layers": setting.depth, "hidden_size": setting.width, "num_attention_heads": setting.width // 64}
    sizes = {**layers, "intermediate_size": 4 * setting.width}
    config = transformers.SiglipConfig(
        vision_config={**sizes, "image_size": setting.image, "patch_size": 8},
        text_config={**sizes, "vocab_size": 49408, "max_position_embeddings": 64, "projection_size": setting.width},
    )
    torch.manual_seed(0)
    weights = transformers.SiglipModel(config).state_dict()
    batch, full = _batch(bench, context=64)
    pixels = normalise(batch["pixels"], HALF, HALF)

    def ours(precision: str) -> Callable[[], float]:
        model = SigLIP(config_from_transformers(config), OpenCLIPTokenizer()).to(process.device)
        model.load_state_dict(from_transformers(weights))
        return _our_step(model, batch | {"ids": full}, process, precision)

    def theirs(precision: str) -> Callable[[], float]:
        model = transformers.SiglipModel(config).to(process.device).train()
        model.load_state_dict(weights)
        return _their_step(model, lambda: model(input_ids=full, pixel_values=pixels, return_loss=True).loss, process, precision)

    steps = {
        "fp32, 64 tokens": ours("fp32"),
        "bf16, 64 tokens": ours("bf16"),
        "transformers fp32": theirs("fp32"),
        "transformers bf16 autocast": theirs("bf16"),
    }
    our_fp32, our_bf16, fp32, bf16 = steps
    return _step_rows("siglip step", steps, [(our_fp32, fp32, "fp32"), (our_bf16, bf16, "bf16")], setting)


def _our_step(model: CLIP | CoCa | SigLIP, batch: dict[str, Tensor], process: Process, precision: str) -> Callable[[], float]:
    autocast = process.autocast(precision)
    return _optimised(model, lambda: backward(model, batch, micro_batch=None, autocast=autocast).total, process)


def _their_step(model: nn.Module, loss: Callable[[], Tensor], process: Process, precision: str) -> Callable[[], float]:
    autocast = process.autocast(precision)

    def run() -> Tensor:
        with autocast:
            value = loss()
        value.backward()
        return value

    return _optimised(model, run, process)


def _optimised(model: nn.Module, run: Callable[[], Tensor], process: Process) -> Callable[[], float]:
    """One step: gradients by `run`, AdamW, and the logit scale kept in its range."""
    optimizer = optimiser(model, OPTIM, fused=process.device.type == "cuda")

    def step() -> float:
        loss = run()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # type: ignore[operator]
        return loss.item()  # waits for the device

    return step


def _step_rows(what: str, steps: dict[str, Callable[[], float]], pairs: list[tuple[str, str, str]], setting: Setting) -> list[Row]:
    losses = {name: step() for name, step in steps.items()}
    if max(losses.values()) - min(losses.values()) > 0.05:
        raise RuntimeError(
            f"the same weights and samples should give the same loss, but gave {losses}: this compares different computations"
        )
    timed = interleaved(steps, setting.repeats)
    towers = f"{setting.width} x {setting.depth}"
    shapes = f"ViT {towers}, {setting.image} px / 8; text {towers}; batch {setting.batch}"
    return [row_of(what, ours, theirs, shapes, timed, setting.batch, alike) for ours, theirs, alike in pairs]


def _default(process: Process) -> str:
    return "fp32" if isinstance(process.autocast("auto"), contextlib.nullcontext) else "bf16"


def _batch(bench: Bench, *, context: int, tokenizer: Tokenizer | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """A batch of the data set as our loader gives it, and its texts at full length; with CLIP's tokenizer unless another is given."""
    setting, process = bench.setting, bench.process
    tokenizer = tokenizer or OpenCLIPTokenizer()
    collate = PairCollate(ImageTransform(setting.image), tokenizer, context)
    batch = next(iter(Loader(bench.split, batch_size=setting.batch, collate=collate, memory_budget=0)))
    full = torch.full((setting.batch, context), tokenizer.pad)
    full[:, : batch["ids"].shape[1]] = batch["ids"]
    return {name: rows.to(process.device) for name, rows in batch.items()}, full.to(process.device)


BENCHES = {"clip": clip_step, "coca": coca_step, "siglip": siglip_step}
