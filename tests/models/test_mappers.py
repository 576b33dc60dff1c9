"""ClipCap and MAPL on Frozen's language side: mappers, loss and gradients against second derivations written from the papers' code."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.clip import CLIP, CLIPConfig
from models.frozen import MAPL, ClipCap, ClipCapConfig, MAPLConfig
from models.lm import LM, LMConfig
from models.lm.corpus import documents
from models.shared.backbones import LanguageConfig
from models.shared.images import normalise
from models.shared.prefix import PADDING, embed
from models.shared.prefix_model import STATES
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import image_states
from tests.models.kit import assert_close, randomise, tokenizer

LANGUAGE = LanguageConfig(width=32, depth=2, heads=2, hidden=48)
MAPPER = TransformerConfig(width=16, depth=2, heads=2, activation="relu", mlp_ratio=2.0)
VISION = replace(ClipCapConfig.tiny().vision, width=24, depth=2, heads=2)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(16)]


@pytest.fixture(scope="module")
def words(samples: list[Sample]) -> BPETokenizer:
    return BPETokenizer.train([text for sample in samples for text in documents([sample], np.random.default_rng(0))], 500)


def clip(words: BPETokenizer, **changes: Any) -> CLIP:
    text = TransformerConfig(width=16, depth=1, heads=2)
    model = CLIP(CLIPConfig(**{"vision": VISION, "text": text, "embed_dim": 20, "vocab_size": words.vocab_size} | changes), words)
    randomise(model, 2)
    return model.eval()


def build(kind: str, words: BPETokenizer, **changes: Any) -> Any:
    torch.manual_seed(0)
    shared: dict[str, Any] = {"vision": VISION, "language": LANGUAGE, "vocab_size": words.vocab_size, "embed_dim": 20}
    if kind == "mapl":
        model: Any = MAPL(replace(MAPLConfig.tiny(), mapper=MAPPER, prefix=5, **shared, **changes), words)
    else:
        config = replace(ClipCapConfig.tiny(), mapper=kind, prefix=3, clip_length=2, depth=2, heads=4, **shared)
        model = ClipCap(replace(config, **changes), words)
    randomise(model, 1)
    return model.eval()


KINDS = pytest.mark.parametrize("kind", ["mlp", "transformer", "mapl"])


# ------------------------------------------------------------------------------------------------------- mappers


def clipcap_layer(x: Tensor, block: Any, heads: int) -> Tensor:
    """A layer of the authors' transformer: queries of one matrix, keys and values of another, none with a bias; one head and one position
    at a time."""
    width = x.shape[1]
    y = F.layer_norm(x, (width,), block.norm1.weight, block.norm1.bias)
    to_queries, to_keys_values = block.attn.qkv.weight[:width], block.attn.qkv.weight[width:]
    queries = (y @ to_queries.T).reshape(len(y), heads, width // heads)
    keys, values = (y @ to_keys_values.T).reshape(len(y), 2, heads, width // heads).unbind(1)
    out = torch.zeros_like(queries)
    for head in range(heads):
        for n in range(len(y)):
            weights = torch.stack([queries[n, head] @ keys[m, head] / math.sqrt(width // heads) for m in range(len(y))]).softmax(dim=0)
            out[n, head] = sum(weight * values[m, head] for m, weight in enumerate(weights))
    x = x + out.reshape(len(y), width) @ block.attn.proj.weight.T + block.attn.proj.bias
    y = F.layer_norm(x, (width,), block.norm2.weight, block.norm2.bias)
    hidden = (y @ block.fc1.weight.T + block.fc1.bias).clamp(min=0)
    return x + hidden @ block.fc2.weight.T + block.fc2.bias


def slowly(kind: str, model: Any, states: Tensor) -> Tensor:
    """The prefix of each image by the papers' formulas."""
    mapper = model.to_prefix
    if kind == "mlp":
        first, _, second, _ = mapper
        hidden = torch.tanh(states @ first.weight.T + first.bias)
        return (hidden @ second.weight.T + second.bias).reshape(len(states), model.config.prefix, LANGUAGE.width)
    if kind == "transformer":
        rows = []
        for embedding in states:
            tokens = (mapper.linear.weight @ embedding + mapper.linear.bias).reshape(model.config.clip_length, LANGUAGE.width)
            x = torch.cat([tokens, mapper.transformer.constants])
            for block in mapper.transformer.blocks:
                x = clipcap_layer(x, block, model.config.heads)
            rows.append(x[model.config.clip_length :])
        return torch.stack(rows)
    config = model.config.mapper  # MAPL's is torch's own encoder
    x = F.linear(states, mapper.down.weight, mapper.down.bias)
    x = torch.cat([x, mapper.transformer.constants.expand(len(x), -1, -1)], dim=1)
    for block in mapper.transformer.blocks:
        layer = nn.TransformerEncoderLayer(config.width, config.heads, 2 * config.width, 0.0, batch_first=True, norm_first=True)
        named = {
            "self_attn.in_proj_weight": block.attn.qkv.weight,
            "self_attn.in_proj_bias": block.attn.qkv.bias,
            "self_attn.out_proj.weight": block.attn.proj.weight,
            "self_attn.out_proj.bias": block.attn.proj.bias,
            "linear1.weight": block.fc1.weight,
            "linear1.bias": block.fc1.bias,
            "linear2.weight": block.fc2.weight,
            "linear2.bias": block.fc2.bias,
            "norm1.weight": block.norm1.weight,
            "norm1.bias": block.norm1.bias,
            "norm2.weight": block.norm2.weight,
            "norm2.bias": block.norm2.bias,
        }
        x = torch.func.functional_call(layer, named, (x,))
    return F.linear(x[:, -model.config.prefix :], mapper.up.weight, mapper.up.bias)


@KINDS
def test_prefix_loss_and_gradients_are_the_second_derivations(kind: str, words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(kind, words)
    batch = model.collate(samples[:4], np.random.default_rng(0))
    pixels, ids = batch["pixels"], batch["ids"]
    losses = model(batch)
    losses.total.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    assert {name.split(".")[0] for name in gradients} == {"to_prefix"}
    model.zero_grad()
    with torch.no_grad():
        states = model._tower(normalise(pixels, model.config.mean, model.config.std))
    soft = slowly(kind, model, states)
    assert_close(model._see(pixels), soft, "prefix")
    out = model.language(inputs_embeds=embed(model.language, ids, soft), attention_mask=(ids != PADDING).long(), labels=batch["labels"])
    assert_close(losses.total, out.loss, "loss")
    out.loss.backward()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 1e-6, name
        assert_close(gradient, model.get_parameter(name).grad, f"gradient of {name}")


@KINDS
def test_the_language_model_is_tuned_only_if_it_should_be(kind: str, words: BPETokenizer, samples: list[Sample]) -> None:
    for tuned in (False, True):
        model = build(kind, words, tune_language=tuned)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
        model(model.collate(model.precompute(samples), np.random.default_rng(0))).total.backward()
        optimizer.step()
        learns = ("to_prefix.", "language.") if tuned else ("to_prefix.",)
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == name.startswith(learns), name
        for name, value in model.state_dict().items():
            assert torch.equal(before[name], value) != name.startswith(learns), name


# ------------------------------------------------------------------------------------------------------- towers


def test_clipcap_reads_clips_embedding(words: BPETokenizer, samples: list[Sample]) -> None:
    """Before it is divided by its length, unless told otherwise."""
    source, images = clip(words), [sample.image for sample in samples[:3]]
    model = build("mlp", words)
    model.adopt({"vision": source})
    states = model._states(model.transform(images))
    assert torch.allclose(F.normalize(states, dim=-1), source.encode_image(images), atol=1e-5)
    assert not torch.allclose(states.norm(dim=-1), torch.ones(3), atol=1e-2)
    unit = build("mlp", words, normalise=True)
    unit.adopt({"vision": source})
    unit.to_prefix.load_state_dict(model.to_prefix.state_dict())
    assert torch.allclose(unit._see(model.transform(images)), unit.to_prefix(source.encode_image(images)), atol=1e-5)


def test_mapl_reads_all_states_before_the_last_norm(words: BPETokenizer, samples: list[Sample]) -> None:
    """With a class token they are one more than patches."""
    vision = replace(VISION, stem="patch", pool="token", pre_norm=True)
    source, images = clip(words, vision=vision), [sample.image for sample in samples[:2]]
    model = build("mapl", words)
    model.adopt({"vision": source})
    pixels = model.transform(images)
    states = model._states(pixels)
    assert states.shape == (2, 17, VISION.width)
    with torch.no_grad():
        normal = normalise(pixels, model.config.mean, model.config.std)
        assert torch.allclose(states, image_states(source.visual, normal), atol=1e-6)
        assert torch.allclose(source.visual.norm(states)[:, 0], source.visual(normal), atol=1e-5)
    assert model.look(images).shape == (2, 5, LANGUAGE.width)


@KINDS
def test_a_clip_of_another_size_is_taken_over_with_its_size(kind: str, words: BPETokenizer, samples: list[Sample], tmp_path: Any) -> None:
    source = clip(words, vision=replace(VISION, width=28, depth=1, image_size=32), embed_dim=12, mean=(0.1, 0.2, 0.3))
    model, lm = build(kind, words), LM(LMConfig(language=LANGUAGE, vocab_size=words.vocab_size), words)
    randomise(lm, 3)
    model.adopt({"vision": source, "language_model": lm})
    assert (model.config.vision, model.config.embed_dim, model.config.mean) == (source.config.vision, 12, (0.1, 0.2, 0.3))
    assert all(torch.equal(value, model.visual.state_dict()[name]) for name, value in source.visual.state_dict().items())
    assert all(torch.equal(value, model.language.state_dict()[name]) for name, value in lm.language.state_dict().items())
    assert model(model.collate(samples[:2])).total.isfinite()
    models.save(model, tmp_path / "run")
    back: Any = models.load(tmp_path / "run")
    images = [sample.image for sample in samples[:2]]
    assert back.caption(images) == model.eval().caption(images)
    assert torch.equal(back.score(images, ["a star"] * 2), model.score(images, ["a star"] * 2))


def test_what_is_not_a_clip_is_refused(words: BPETokenizer) -> None:
    lm = LM(LMConfig(language=LANGUAGE, vocab_size=words.vocab_size), words)
    for kind in ("mlp", "mapl"):
        with pytest.raises(ValueError, match="sees with a CLIP, not with LM"):
            build(kind, words).adopt({"vision": lm})
    lit = clip(words, image_head=False, embed_dim=VISION.width)
    with pytest.raises(ValueError, match="no projection of images"):
        build("mlp", words).adopt({"vision": lit})
    build("mapl", words).adopt({"vision": lit})  # reads states alone
    with pytest.raises(ValueError, match=r"--model.clip-length is 0"):
        build("transformer", words, clip_length=0)


@KINDS
def test_cached_states_are_learned_from_as_pixels_are(kind: str, words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(kind, words)
    known = model.precompute(samples[:6])
    assert known[0].extra[STATES].dtype == np.float16
    cached, seen = (model.collate(some, np.random.default_rng(3)) for some in (known, samples[:6]))
    assert torch.equal(cached["ids"], seen["ids"])
    assert "pixels" not in cached
    assert model(cached).total.item() == pytest.approx(model(seen).total.item(), abs=2e-3)
    blind = build(kind, words, blind=True)
    one, other = (each.extra[STATES] for each in blind.precompute(samples[:2]))
    assert np.array_equal(one, other)


# -------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ({}, 41_745_408),
        ({"embed_dim": 640, "prefix": 40, "clip_length": 40}, 57_520_128),
        ({"mapper": "mlp"}, 31_468_800),
    ],
)
def test_clipcaps_mappers_have_the_sizes_of_the_authors_code(changes: dict[str, Any], trained: int) -> None:
    gpt2 = LanguageConfig(width=768, depth=1, heads=12, hidden=64)
    with torch.device("meta"):
        model = ClipCap(replace(ClipCapConfig.paper(), language=gpt2, **changes), tokenizer(pad=0, end=2))
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == trained


def test_mapl_trains_3_4_million_parameters() -> None:
    gptj = LanguageConfig(width=4096, depth=1, heads=16, hidden=64)
    with torch.device("meta"):
        model = MAPL(replace(MAPLConfig.paper(), language=gptj), tokenizer(pad=0, end=2))
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 3_431_680
