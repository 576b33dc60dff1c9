"""Our CLIP computes what open_clip's and transformers' compute: features, logits, losses and every gradient."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from open_clip.loss import ClipLoss
from torch import Tensor

from models.clip import CLIP, CLIPConfig
from models.clip.convert import (
    config_from_open_clip,
    config_from_transformers,
    from_open_clip,
    from_transformers,
    to_open_clip,
    to_transformers,
)
from models.shared.images import OPENAI_MEAN, OPENAI_STD, normalise
from tests.models.kit import assert_close, assert_round_trip, assert_same_gradients, pictures, randomise, texts, tokenizer

CONTEXT = 12
ENDS = pytest.mark.parametrize(("pad", "end"), [(0, 99), (99, 90)], ids=["padding-0", "padding-after-end-id"])
GELUS = pytest.mark.parametrize("quick", [True, False], ids=["quick_gelu", "gelu"])


@ENDS
@GELUS
def test_equals_open_clip(quick: bool, pad: int, end: int) -> None:
    cfg, theirs = _open_clip(quick, pool="argmax" if end > pad else "eos", end=end)
    ours = CLIP(config_from_open_clip(cfg), tokenizer(pad=pad, end=end))
    ours.load_state_dict(from_open_clip(theirs.state_dict()))
    pixels, ids = pictures(5, 32), texts(5, CONTEXT, pad=pad, end=end)

    out = theirs(normalise(pixels, OPENAI_MEAN, OPENAI_STD), ids)
    loss = ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"])
    loss.backward()
    _assert_same(ours, pixels, ids, out["image_features"], out["text_features"], out["logit_scale"], loss)
    assert_same_gradients(ours, theirs, from_open_clip)


@ENDS
@GELUS
def test_equals_transformers(quick: bool, pad: int, end: int) -> None:
    theirs = _transformers(quick, pad=pad, end=end)
    ours = CLIP(config_from_transformers(theirs.config), tokenizer(pad=pad, end=end))
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    pixels, ids = pictures(5, 32), texts(5, CONTEXT, pad=pad, end=end)

    out = theirs(input_ids=ids, pixel_values=normalise(pixels, OPENAI_MEAN, OPENAI_STD), return_loss=True)
    out.loss.backward()
    _assert_same(ours, pixels, ids, out.image_embeds, out.text_embeds, theirs.logit_scale.exp(), out.loss)
    image, text = _features(ours, pixels, ids)
    assert_close(ours.logit_scale.exp() * image @ text.T, out.logits_per_image, "logits")
    assert_same_gradients(ours, theirs, from_transformers)


def test_converts_there_and_back_to_the_bit() -> None:
    _, theirs = _open_clip(True)
    assert_round_trip(theirs.state_dict(), from_open_clip, to_open_clip)
    assert_round_trip(from_open_clip(theirs.state_dict()), to_transformers, from_transformers)
    assert_round_trip(_transformers(True).state_dict(), from_transformers, to_transformers)


def test_our_weights_run_in_both_libraries() -> None:
    cfg, theirs = _open_clip(False)
    ours = CLIP(config_from_open_clip(cfg), tokenizer(pad=0, end=99)).eval()
    randomise(ours, 3)
    hub = _transformers(False)
    theirs.load_state_dict(to_open_clip(ours.state_dict()))
    hub.load_state_dict(to_transformers(ours.state_dict()))
    pixels, ids = pictures(3, 32), texts(3, CONTEXT, pad=0, end=99)
    image, text = _features(ours, pixels, ids)
    out = theirs(normalise(pixels, OPENAI_MEAN, OPENAI_STD), ids)
    assert_close(image, out["image_features"], "image features")
    assert_close(text, hub(input_ids=ids, pixel_values=normalise(pixels, OPENAI_MEAN, OPENAI_STD)).text_embeds, "text features")


@ENDS
def test_text_cut_to_the_longest_caption_equals_full_length(pad: int, end: int) -> None:
    cfg, _ = _open_clip(True)
    ours = CLIP(config_from_open_clip(cfg), tokenizer(pad=pad, end=end))
    randomise(ours, 4)
    ids = texts(5, CONTEXT, pad=pad, end=end)[1:]  # without the one that fills the context
    longest = int((ids == end).int().argmax(dim=1).max()) + 1
    assert longest < CONTEXT
    assert_close(ours._text_features(ids[:, :longest]), ours._text_features(ids), "text features")


def test_normalisation_belongs_to_the_model() -> None:
    cfg, _ = _open_clip(True)
    ours = CLIP(config_from_open_clip(cfg), tokenizer(pad=0, end=99)).eval()
    pixels = pictures(2, 32)
    raw = [picture.permute(1, 2, 0).numpy() for picture in pixels]
    floats = open_clip.transform.Normalize(OPENAI_MEAN, OPENAI_STD)(pixels.float() / 255)
    expected = F.normalize(ours.visual_projection(ours.visual(floats)), dim=-1)
    assert_close(ours.encode_image(raw), expected, "image features")


def test_a_model_without_counterpart_is_refused() -> None:
    state = CLIP(CLIPConfig.tiny(), tokenizer(pad=0, end=2)).state_dict()
    with pytest.raises(ValueError, match=r"no counterpart.*visual\.patch_embed"):
        to_open_clip(state)
    with pytest.raises(ValueError, match="ResNet"):
        config_from_open_clip(open_clip.get_model_config("RN50"))
    incomplete = dict(_transformers(True).state_dict())
    del incomplete["text_model.encoder.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match="k_proj"):
        from_transformers(incomplete)


def _assert_same(ours: CLIP, pixels: Tensor, ids: Tensor, image: Tensor, text: Tensor, scale: Tensor, loss: Tensor) -> None:
    """Forward by the public way, and leave the gradients in `ours`."""
    mine = _features(ours, pixels, ids)
    assert_close(mine[0], image, "image features")
    assert_close(mine[1], text, "text features")
    assert_close(ours.logit_scale.exp(), scale, "scale")
    losses = ours({"pixels": pixels, "ids": ids})
    assert_close(losses.total, loss, "loss")
    logits = scale * image @ text.T
    right = torch.arange(len(image))
    assert_close(losses.terms["image_to_text"], F.cross_entropy(logits, right), "image_to_text")
    assert_close(losses.terms["text_to_image"], F.cross_entropy(logits.T, right), "text_to_image")
    losses.total.backward()


def _features(model: CLIP, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return model._image_features(pixels), model._text_features(ids)


def _open_clip(quick: bool, *, pool: str = "argmax", end: int = 99) -> tuple[dict, open_clip.CLIP]:
    """The widths differ on purpose."""
    vision = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 16}
    text = {"context_length": CONTEXT, "vocab_size": 100, "layers": 3, "width": 48, "heads": 3}
    cfg = {"embed_dim": 24, "quick_gelu": quick, "vision_cfg": vision, "text_cfg": text}
    model = open_clip.CLIP(24, vision, text | {"pool_type": pool, "eos_id": end}, quick_gelu=quick, output_dict=True)
    randomise(model, 0)
    return cfg, model


def _transformers(quick: bool, *, pad: int = 0, end: int = 99) -> transformers.CLIPModel:
    act = "quick_gelu" if quick else "gelu"
    config = transformers.CLIPConfig(
        vision_config={
            "image_size": 32,
            "patch_size": 8,
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "hidden_act": act,
        },
        text_config={
            "max_position_embeddings": CONTEXT,
            "vocab_size": 100,
            "num_hidden_layers": 3,
            "hidden_size": 48,
            "intermediate_size": 192,
            "num_attention_heads": 3,
            "hidden_act": act,
            "pad_token_id": pad,
            "bos_token_id": 98,
            "eos_token_id": end,
        },
        projection_dim=24,
    )
    model = transformers.CLIPModel(config).eval()
    randomise(model, 0)
    return model
