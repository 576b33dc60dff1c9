"""Our CoCa computes what open_clip's does, component by component, and its decoder what transformers' GPT-2 does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa as OpenCLIPCoCa
from open_clip.loss import CoCaLoss
from safetensors.torch import save_file

from models.coca import CoCa, CoCaConfig
from models.coca.convert import config_from_open_clip, from_open_clip, to_open_clip
from models.coca.gpt2 import decoder_to_gpt2
from models.published import published
from models.shared.images import OPENAI_MEAN, OPENAI_STD, normalise
from tests.models.kit import assert_close, assert_round_trip, assert_same_gradients, pictures, randomise, texts, tokenizer

CONTEXT = 12
POOLINGS = pytest.mark.parametrize("pooling", [True, "cascade", "parallel"], ids=["single", "cascade", "parallel"])
MASKS = pytest.mark.parametrize("shifted", [True, False], ids=["released mask", "correct mask"])
ENDS = pytest.mark.parametrize(("pad", "end"), [(0, 99), (99, 90)], ids=["padding-0", "padding-after-end-id"])


@POOLINGS
@MASKS
@ENDS
def test_equals_open_clip(pooling: Any, shifted: bool, pad: int, end: int) -> None:
    cfg, theirs = _open_clip(pooling, shifted=shifted, pad=pad)
    ours = _ours(replace(config_from_open_clip(cfg), shifted_mask=shifted), pad=pad, end=end)
    ours.load_state_dict(from_open_clip(theirs.state_dict()))
    pixels, ids = pictures(5, 32), texts(5, CONTEXT, pad=pad, end=end)
    floats = normalise(pixels, OPENAI_MEAN, OPENAI_STD)

    image, image_tokens = theirs._encode_image(floats)
    if pooling is not True:  # open_clip leaves the query's axis in, which its own loss does not expect
        image = image[:, 0]
    text, states = theirs._encode_text(ids)
    out = theirs(floats, ids, image_latent=image, image_embs=image_tokens)
    reference = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=pad)(
        image, out["text_features"], out["logits"], out["labels"], out["logit_scale"], output_dict=True
    )

    feature, tokens = ours._look(pixels)
    assert_close(feature, image, "image features")
    assert_close(tokens, image_tokens, "image tokens")
    mine, cls = ours.text.read(ids)
    real = ours.text.real(ids)
    assert_close(mine[real], states[real], "unimodal states")
    assert_close(ours._text_feature(cls), text, "text features")
    logits = ours.text.look(mine[:, :-1], tokens)
    assert_close(logits[real[:, 1:]], out["logits"][real[:, 1:]], "logits")

    losses = ours({"pixels": pixels, "ids": ids})
    contrastive = (losses.terms["image_to_text"] + losses.terms["text_to_image"]) / 2
    assert_close(contrastive, reference["contrastive_loss"], "contrastive loss")
    assert_close(2 * losses.terms["caption"], reference["caption_loss"], "caption loss")
    assert_close(losses.total, sum(reference.values()), "loss")  # type: ignore[arg-type]
    losses.total.backward()
    sum(reference.values()).backward()  # type: ignore[union-attr]
    assert_same_gradients(ours, theirs, from_open_clip)


@POOLINGS
def test_converts_there_and_back_to_the_bit(pooling: Any) -> None:
    cfg, theirs = _open_clip(pooling)
    ours = _ours(config_from_open_clip(cfg))
    assert_round_trip(theirs.state_dict(), from_open_clip, to_open_clip)
    assert_round_trip(ours.state_dict(), to_open_clip, from_open_clip)


def test_our_weights_run_in_open_clip() -> None:
    cfg, theirs = _open_clip(True, shifted=True)
    ours = _ours(config_from_open_clip(cfg)).eval()
    randomise(ours, 3)
    theirs.load_state_dict(to_open_clip(ours.state_dict()))
    pixels, ids = pictures(3, 32), texts(3, CONTEXT, pad=0, end=99)
    out = theirs(normalise(pixels, OPENAI_MEAN, OPENAI_STD), ids)
    feature, tokens = ours._look(pixels)
    assert_close(feature, out["image_features"], "image features")
    real = ours.text.real(ids)[:, 1:]
    assert_close(ours.text.look(ours.text.read(ids)[0][:, :-1], tokens)[real], out["logits"][real], "logits")


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "coca_ViT-L-14"])
def test_open_clips_configurations_have_open_clips_counts(name: str) -> None:
    cfg = open_clip.get_model_config(name)
    with torch.device("meta"):
        theirs = OpenCLIPCoCa(**{key: value for key, value in cfg.items() if key != "custom_text"})
        ours = _ours(config_from_open_clip(cfg))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_the_papers_decoder_equals_gpt2_with_cross_attention() -> None:
    """A second reference, for the layers that open_clip does not have: one MLP each. Logits and every gradient."""
    ours = _ours(_paper_like())
    randomise(ours, 0)
    theirs = decoder_to_gpt2(ours.text, ours.config.text, start=98, pad=0)
    ids = texts(4, CONTEXT, pad=0, end=99)
    image = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(2))
    mine = ours.text.look(ours.text.read(ids)[0], image)
    reference = theirs(input_ids=ids, encoder_hidden_states=F.layer_norm(image, (32,))).logits
    real = ours.text.real(ids)
    assert_close(mine[real], reference[real], "logits")
    for logits in (mine, reference):
        F.cross_entropy(logits[real][:-1], ids[real][1:]).backward()
    for name, theirs_name, transposed in [
        ("tokens.weight", "transformer.wte.weight", False),
        ("unimodal.1.attn.qkv.weight", "transformer.h.1.attn.c_attn.weight", True),
        ("multimodal.0.attn.qkv.weight", "transformer.h.2.attn.c_attn.weight", True),
        ("multimodal.1.cross.q.weight", "transformer.h.3.crossattention.q_attn.weight", True),
        ("multimodal.1.cross.proj.weight", "transformer.h.3.crossattention.c_proj.weight", True),
        ("multimodal.1.mlp2.fc1.weight", "transformer.h.3.mlp.c_fc.weight", True),
        ("head.weight", "lm_head.weight", False),
    ]:
        gradient = theirs.get_parameter(theirs_name).grad
        assert gradient is not None
        assert_close(ours.text.get_parameter(name).grad, gradient.T if transposed else gradient, f"gradient of {name}")  # type: ignore[arg-type]


def test_published_weights_are_had_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, _ = _open_clip(True)
    for part in ("text_cfg", "multimodal_cfg"):
        cfg[part] |= {"vocab_size": 49_408, "context_length": 20}
    torch.manual_seed(0)
    theirs = OpenCLIPCoCa(**cfg)
    torch.nn.init.normal_(theirs.text_decoder.text_projection, std=0.1)
    randomise(theirs, 0)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: cfg)
    ours: Any = published(f"open_clip:coca_ViT-B-32/{tmp_path}/weights.safetensors")
    ids = open_clip.tokenize(["a red circle", "Two blue SQUARES!"], context_length=20)
    raw = list(pictures(2, 32).permute(0, 2, 3, 1).numpy())
    theirs.eval()
    assert_close(ours.encode_image(raw), theirs.encode_image(normalise(pictures(2, 32), OPENAI_MEAN, OPENAI_STD)), "image features")
    assert_close(ours.encode_text(["a red circle", "two blue squares"])[0], theirs.encode_text(ids)[0], "text features")
    assert all(isinstance(text, str) for text in ours.caption(raw))


def test_a_model_without_counterpart_is_refused() -> None:
    with pytest.raises(ValueError, match="no counterpart"):
        to_open_clip(_ours(CoCaConfig.tiny()).state_dict())
    with pytest.raises(ValueError, match="attentional_pool is None"):
        config_from_open_clip(open_clip.get_model_config("coca_base"))
    with pytest.raises(ValueError, match="hf_model_name"):
        config_from_open_clip(open_clip.get_model_config("coca_roberta-ViT-B-32"))
    with pytest.raises(ValueError, match="one MLP"):
        decoder_to_gpt2(_ours(replace(_paper_like(), second_mlp=True)).text, _paper_like().text, start=98, pad=0)


def _ours(config: CoCaConfig, *, pad: int = 0, end: int = 99) -> CoCa:
    words = tokenizer(pad=pad, end=end)
    words.start = 98
    return CoCa(config, words)


def _paper_like() -> CoCaConfig:
    tiny = CoCaConfig.tiny()
    text = replace(tiny.text, width=32, heads=4, activation="gelu")
    return replace(tiny, text=text, context=CONTEXT, vocab_size=100)


def _open_clip(pooling: Any, *, shifted: bool = True, pad: int = 0) -> tuple[dict[str, Any], OpenCLIPCoCa]:
    """The widths differ where open_clip can have it so: with its own pooling only."""
    vision = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 48 if pooling is True else 32, "head_width": 16}
    vision |= {"attentional_pool": pooling, "attn_pooler_queries": 9, "attn_pooler_heads": 4, "output_tokens": True}
    text = {"context_length": CONTEXT, "vocab_size": 100, "width": 32, "heads": 4, "layers": 2}
    cfg = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text | {"embed_cls": True, "output_tokens": True}}
    cfg |= {"multimodal_cfg": text | {"layers": 3}}
    model = OpenCLIPCoCa(**(cfg | {"text_cfg": cfg["text_cfg"] | {"pad_id": pad}}), pad_id=pad)
    torch.nn.init.normal_(model.text_decoder.text_projection, std=0.1)  # open_clip leaves it uninitialised
    model.text.correct_cls_mask = not shifted
    randomise(model, 0)
    return cfg, model
