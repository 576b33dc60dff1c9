"""LiT: the image tower is locked, nothing is projected on its side, and its features are computed once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from open_clip.loss import ClipLoss

from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.clip import CLIP, CLIPConfig
from models.clip.convert import config_from_open_clip, from_dual_encoder, from_open_clip, to_dual_encoder
from models.clip.model import TOWER
from models.shared.images import OPENAI_MEAN, OPENAI_STD, normalise
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from recipes import lit
from recipes.train.step import backward
from tests.models.kit import assert_close, assert_round_trip, pictures, randomise, texts, tokenizer

SAMPLES = [make_sample(PRESETS["tiny"], "train", index) for index in range(12)]
FULL = torch.autocast("cpu", enabled=False)


@pytest.fixture(scope="module")
def words() -> BPETokenizer:
    return BPETokenizer.train([caption for sample in SAMPLES for caption in sample.captions], 300)


def build(words: BPETokenizer, **changes: Any) -> CLIP:
    torch.manual_seed(0)
    text = TransformerConfig(width=32, depth=1, heads=2, activation="relu")
    model = CLIP(replace(lit.PRESETS["tiny"].model, text=text, vocab_size=words.vocab_size, **changes), words)
    randomise(model, 1)
    return model


def test_equals_a_locked_open_clip_whose_image_projection_is_the_identity() -> None:
    """Features, loss, and the gradient of every parameter that either side trains."""
    vision = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16}
    text = {"vocab_size": 100, "context_length": 12, "layers": 2, "width": 32, "heads": 2}
    cfg: dict[str, Any] = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    theirs = open_clip.CLIP(32, vision, text | {"eos_id": 99, "pool_type": "eos"}, output_dict=True)
    randomise(theirs, 2)
    with torch.no_grad():
        theirs.visual.proj.copy_(torch.eye(32))
    theirs.lock_image_tower(unlocked_groups=0)
    ours = CLIP(replace(config_from_open_clip(cfg), image_head=False, frozen=True), tokenizer(pad=0, end=99))
    state = from_open_clip(theirs.state_dict())
    assert torch.equal(state.pop("visual_projection.weight"), torch.eye(32))
    ours.load_state_dict(state)
    pixels, ids = pictures(5, 32), texts(5, 12, pad=0, end=99)
    out = theirs(normalise(pixels, OPENAI_MEAN, OPENAI_STD), ids)
    ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"]).backward()
    features = ours.encode({"pixels": pixels, "ids": ids})
    assert_close(features["image"], out["image_features"], "image features")
    losses = ours.objective(features)
    losses.total.backward()
    assert not any(parameter.grad is not None for parameter in [*theirs.visual.parameters(), *ours.visual.parameters()])
    found = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    for name, gradient in from_open_clip({**{key: torch.zeros_like(value) for key, value in theirs.state_dict().items()}, **found}).items():
        if not name.startswith("visual"):
            mine = ours.get_parameter(name).grad
            assert mine is not None
            assert mine.abs().max() > 1e-6
            assert_close(mine, gradient, f"gradient of {name}")


def test_weights_go_to_a_dual_encoder_of_transformers_and_back() -> None:
    """Features and loss there; with its projection the identity, which LiT does not have, or with one that was trained."""
    vision = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 128}
    text = {"vocab_size": 100, "max_position_embeddings": 12, "num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 96}
    text |= {"num_attention_heads": 2, "pad_token_id": 0, "bos_token_id": 98, "eos_token_id": 99}
    theirs = transformers.VisionTextDualEncoderModel(
        vision_model=transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision, num_attention_heads=2)),
        text_model=transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)),
        config=transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
            transformers.CLIPVisionConfig(**vision, num_attention_heads=2), transformers.CLIPTextConfig(**text), projection_dim=32
        ),
    ).eval()
    tower = VisionConfig(32, 2, 2, "quick_gelu", image_size=32, patch_size=8, pre_norm=True)
    config = CLIPConfig(
        vision=tower,
        text=TransformerConfig(24, 1, 2, "quick_gelu"),
        embed_dim=32,
        context=12,
        vocab_size=100,
        image_head=False,
        frozen=True,
    )
    ours = CLIP(config, tokenizer(pad=0, end=99)).eval()
    randomise(ours, 3)
    theirs.load_state_dict(to_dual_encoder(ours.state_dict()))
    pixels, ids = pictures(5, 32), texts(5, 12, pad=0, end=99)
    out = theirs(input_ids=ids, pixel_values=normalise(pixels, OPENAI_MEAN, OPENAI_STD), return_loss=True)
    features = ours.encode({"pixels": pixels, "ids": ids})
    assert_close(features["image"], out.image_embeds, "image features")
    assert_close(features["text"], out.text_embeds, "text features")
    assert_close(ours.objective(features).total, out.loss, "loss")
    back = from_dual_encoder(theirs.state_dict())
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in ours.state_dict().items())
    randomise(theirs, 4)
    headed = CLIP(replace(config, image_head=True), tokenizer(pad=0, end=99)).eval()
    headed.load_state_dict(from_dual_encoder(theirs.state_dict()))
    out = theirs(input_ids=ids, pixel_values=normalise(pixels, OPENAI_MEAN, OPENAI_STD))
    assert_close(headed.encode({"pixels": pixels, "ids": ids})["image"], out.image_embeds, "projected image features")
    assert_round_trip(theirs.state_dict(), from_dual_encoder, to_dual_encoder)


def test_a_tower_that_is_not_clips_goes_to_no_dual_encoder(words: BPETokenizer) -> None:
    with pytest.raises(ValueError, match=r"no counterpart.*visual\.patch_embed"):
        to_dual_encoder(build(words).state_dict())


def test_the_loss_is_the_papers_by_a_double_loop(words: BPETokenizer) -> None:
    model = build(words)
    batch = model.collate(SAMPLES[:5])
    features = {name: rows.detach().numpy().astype(np.float64) for name, rows in model.encode(batch).items()}
    scale = math.exp(model.logit_scale.item())
    logits = [[scale * float(image @ text) for text in features["text"]] for image in features["image"]]
    total = 0.0
    for i in range(5):
        total += math.log(sum(math.exp(logits[i][j]) for j in range(5))) - logits[i][i]  # text for an image
        total += math.log(sum(math.exp(logits[j][i]) for j in range(5))) - logits[i][i]  # image for a text
    assert float(model(batch).total) == pytest.approx(total / 10, rel=1e-5)


def test_features_computed_once_give_the_same_losses_and_gradients(words: BPETokenizer) -> None:
    model = build(words)
    known = model.precompute(SAMPLES)
    assert [sample.key for sample in known] == [sample.key for sample in SAMPLES]
    found = []
    for samples in (SAMPLES, known):
        model.zero_grad()
        batch = model.collate(samples, np.random.default_rng(5))
        losses = backward(model, batch, micro_batch=None, autocast=FULL)
        found.append((set(batch), losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (seen, loss, gradients), (kept, same, others) = found
    assert (seen, kept) == ({"pixels", "ids"}, {TOWER, "ids"})
    assert float(same.total) == pytest.approx(float(loss.total), rel=1e-5)
    assert gradients.keys() == others.keys() >= {"logit_scale", "text_projection.weight"}
    assert not any(name.startswith("visual") for name in gradients)
    for name, gradient in gradients.items():
        assert_close(others[name], gradient, name)


@pytest.mark.parametrize("changes", [{"random_crop": 0.9}, {"frozen": False}], ids=str)
def test_what_may_see_other_pixels_or_weights_next_time_is_not_kept(words: BPETokenizer, changes: dict[str, Any]) -> None:
    assert all(TOWER not in sample.extra for sample in build(words, **changes).precompute(SAMPLES))


def test_without_a_head_the_embedding_is_as_wide_as_the_tower() -> None:
    with pytest.raises(ValueError, match=r"--model\.embed-dim is 128, expected the image tower's width, 160"):
        replace(CLIPConfig.tiny(), image_head=False)


def test_arms_differ_in_the_tower_alone() -> None:
    base = lit.short(lit.PRESETS["tiny"])
    uu, unlocked = lit.from_scratch(base), lit.unlocked(base)
    assert (base.model.frozen, unlocked.model.frozen, uu.model.frozen) == (True, False, False)
    assert (len(base.prerequisites), len(unlocked.prerequisites), len(uu.prerequisites)) == (1, 1, 0)
    assert {recipe.schedule for recipe in (base, unlocked, uu)} == {base.schedule}
    assert replace(unlocked.model, frozen=True) == base.model


def test_samples_that_were_seen_keep_their_pictures(words: BPETokenizer) -> None:
    sample: Sample = build(words).precompute(SAMPLES[:1])[0]
    assert np.array_equal(sample.image, SAMPLES[0].image)
    assert TOWER not in SAMPLES[0].extra
