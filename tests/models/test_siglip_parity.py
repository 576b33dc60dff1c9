"""Our SigLIP computes what transformers', open_clip's and timm's compute: features, logits, losses and every gradient."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from open_clip.loss import SigLipLoss
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.shared.images import HALF, normalise
from models.shared.transformer import TanhGELU
from models.siglip import SigLIP, SigLIPConfig
from models.siglip.convert import (
    config_from_open_clip,
    config_from_transformers,
    from_open_clip,
    from_transformers,
    to_open_clip,
    to_transformers,
)
from models.siglip.objective import siglip_loss
from tests.models.kit import assert_close, assert_round_trip, assert_same_gradients, pictures, randomise, texts, tokenizer

CONTEXT = 12
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "gelu"])
def test_equals_transformers(act: str) -> None:
    theirs = _transformers(act)
    ours = SigLIP(config_from_transformers(theirs.config), tokenizer(pad=1, end=1))
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    pixels, ids = pictures(5, 32), texts(5, CONTEXT, pad=1, end=1)

    out = theirs(input_ids=ids, pixel_values=normalise(pixels, HALF, HALF), return_loss=True)
    out.loss.backward()
    image, text = ours._image_features(pixels), ours._text_features(ids)
    assert_close(ours.logit_scale.exp() * image @ text.T + ours.logit_bias, out.logits_per_image, "logits")
    _assert_same(ours, pixels, ids, out.image_embeds, out.text_embeds, out.loss)
    assert_same_gradients(ours, theirs, from_transformers)


def test_equals_open_clip() -> None:
    cfg, theirs = _open_clip()
    ours = SigLIP(config_from_open_clip(cfg), tokenizer(pad=1, end=1))
    ours.load_state_dict(from_open_clip(theirs.state_dict()))
    pixels, ids = pictures(5, 32), texts(5, CONTEXT, pad=1, end=1)

    out = theirs(normalise(pixels, HALF, HALF), ids)
    loss = SigLipLoss()(out["image_features"], out["text_features"], out["logit_scale"], out["logit_bias"])
    loss.backward()
    _assert_same(ours, pixels, ids, out["image_features"], out["text_features"], loss)
    assert_same_gradients(ours, theirs, from_open_clip)


def test_image_tower_is_timms() -> None:
    theirs = timm.create_model("vit_base_patch16_siglip_224", num_classes=0, act_layer=TanhGELU, **TIMM)
    randomise(theirs, 0)
    ours = SigLIP(_config(), tokenizer(pad=1, end=1))
    ours.visual.load_state_dict(theirs.state_dict())  # the names are timm's
    pixels = normalise(pictures(3, 32), HALF, HALF)
    mine, reference = ours.visual(pixels), theirs(pixels)
    assert_close(mine, reference, "pooled features")
    direction = torch.randn(mine.shape, generator=torch.Generator().manual_seed(5))
    (mine * direction).sum().backward()
    (reference * direction).sum().backward()
    assert_same_gradients(ours.visual, theirs, lambda state: state)


def test_loss_equals_open_clips() -> None:
    generator = torch.Generator().manual_seed(6)
    image, text = (F.normalize(torch.randn(7, 16, generator=generator), dim=-1) for _ in range(2))
    scale, bias = torch.tensor(8.0), torch.tensor(-3.0)
    leaves = [[x.clone().requires_grad_() for x in (image, text, scale, bias)] for _ in range(2)]
    ours, theirs = siglip_loss(*leaves[0]).total, SigLipLoss()(*leaves[1])
    assert_close(ours, theirs, "loss")
    ours.backward()
    theirs.backward()
    for mine, reference, name in zip(*leaves, ["image", "text", "scale", "bias"], strict=True):
        assert_close(mine.grad, reference.grad, f"gradient of {name}")


def test_converts_there_and_back_to_the_bit() -> None:
    theirs = _transformers("gelu").state_dict()
    assert_round_trip(theirs, from_transformers, to_transformers)
    assert_round_trip(from_transformers(theirs), to_open_clip, from_open_clip)
    assert_round_trip(_open_clip()[1].state_dict(), from_open_clip, to_open_clip)


def test_our_weights_run_in_both_libraries() -> None:
    cfg, theirs = _open_clip()
    hub = _transformers("gelu")
    ours = SigLIP(config_from_open_clip(cfg), tokenizer(pad=1, end=1)).eval()
    randomise(ours, 3)
    theirs.load_state_dict(to_open_clip(ours.state_dict()))
    hub.load_state_dict(to_transformers(ours.state_dict()))
    pixels, ids = pictures(3, 32), texts(3, CONTEXT, pad=1, end=1)
    assert_close(ours._text_features(ids), theirs.encode_text(ids, normalize=True), "text features")
    out = hub(input_ids=ids, pixel_values=normalise(pixels, HALF, HALF))
    assert_close(ours._image_features(pixels), out.image_embeds, "image features")


def test_released_configurations() -> None:
    config = config_from_open_clip(open_clip.get_model_config("ViT-B-16-SigLIP"))
    assert config.vision.activation == config.text.activation == "gelu"  # what open_clip computes
    assert config_from_open_clip(open_clip.get_model_config("ViT-B-16-SigLIP2")).text.activation == "gelu_tanh"
    assert config_from_transformers(transformers.SiglipConfig()) == SigLIPConfig.paper()
    with pytest.raises(ValueError, match="not SigLIP's own towers"):
        config_from_open_clip(open_clip.get_model_config("ViT-B-32"))


def _assert_same(ours: SigLIP, pixels: Tensor, ids: Tensor, image: Tensor, text: Tensor, loss: Tensor) -> None:
    """Forward by the public way, and leave the gradients in `ours`."""
    assert_close(ours._image_features(pixels), image, "image features")
    assert_close(ours._text_features(ids), text, "text features")
    losses = ours({"pixels": pixels, "ids": ids})
    assert_close(losses.total, loss, "loss")
    assert_close(losses.terms["positive"] + losses.terms["negative"], loss, "sum of the terms")
    losses.total.backward()


def _config() -> SigLIPConfig:
    return config_from_transformers(_transformers("gelu_pytorch_tanh").config)


def _transformers(act: str) -> transformers.SiglipModel:
    """The depths differ on purpose, and so do the widths where transformers lets them."""
    config = transformers.SiglipConfig(
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
            "projection_size": 64,
            "pad_token_id": 1,
            "bos_token_id": 98,
            "eos_token_id": 1,
        },
    )
    model = transformers.SiglipModel(config).eval()
    randomise(model, 0)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    return model


@register_model  # type: ignore[untyped-decorator]
def vit_kit_siglip(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """A small tower for open_clip, which takes its sizes from timm by name."""
    return timm.create_model("vit_base_patch16_siglip_224", **TIMM | options)


def _open_clip() -> tuple[dict, open_clip.CustomTextCLIP]:
    vision = {"image_size": 32, "timm_model_name": "vit_kit_siglip", "timm_pool": "map", "timm_proj": "none"}
    text = {
        "context_length": CONTEXT,
        "vocab_size": 100,
        "layers": 3,
        "width": 48,
        "heads": 3,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    }
    model = open_clip.CustomTextCLIP(64, vision, text, init_logit_scale=2.0, init_logit_bias=-3.0, output_dict=True)
    randomise(model, 0)
    return {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}, model.eval()
