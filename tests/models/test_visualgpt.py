"""VisualGPT's fused layers against a layer written out, and VC-GPT against transformers' GPT-2 with torch's own decoder."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, OPTConfig

import models
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.contract import IGNORE_INDEX
from models.flamingo import VCGPT, VCGPTConfig, VisualGPT, VisualGPTConfig
from models.flamingo.visualgpt import srau
from models.lm.corpus import documents
from models.shared.backbones import LanguageConfig, decoder_layers, language_model
from models.shared.generate import Decoding
from models.shared.prefix import PADDING
from models.shared.text import BPETokenizer
from tests.models.kit import assert_close, randomise

LANGUAGE = LanguageConfig(width=32, depth=2, heads=2, hidden=48)
KINDS = (VisualGPT, VCGPT)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(6)]


@pytest.fixture(scope="module")
def words(samples: list[Sample]) -> BPETokenizer:
    return BPETokenizer.train([text for sample in samples for text in documents([sample], np.random.default_rng(0))], 400)


def gpt2(words: BPETokenizer) -> LanguageConfig:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=words.vocab_size, n_positions=128)
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "model_type": "gpt2"}
    return LanguageConfig(architecture=json.dumps(json.loads(config.to_json_string()) | quiet))


def build(kind: Any, words: BPETokenizer, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"vocab_size": words.vocab_size, "language": LANGUAGE, "heads": 2, "context": 48}
    settings |= {"levels": 2, "encoder_hidden": 24} if kind is VisualGPT else {}
    model = kind(replace(kind.Config.tiny(), **settings | changes), words).eval()
    randomise(model, 1)
    return model


def by_hand(model: VisualGPT, a: Tensor, levels: list[Tensor], block: Any, norm: nn.Module) -> Tensor:
    """Equations of the sheet, head by head, for tokens that all see one picture. a `[T, D]`, levels `[N, D]`."""
    total = torch.zeros_like(a)
    heads, width = 2, a.shape[-1]
    q_all = norm(a) @ block.attention.q.weight.T + block.attention.q.bias
    for number, level in enumerate(levels):
        kv = norm(level) @ block.attention.kv.weight.T + block.attention.kv.bias
        found = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            weights = (q_all[:, part] @ kv[:, :width][:, part].T / (width / heads) ** 0.5).softmax(-1)
            found.append(weights @ kv[:, width:][:, part])
        v = torch.cat(found, -1) @ block.attention.proj.weight.T + block.attention.proj.bias
        alpha = torch.sigmoid(block.weigh[number](torch.cat([a, v], -1)))
        language = torch.where(alpha > model.config.tau, alpha, torch.zeros(()))
        vision = torch.where(1 - alpha > model.config.tau, 1 - alpha, torch.zeros(()))
        total += language * a + vision * v
    return total / len(levels) ** 0.5


@pytest.mark.parametrize("language", ["llama", "gpt2"])
def test_a_layer_is_self_attention_then_fusion_then_mlp(words: BPETokenizer, samples: list[Sample], language: str) -> None:
    """The whole language model, layer by layer, with the fusion written out."""
    model = build(VisualGPT, words, **({"language": gpt2(words)} if language == "gpt2" else {}))
    batch = model.collate(samples[:1])
    inner = model.language.model if language == "llama" else model.language.transformer
    with torch.no_grad():
        media = model._media(batch["pixels"][0])[None]  # [1, 1, levels, N, D]
        found = model._read(batch["ids"], torch.zeros_like(batch["seen"]), media)
        x = model._embed(batch["ids"])
        size = x.shape[1]
        mask = torch.full((1, 1, size, size), torch.finfo(x.dtype).min).triu(1)
        if language == "llama":
            rotary = inner.rotary_emb(x, torch.arange(size)[None])
        else:
            x = x + inner.wpe(torch.arange(size))[None]
        for block, layer in zip(model.blocks, decoder_layers(model.language), strict=True):
            if language == "llama":
                norm, after, mlp = layer.input_layernorm, layer.post_attention_layernorm, layer.mlp
                attended = layer.self_attn.__class__.forward(layer.self_attn, norm(x), position_embeddings=rotary, attention_mask=mask)[0]
            else:
                norm, after, mlp = layer.ln_1, layer.ln_2, layer.mlp
                attended = layer.attn.__class__.forward(layer.attn, norm(x), attention_mask=mask)[0]
            h = by_hand(model, (x + attended)[0], list(media[0, 0]), block, norm)[None]
            x = h + mlp(after(h))
        expected = model.language.lm_head((inner.norm if language == "llama" else inner.ln_f)(x))
    assert_close(found, expected, "logits")


def test_srau_cuts_small_shares_and_passes_no_gradient_through_the_threshold() -> None:
    alpha = torch.tensor([0.1, 0.2, 0.5, 0.81, 0.9], requires_grad=True)
    assert srau(alpha, 0.2).tolist() == pytest.approx([0, 0, 0.5, 0.81, 0.9])
    assert srau(1 - alpha, 0.2).tolist() == pytest.approx([0.9, 0.8, 0.5, 0, 0])
    srau(alpha, 0.2).sum().backward()
    assert alpha.grad.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("gate", ["plain", "tanh"])
def test_other_gates(words: BPETokenizer, samples: list[Sample], gate: str) -> None:
    model = build(VisualGPT, words, gate=gate)
    a, batch = torch.randn(1, 5, 32), model.collate(samples[:1])
    media = model._media(batch["pixels"][0])[None]
    model._look_at(media, torch.zeros(1, 5, dtype=torch.long))
    block = model.blocks[0]
    v = [block.attention(block._norm[0](a), level) for level in range(2)]
    weights = [1.0, 1.0] if gate == "plain" else torch.tanh(block.open).tolist()
    assert_close(block.fuse(a), a + sum(w * each for w, each in zip(weights, v, strict=True)) / 2, "fused")
    if gate == "tanh":
        fresh = VisualGPT(model.config, words).eval()
        plain = language_model(replace(model.config.language, vocab_size=words.vocab_size)).eval()
        plain.load_state_dict(fresh.language.state_dict())
        mask = (batch["ids"] != PADDING).long()
        expected = plain(inputs_embeds=fresh._embed(batch["ids"]), attention_mask=mask).logits
        found = fresh._read(batch["ids"], batch["seen"], fresh._media(batch["pixels"][0])[None])
        assert_close(found, expected, "logits behind closed gates")


def test_vcgpt_is_gpt2_with_torchs_decoder_on_top(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(VCGPT, words, language=gpt2(words))
    theirs = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(32, 2, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True), 2, norm=model.norm
    ).eval()
    # Torch's layer projects a memory of its own width: the image's states are widened by their keys' and values' projections.
    batch = model.collate(samples)
    with torch.no_grad():
        media = model._media(batch["pixels"].flatten(0, 1))  # [B, N, 160]
        found = model._read(batch["ids"], torch.zeros_like(batch["seen"]), media[:, None])
        mask = (batch["ids"] != PADDING).long()
        out = model.language(inputs_embeds=model._embed(batch["ids"]), attention_mask=mask, output_hidden_states=True)
        x, causal = out.hidden_states[-1], nn.Transformer.generate_square_subsequent_mask(batch["ids"].shape[1])
        for ours, layer in zip(model.blocks, theirs.layers, strict=True):
            copied(layer.self_attn, ours.self_attention.qkv, ours.self_attention.proj)
            for name in ("norm1", "norm2", "norm3"):
                getattr(layer, name).load_state_dict(getattr(ours, name).state_dict())
            layer.linear1.load_state_dict(ours.fc1.state_dict())
            layer.linear2.load_state_dict(ours.fc2.state_dict())
            cross = nn.MultiheadAttention(32, 2, kdim=160, vdim=160, batch_first=True).eval()
            cross.q_proj_weight.copy_(ours.attention.q.weight)
            cross.k_proj_weight.copy_(ours.attention.kv.weight[:32])
            cross.v_proj_weight.copy_(ours.attention.kv.weight[32:])
            cross.in_proj_bias.copy_(torch.cat([ours.attention.q.bias, ours.attention.kv.bias]))
            cross.out_proj.load_state_dict(ours.attention.proj.state_dict())
            layer.multihead_attn = cross
            x = layer(x, media, tgt_mask=causal, tgt_is_causal=True)
        expected = out.logits + model.fuse_head(model.norm(x))
    real = mask.bool()
    assert_close(found[real], expected[real], "logits")
    with torch.no_grad():
        model.fuse_head.weight.zero_()
        assert torch.equal(model._read(batch["ids"], batch["seen"], media[:, None]), out.logits)


def copied(theirs: nn.MultiheadAttention, qkv: nn.Linear, proj: nn.Linear) -> None:
    theirs.in_proj_weight.copy_(qkv.weight)
    theirs.in_proj_bias.copy_(qkv.bias)
    theirs.out_proj.load_state_dict(proj.state_dict())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_equals_decoding_without_a_cache(words: BPETokenizer, samples: list[Sample], kind: Any, beams: int) -> None:
    model = build(kind, words, context=24)
    images, how = [sample.image for sample in samples[:4]], Decoding(beams=beams)
    together = model.caption(images, how=how)
    assert together == [model.caption([image], how=how)[0] for image in images]
    row, shown = model._row([images[0]])
    ids, seen = list(row.ids), list(row.seen)
    while beams == 1 and len(ids) < len(row.ids) + model.config.context:
        with torch.no_grad():
            logits = model._read(torch.tensor([ids]), torch.tensor([seen]), model._look(shown)[None])[0, -1]
        logits[[words.pad, words.start]] = float("-inf")
        if (token := int(logits.argmax())) == words.end:
            break
        ids.append(token)
        seen.append(seen[-1])
    assert beams > 1 or together[0] == words.decode(ids[len(row.ids) :])
    questions = ["how many objects are there?", "what colour is the star?"]
    assert model.answer(images[:2], questions) == [model.answer([image], [each])[0] for image, each in zip(images, questions, strict=False)]


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_those_of_the_loss(words: BPETokenizer, samples: list[Sample], kind: Any) -> None:
    model = build(kind, words)
    texts = [sample.captions[0] for sample in samples]
    batch = model.collate([replace(sample, questions=()) for sample in samples])
    expected = -model.encode(batch)["nll"].detach()
    assert_close(model.score([sample.image for sample in samples], texts), expected, "log-likelihood")
    other = model.score([samples[1].image, samples[0].image], texts[:2])
    assert not torch.allclose(other, expected[:2], atol=1e-4)
    assert len(model.score([], [])) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_image_tower_learns(words: BPETokenizer, samples: list[Sample], kind: Any) -> None:
    model = build(kind, words)
    batch = model.collate(samples, np.random.default_rng(0))
    assert (batch["labels"] != IGNORE_INDEX).any()
    model(batch).total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith("visual.")), name
    assert not batch["paged"].any()


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_saved_models(words: BPETokenizer, samples: list[Sample], kind: Any, tmp_path: Any) -> None:
    model = build(kind, words)
    other, batch = copy.deepcopy(model), model.collate(samples)
    expected = float(model(batch).total)
    randomise(model, 3)
    assert float(other(batch).total) == pytest.approx(expected, abs=1e-6)
    models.save(other, tmp_path / "run")
    assert float(models.load(tmp_path / "run")(batch).total) == pytest.approx(expected, abs=1e-6)


def test_without_pictures_texts_are_completed_all_the_same(words: BPETokenizer) -> None:
    for kind in KINDS:
        (text,) = build(kind, words).complete([["a red"]])
        assert isinstance(text, str)


def test_what_cannot_be_is_refused(words: BPETokenizer) -> None:
    with pytest.raises(ValueError, match=r"--model\.tau is 0\.5, expected 0 to below 0\.5"):
        build(VisualGPT, words, tau=0.5)
    opt = json.loads(
        OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48, word_embed_proj_dim=32).to_json_string()
    )
    described = json.dumps(opt | {"model_type": "opt", "vocab_size": words.vocab_size})
    with pytest.raises(ValueError, match="expected a layer like Llama's or GPT-2's"):
        build(VisualGPT, words, language=LanguageConfig(architecture=described))
    assert VCGPTConfig.tiny().pages == VisualGPTConfig.tiny().pages == 0
