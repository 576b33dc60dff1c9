"""Drawings per second against transformers' `generate` on the same weights; rows of `make bench`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
import transformers
from transformers import OPTConfig, OPTForCausalLM

from models.clip import CLIPConfig
from models.cm3leon import CM3leon, CM3leonConfig
from models.cm3leon.convert import to_opt
from models.cm3leon.decoder import DecoderConfig
from models.cm3leon.drawing import Sampling
from models.cm3leon.sequence import Token
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from models.vq import VQConfig
from recipes.bench.ratios import Bench, Row, interleaved, row_of
from recipes.train.distributed import Process

WIDTH = 192
TEXTS = ("a red star", "a large solid blue circle", "a small hollow pink moon above a striped green arrow", "two objects")


def drawing(bench: Bench) -> list[Row]:
    """Image tokens only: neither side decodes them into pixels, which transformers does not support."""
    depth, batch, process, repeats = bench.setting.draw_depth, bench.setting.draw_batch, bench.process, bench.setting.repeats
    model = _model(depth).to(process.device).eval()
    theirs = _opt(model).to(process.device).eval()
    texts = [TEXTS[index % len(TEXTS)] for index in range(batch)]
    contestants: dict[str, Callable[[], object]] = {}
    pairs = []
    for precision, guidance in product(("fp32", "bf16"), (1.0, 2.0)):
        how = f"{precision}, no guidance" if guidance == 1 else f"{precision}, guidance {guidance:g}"
        ours, reference = f"draw, {how}", f"transformers {transformers.__version__} OPT generate, {how}"
        contestants[ours] = _in(process, precision, _ours(model, texts, guidance))
        contestants[reference] = _in(process, precision, _theirs(theirs, model, texts, guidance))
        pairs.append((ours, reference, precision))
    timed = interleaved(contestants, repeats)
    shapes = f"decoder {WIDTH} x {depth}, {model.cells} image tokens, batch {batch}"
    return [row_of("drawing", ours, reference, shapes, timed, batch, precision) for ours, reference, precision in pairs]


def _model(depth: int) -> CM3leon:
    tokenizer = BPETokenizer.train(TEXTS, 400)  # as in tiny: with a large vocabulary, the output layer would dominate the time
    small = TransformerConfig(width=64, depth=1, heads=1)
    retriever = CLIPConfig(
        vision=VisionConfig(width=64, depth=1, heads=1, image_size=64, patch_size=16), text=small, vocab_size=tokenizer.vocab_size
    )
    decoder = DecoderConfig(width=WIDTH, depth=depth, heads=WIDTH // 64, hidden=4 * WIDTH, positions=512)
    config = CM3leonConfig(
        decoder=decoder, image_tokenizer=VQConfig.tiny(), retriever=retriever, vocab_size=tokenizer.vocab_size, text=32, memory=0
    )
    torch.manual_seed(0)
    return CM3leon(config, tokenizer)


def _opt(model: CM3leon) -> OPTForCausalLM:
    decoder = model.config.decoder
    theirs = OPTForCausalLM(
        OPTConfig(
            vocab_size=model.vocabulary.size,
            hidden_size=decoder.width,
            word_embed_proj_dim=decoder.width,
            ffn_dim=decoder.hidden,
            num_hidden_layers=decoder.depth,
            num_attention_heads=decoder.heads,
            max_position_embeddings=decoder.positions,
            enable_bias=False,
            layer_norm_elementwise_affine=False,
            dropout=0.0,
            attention_dropout=0.0,
            pad_token_id=0,
            bos_token_id=model.builder.start,
            eos_token_id=None,
        )
    )
    theirs.load_state_dict(to_opt(model.decoder.state_dict()))
    return theirs


def _in(process: Process, precision: str, run: Callable[[], object]) -> Callable[[], object]:
    def in_precision() -> object:
        with process.autocast(precision):
            return run()

    return in_precision


def _ours(model: CM3leon, texts: list[str], guidance: float) -> Callable[[], object]:
    rows = [model.builder.drawing(model.tokenizer.encode(text)) for text in texts]
    free = [model.builder.drawing(None)] * len(rows)
    how = Sampling(guidance=guidance)

    @torch.no_grad()
    def run() -> object:
        return model._codes(rows, free, None, first=model.frame.picture, seed=0, how=how)

    return run


def _theirs(theirs: OPTForCausalLM, model: CM3leon, texts: list[str], guidance: float) -> Callable[[], object]:
    """Its own sampling over the whole vocabulary: restricting it to image tokens would cost another pass over the logits."""
    device = theirs.device
    prompts = _padded([model.builder.drawing(model.tokenizer.encode(text)) for text in texts])
    free = _padded([model.builder.drawing(None)] * len(texts))
    guided = {}
    if guidance != 1:
        guided = {
            "guidance_scale": guidance,
            "negative_prompt_ids": free[0].to(device),
            "negative_prompt_attention_mask": free[1].to(device),
        }

    @torch.no_grad()
    def run() -> object:
        return theirs.generate(
            input_ids=prompts[0].to(device),
            attention_mask=prompts[1].to(device),
            do_sample=True,
            top_k=0,
            max_new_tokens=model.cells,
            **guided,
        )

    return run


def _padded(rows: list[list[Token]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + [token.id for token in row] for row in rows])
    seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, seen


BENCHES = {"drawing": drawing}
