"""Captions per second of models that speak through a language model, against transformers on the same weights; rows of `make bench`.

With random weights captions would not end where real ones do: both models first learn a batch's captions by heart, language model
and all. Both sides must then write the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, LlamaConfig

from data.loader import in_order
from data.sample import Sample
from models.blip2 import BLIP2, BLIP2Config
from models.blip2.convert import to_conditional_generation
from models.frozen import FrozenConfig
from models.minigpt4 import MiniGPT4, MiniGPT4Config
from models.shared.backbones import language_model
from models.shared.chat import Turn, laid_out
from models.shared.generate import Decoding, not_text
from models.shared.images import ImageTransform, normalise
from models.shared.prefix import SOFT, PrefixCollate, continued, embed, nll
from models.shared.prompts import DESCRIBE
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from recipes.bench.ratios import Bench, Row, interleaved, row_of
from recipes.train.distributed import Process
from recipes.train.optimiser import optimiser
from recipes.train.recipe import Optim

FROZEN, QFORMER = FrozenConfig.tiny(), TransformerConfig(width=160, depth=4, heads=5)
BLIP2_SIZES = replace(
    BLIP2Config.tiny(), vision=VisionConfig(width=160, depth=3, heads=5, image_size=64, patch_size=8, norm_eps=1e-6), qformer=QFORMER
)
LESSONS = 100  # steps in which a batch's captions are learned
LIMIT = 40  # tokens
BEAMS = 5  # BLIP-2's, section 4.2


def prefixed(bench: Bench) -> list[Row]:
    """Frozen from its vectors on, for its image encoder is anybody's; BLIP-2 from pixels on, greedy and by beam search;
    MiniGPT-4 from pixels on, asked to describe them."""
    split, batch, process, repeats = bench.split, bench.setting.draw_batch, bench.process, bench.setting.repeats
    samples = next(in_order(split, batch_size=batch, needs=("captions",)))
    tokenizer = BPETokenizer.train([sample.captions[0] for sample in samples], 436)
    return [
        *_frozen(samples, tokenizer, process, repeats),
        *_blip2(samples, tokenizer, process, repeats),
        *_minigpt4(samples, tokenizer, process, repeats),
    ]


def _frozen(samples: Sequence[Sample], tokenizer: BPETokenizer, process: Process, repeats: int) -> list[Row]:
    torch.manual_seed(0)
    language: Any = language_model(replace(FROZEN.language, vocab_size=tokenizer.vocab_size)).to(process.device)
    soft = nn.Parameter(torch.randn(len(samples), FROZEN.prefix, FROZEN.language.width, device=process.device))
    sequences = PrefixCollate(ImageTransform(FROZEN.vision.image_size), tokenizer, FROZEN.prefix, LIMIT, 0.0)
    ids, labels = (rows.to(process.device) for rows in sequences.laid_out([[]] * len(samples), [sample.captions[0] for sample in samples]))
    _learn(lambda: _mean(*nll(language, ids, labels, soft)), nn.ParameterList([soft, *language.parameters()]), process)
    language.eval()
    rows = [[SOFT] * FROZEN.prefix] * len(samples)

    def ours() -> list[list[int]]:
        return continued(language, tokenizer, rows, soft, limit=LIMIT)

    @torch.no_grad()
    def theirs() -> list[list[int]]:
        embedded = embed(language, torch.tensor(rows, device=process.device), soft)
        mask = torch.ones(embedded.shape[:2], dtype=torch.long, device=process.device)
        return _cut(language.generate(inputs_embeds=embedded, attention_mask=mask, **_options(tokenizer, 1, tokenizer.end)), tokenizer.end)

    sizes = f"language model {FROZEN.language.width} x {FROZEN.language.depth}, {FROZEN.prefix} vectors an image"
    return [_row("frozen captions, greedy", ours, theirs, sizes, len(samples), repeats)]


def _blip2(samples: Sequence[Sample], tokenizer: BPETokenizer, process: Process, repeats: int) -> list[Row]:
    torch.manual_seed(0)
    model = BLIP2(replace(BLIP2_SIZES, vocab_size=tokenizer.vocab_size), tokenizer).to(process.device)
    model.enter_stage("generate")
    model.language.requires_grad_(True)
    batch = {name: rows.to(process.device) for name, rows in model.collate(samples).items()}
    _learn(lambda: model(batch).total, model, process)
    model.eval()
    theirs = _transformers_blip2(model).to(process.device).eval()
    images = [sample.image for sample in samples]
    ids = torch.full((len(samples), BLIP2_SIZES.queries), theirs.config.image_token_index, device=process.device)

    def ours(beams: int) -> Callable[[], list[list[int]]]:
        how = Decoding(beams=beams)
        return lambda: [tokenizer.encode(text) for text in model.caption(images, how=how)]

    def others(beams: int) -> Callable[[], list[list[int]]]:
        @torch.no_grad()
        def run() -> list[list[int]]:
            pixels = normalise(model.transform(images).to(process.device), BLIP2_SIZES.mean, BLIP2_SIZES.std)
            written = theirs.generate(pixel_values=pixels, input_ids=ids, **_options(tokenizer, beams, tokenizer.end))
            return [tokenizer.encode(tokenizer.decode(row)) for row in _cut(written[:, ids.shape[1] :], tokenizer.end)]

        return run

    vision, language = BLIP2_SIZES.vision, BLIP2_SIZES.language
    sizes = (
        f"ViT {vision.width} x {vision.depth}, {vision.image_size} px / {vision.patch_size}; Q-Former {QFORMER.width} x {QFORMER.depth}, "
        f"{BLIP2_SIZES.queries} queries; language model {language.width} x {language.depth}"
    )
    return [
        _row(f"blip2 captions, {how}", ours(beams), others(beams), sizes, len(samples), repeats)
        for beams, how in ((1, "greedy"), (BEAMS, f"{BEAMS} beams"))
    ]


def _minigpt4(samples: Sequence[Sample], tokenizer: BPETokenizer, process: Process, repeats: int) -> list[Row]:
    torch.manual_seed(0)
    sizes = {name: getattr(BLIP2_SIZES, name) for name in ("vision", "qformer", "queries", "every", "language")}
    config = MiniGPT4Config(**sizes, tune_qformer=True, context=LIMIT, vocab_size=tokenizer.vocab_size)
    model = MiniGPT4(config, tokenizer).to(process.device)
    model.language.requires_grad_(True)
    images = [sample.image for sample in samples]
    rows = laid_out([model.template.conversation([Turn(DESCRIBE[0], sample.captions[0])]) for sample in samples])
    batch = {name: values.to(process.device) for name, values in {"pixels": model.transform(images), **rows}.items()}
    _learn(lambda: model(batch).total, model, process)
    model.eval()
    theirs = _transformers_blip2(model).to(process.device).eval()
    prompt = torch.tensor([model.template.before_reply([], DESCRIBE[0])] * len(samples), device=process.device)
    ids, end = prompt.masked_fill(prompt == SOFT, theirs.config.image_token_index), model.template.end_of_reply[0]

    @torch.no_grad()
    def others() -> list[list[int]]:
        pixels = normalise(model.transform(images).to(process.device), config.mean, config.std)
        mask = torch.ones_like(ids)  # without it the places of the image would be taken for padding
        written = theirs.generate(pixel_values=pixels, input_ids=ids, attention_mask=mask, **_options(tokenizer, 1, end))
        return [tokenizer.encode(tokenizer.decode(row)) for row in _cut(written[:, ids.shape[1] :], end)]

    def ours() -> list[list[int]]:
        return [tokenizer.encode(text) for text in model.caption(images)]

    shapes = f"as BLIP-2's, after a request of {ids.shape[1] - config.queries} tokens"
    return [_row("minigpt4 replies, greedy", ours, others, shapes, len(samples), repeats)]


def _transformers_blip2(model: BLIP2 | MiniGPT4) -> Any:
    """The same model with the same weights; padding keeps the image's places in its prompts."""
    config, vision, words = model.config, model.config.vision, model.config.vocab_size
    theirs = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config={
                "hidden_size": vision.width,
                "intermediate_size": int(vision.width * vision.mlp_ratio),
                "num_hidden_layers": vision.depth,
                "num_attention_heads": vision.heads,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "layer_norm_eps": vision.norm_eps,
            },
            qformer_config={
                "vocab_size": words,
                "hidden_size": QFORMER.width,
                "num_hidden_layers": QFORMER.depth,
                "num_attention_heads": QFORMER.heads,
                "intermediate_size": int(QFORMER.width * QFORMER.mlp_ratio),
                "encoder_hidden_size": vision.width,
                "cross_attention_frequency": config.every,
                "layer_norm_eps": QFORMER.norm_eps,
            },
            text_config=LlamaConfig(**model.language.config.to_dict()).to_dict(),
            num_query_tokens=config.queries,
            image_token_index=model.tokenizer.pad,
        )
    )
    theirs.load_state_dict(to_conditional_generation(model.state_dict()))
    return theirs


def _row(
    name: str, ours: Callable[[], list[list[int]]], theirs: Callable[[], list[list[int]]], sizes: str, count: int, repeats: int
) -> Row:
    reference = f"transformers {transformers.__version__} generate, {name.split(', ')[1]}"
    mine, other = ours(), theirs()
    if mine != other:
        different = next(pair for pair in zip(mine, other, strict=True) if pair[0] != pair[1])
        raise RuntimeError(f"{name}: the same weights should write the same captions, but wrote {different[0]} and {different[1]}")
    contestants: Mapping[str, Callable[[], object]] = {name: ours, reference: theirs}
    lengths = [len(tokens) for tokens in mine]
    shapes = f"{sizes}, captions of {sum(lengths) / len(lengths):.0f} tokens, {max(lengths)} at most, batch {count}, fp32"
    return row_of("prefix captions", name, reference, shapes, interleaved(contestants, repeats), count, "fp32")


def _learn(loss: Callable[[], Tensor], learner: nn.Module, process: Process) -> None:
    optimizer = optimiser(learner, Optim(lr=1e-3), fused=process.device.type == "cuda")
    for _ in range(LESSONS):
        with process.autocast("auto"):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()


def _mean(total: Tensor, tokens: Tensor) -> Tensor:
    return total.sum() / tokens.sum()


def _options(tokenizer: BPETokenizer, beams: int, end: int) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": LIMIT, "do_sample": False, "eos_token_id": end, "pad_token_id": tokenizer.pad}
    options |= {"suppress_tokens": not_text(tokenizer), "renormalize_logits": True}
    return options | ({"num_beams": beams, "early_stopping": "never"} if beams > 1 else {})


def _cut(ids: Tensor, end: int) -> list[list[int]]:
    rows = [[*row, end] for row in ids.tolist()]
    return [row[: row.index(end)] for row in rows]


BENCHES = {"prefix": prefixed}
