"""MaskVLM has no reference implementation: its parts equal those of transformers and open_clip, the whole obeys its invariances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file
from transformers import BertConfig, RobertaConfig, RobertaForMaskedLM, RobertaModel, ViTConfig, ViTForMaskedImageModeling
from transformers.models.bert.modeling_bert import BertLayer

from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.clip import CLIP, CLIPConfig
from models.maskvlm import MaskVLM, MaskVLMConfig
from models.maskvlm.blocks import PostNormBlock, TextEncoder
from models.maskvlm.convert import from_roberta
from models.maskvlm.objective import contrastive, masked_pixels, visible_median
from models.shared import device
from models.shared.convert import Row, to_ours
from models.shared.matching import hard_negatives
from models.shared.text import BPETokenizer, layout, named_tokenizer, until_end
from models.shared.transformer import TransformerConfig
from models.shared.vision import patches_to_pixels
from tests.hub import connect
from tests.models.kit import assert_close, assert_same_gradients, pictures, randomise, texts, tokenizer
from tests.stand_ins import KINDS

CONFIG = TransformerConfig(width=32, depth=2, heads=4, mlp_ratio=2.0, norm_eps=1e-12)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
}


def bert_layer(ours: str, theirs: str, *, cross: bool) -> list[Row]:
    rows = [
        Row(f"{ours}attn.qkv.**", tuple(f"{theirs}attention.self.{name}.**" for name in ("query", "key", "value"))),
        Row(f"{ours}attn.proj.**", f"{theirs}attention.output.dense.**"),
        Row(f"{ours}norm1.**", f"{theirs}attention.output.LayerNorm.**"),
        Row(f"{ours}fc1.**", f"{theirs}intermediate.dense.**"),
        Row(f"{ours}fc2.**", f"{theirs}output.dense.**"),
        Row(f"{ours}norm3.**", f"{theirs}output.LayerNorm.**"),
    ]
    if cross:
        rows += [
            Row(f"{ours}cross.q.**", f"{theirs}crossattention.self.query.**"),
            Row(f"{ours}cross.kv.**", tuple(f"{theirs}crossattention.self.{name}.**" for name in ("key", "value"))),
            Row(f"{ours}cross.proj.**", f"{theirs}crossattention.output.dense.**"),
            Row(f"{ours}norm2.**", f"{theirs}crossattention.output.LayerNorm.**"),
        ]
    return rows


def test_a_cross_block_is_berts() -> None:
    config = BertConfig(**SIZES, is_decoder=True, add_cross_attention=True)
    config._attn_implementation = "eager"
    theirs = BertLayer(config, layer_idx=0)
    randomise(theirs, 0)
    table = bert_layer("", "", cross=True)
    ours = PostNormBlock(CONFIG, memory_width=32)
    ours.load_state_dict(to_ours(theirs.state_dict(), table))
    generator = torch.Generator().manual_seed(1)
    x, memory = torch.randn(3, 7, 32, generator=generator), torch.randn(3, 5, 32, generator=generator)
    real, seen = torch.ones(3, 7, dtype=torch.bool), torch.ones(3, 5, dtype=torch.bool)
    real[0, 4:], seen[1, 2:] = False, False

    def added(mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros(3, 1, 1, mask.shape[1]).masked_fill(~mask[:, None, None], torch.finfo(torch.float32).min)

    reference = theirs(x, attention_mask=added(real), encoder_hidden_states=memory, encoder_attention_mask=added(seen))
    reference = reference[0] if isinstance(reference, tuple) else reference
    mine = ours(x, real, memory, seen)
    assert_close(mine, reference, "states")
    direction = torch.randn(mine.shape, generator=generator)
    (mine * direction).sum().backward()
    (reference * direction).sum().backward()
    assert_same_gradients(ours, theirs, lambda state: to_ours(state, table))


def test_the_text_encoder_is_robertas() -> None:
    config = RobertaConfig(**SIZES, vocab_size=100, max_position_embeddings=16, pad_token_id=0, type_vocab_size=1)
    theirs = RobertaModel(config, add_pooling_layer=False).eval()
    randomise(theirs, 0)
    ours = TextEncoder(CONFIG, rows=100, context=12)
    ours.load_state_dict(from_roberta(theirs.state_dict(), pad=0, context=12))
    ids = texts(5, 12, pad=0, end=95)
    real = ids != 0
    reference = theirs(ids, attention_mask=real.long()).last_hidden_state
    assert_close(ours(ids, real)[real], reference[real], "states")


def roberta_folder(folder: Path, kind: Any = RobertaModel, **sizes: Any) -> Path:
    """A folder as of the hub: random weights, and a tokenizer of RoBERTa's kind."""
    inner = KINDS["roberta"](["a red circle", "two blue squares left of a green star"])
    config = RobertaConfig(**SIZES | sizes, vocab_size=len(inner), max_position_embeddings=40, pad_token_id=1, type_vocab_size=1)
    theirs = kind(config)
    randomise(theirs, 0)
    theirs.save_pretrained(folder)
    inner.save_pretrained(folder)
    return folder


def starting_from(folder: Path, words: Any, image: str = "") -> MaskVLM:
    vision = replace(MaskVLMConfig.paper().vision, width=64, depth=6, heads=2, mlp_ratio=3.0, image_size=160, patch_size=16)
    config = replace(MaskVLMConfig.paper(), vision=vision, text=CONFIG, cross=CONFIG, decoder_depth=1, embed_dim=16, context=24)
    named = {"image_weights": image, "text_weights": str(folder), "vocab_size": words.vocab_size}
    return MaskVLM(replace(config, **named), words)


@pytest.mark.parametrize("kind", [RobertaModel, RobertaForMaskedLM], ids=["with a pooler", "with its head"])
def test_the_text_encoder_starts_from_a_roberta(kind: Any, tmp_path: Path) -> None:
    folder = roberta_folder(tmp_path / "roberta", kind)
    words = named_tokenizer(str(folder))
    model = starting_from(folder, words).eval()
    assert model.fetch() == {"text": str(folder)}
    theirs: Any = RobertaModel.from_pretrained(folder, trust_remote_code=False, attn_implementation="eager").eval()
    ids = layout(words, ["a red circle", "two blue squares left of a green star", ""], 24)
    real = until_end(ids, words)
    reference = theirs(ids, attention_mask=real.long()).last_hidden_state
    assert_close(model.text(ids, real)[real], reference[real], "states")


def test_an_image_encoder_of_timm_is_loaded_up_to_the_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = BPETokenizer.train(["a red circle"], 300)
    asked = connect(monkeypatch, tmp_path, {}, words)
    model = replace_source(starting_from(tmp_path, words, "test_vit.r160_in1k"))
    assert model.fetch() == {"visual": "test_vit.r160_in1k"}
    assert asked == ["weights timm/test_vit.r160_in1k"]
    theirs = load_file(tmp_path / "timm--test_vit.r160_in1k.safetensors")
    assert all(torch.equal(value, theirs[name]) for name, value in model.visual.state_dict().items())


def replace_source(model: MaskVLM) -> MaskVLM:
    """Without a text encoder to start from."""
    return MaskVLM(replace(model.config, text_weights=""), model.tokenizer)


def test_encoders_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = roberta_folder(tmp_path / "roberta")
    words = named_tokenizer(str(folder))
    with pytest.raises(ValueError, match="add --tokenizer"):
        starting_from(folder, BPETokenizer.train(["a red circle"], 300)).fetch()
    wide = roberta_folder(tmp_path / "wide", hidden_size=48)
    with pytest.raises(ValueError, match="another shape"):
        starting_from(wide, words).fetch()
    with pytest.raises(ConnectionError, match="text encoder"):
        starting_from(tmp_path / "nowhere", words).fetch()
    connect(monkeypatch, tmp_path, {}, words)
    small = replace(starting_from(folder, words).config, text_weights="", image_weights="test_vit.r160_in1k")
    small = replace(small, vision=replace(small.vision, depth=2))
    with pytest.raises(ValueError, match="another shape than this image tower"):
        MaskVLM(small, words).fetch()


def test_the_pixel_loss_is_that_of_masked_image_modelling() -> None:
    config = ViTConfig(**SIZES, image_size=32, patch_size=8, encoder_stride=8)
    theirs = ViTForMaskedImageModeling(config)
    randomise(theirs, 0)
    pixels = pictures(4, 32).float() / 128 - 1
    hidden = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) < 0.6
    out = theirs(pixels, bool_masked_pos=hidden)
    assert_close(masked_pixels(out.reconstruction, pixels, hidden), out.loss, "loss")
    changed = torch.where(hidden.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3), out.reconstruction, pixels + 7)
    assert_close(masked_pixels(changed, pixels, hidden), masked_pixels(out.reconstruction, pixels, hidden), "visible patches add nothing")
    assert masked_pixels(changed, pixels, torch.zeros_like(hidden)) == 0


def test_the_contrast_is_open_clips() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8, generator=generator), dim=-1) for _ in range(2))
    assert_close(contrastive(image, text, torch.tensor(9.0)), ClipLoss()(image, text, torch.tensor(9.0)), "loss")


@pytest.mark.parametrize("on_host", [True, False])
def test_hard_negatives_follow_the_contrast_and_are_never_right(on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ALBEF draws them: in proportion to the softmax of the similarities, the pair itself excluded; with a generator, or from what the
    captions are."""
    monkeypatch.setattr(device, "host_knows", lambda x: on_host)
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(4, 8, generator=generator), dim=-1) for _ in range(2))
    captions = torch.tensor([[1, 2], [3, 4], [1, 2], [5, 6]])  # the first and the third say the same
    scale = torch.tensor(3.0)
    drawn = [hard_negatives(scale * image @ text.T, captions + 7 * time, generator) for time in range(3000)]
    for which, similarity in ((0, scale * image @ text.T), (1, scale * text @ image.T)):
        found = torch.stack([pair[which] for pair in drawn])  # [3000, 4]
        same = (captions[:, None] == captions[None]).all(-1)
        expected = similarity.masked_fill(same, float("-inf")).softmax(dim=1)
        for row in range(4):
            share = torch.bincount(found[:, row], minlength=4) / len(found)
            assert (share[same[row]] == 0).all()
            assert torch.allclose(share, expected[row], atol=0.03)


@pytest.mark.parametrize("captions", [torch.tensor([[1]]), torch.tensor([[1], [1], [1]])])
def test_a_batch_without_negatives_has_some_all_the_same(captions: torch.Tensor) -> None:
    feature = torch.nn.functional.normalize(torch.ones(len(captions), 4), dim=-1)
    found, _ = hard_negatives(feature @ feature.T, captions, torch.Generator().manual_seed(0))
    assert len(captions) == 1 or (found != torch.arange(len(captions))).all()


# ------------------------------------------------------------------------------------------------ the whole model


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(24)]


@pytest.fixture(scope="module")
def words(samples: list[Sample]) -> BPETokenizer:
    return BPETokenizer.train([text for sample in samples for text in sample.captions], 500)


@pytest.fixture
def model(words: BPETokenizer) -> MaskVLM:
    torch.manual_seed(0)
    model = MaskVLM(replace(MaskVLMConfig.tiny(), vocab_size=words.vocab_size), words)
    for parameter in model.parameters():  # tiny's image blocks start as the identity
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def predictions(model: MaskVLM, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of all words, and painted pixels."""
    with torch.no_grad():
        f = model.encode(batch)
        images = (model.image_in(f["masked_image_states"]), model.image_in(f["image_states"]))
        texts = (model.text_in(f["masked_text_states"]), model.text_in(f["text_states"]))
        image_out = model.image_cross(images[0], texts[1], memory_real=f["real"])
        text_out = model.text_cross(texts[0], images[1], real=f["real"])
        return model.word_head(text_out), model._paint(image_out, texts[1], f["real"], visible_median(f["pixels"], f["patches"]))


def test_each_side_is_reconstructed_with_the_other_ones_help(model: MaskVLM, samples: list[Sample]) -> None:
    batch = model.collate(samples[:4], np.random.default_rng(0))
    logits, painted = predictions(model, batch)
    other_image, _ = predictions(model, batch | {"pixels": batch["pixels"].flip(0)})
    _, other_text = predictions(model, batch | {"ids": batch["ids"].flip(0)})
    real = batch["ids"] != 0
    assert ((logits - other_image).abs()[real].amax(dim=-1) > 1e-5).all()
    assert ((painted - other_text).abs().amax(dim=(1, 2, 3)) > 1e-5).all()


def test_what_is_hidden_does_not_leak_into_its_own_reconstruction(model: MaskVLM, samples: list[Sample]) -> None:
    batch = model.collate(samples[:4], np.random.default_rng(0))
    _, painted = predictions(model, batch)
    squares = patches_to_pixels(batch["patches"], 64)
    other = torch.where(squares, batch["pixels"].flip(2), batch["pixels"])
    _, again = predictions(model, batch | {"pixels": other})
    assert not torch.equal(other, batch["pixels"])
    assert torch.equal(painted, again)
    logits, _ = predictions(model, batch)  # a hidden word's identity is in the labels and in the clear text alone
    hidden = batch["labels"] != -100
    swapped, _ = predictions(model, batch | {"ids": torch.where(hidden, 5, batch["ids"])})
    assert torch.equal(logits, swapped)


def test_painting_teaches_the_text_encoder(model: MaskVLM, samples: list[Sample]) -> None:
    losses = model(model.collate(samples[:4], np.random.default_rng(0)))
    losses.terms["mim"].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.text.blocks.parameters())


def test_every_parameter_has_a_gradient(model: MaskVLM, samples: list[Sample]) -> None:
    losses = model(model.collate(samples[:8], np.random.default_rng(0)))
    assert set(losses.terms) == {"itc", "itm", "mlm", "mim"}
    losses.total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("patches", "rate"), [(0.0, 0.0), (1.0, 1.0)])
def test_masks_at_the_ends_and_captions_of_one_token(model: MaskVLM, patches: float, rate: float) -> None:
    config = replace(model.config, masked_patches=patches, masking=replace(model.config.masking, rate=rate))
    bare = [Sample(key=str(i), image=np.full((64, 64, 3), 9 * i, np.uint8), captions=("a",)) for i in range(4)]
    other = MaskVLM(config, model.tokenizer)
    losses = other(other.collate(bare, np.random.default_rng(0)))
    losses.total.backward()
    assert all(torch.isfinite(value) for value in losses.terms.values())
    assert (losses.terms["mim"] == 0) == (patches == 0)
    assert (losses.terms["mlm"] == 0) == (rate == 0)


def test_terms_of_weight_0_are_not_computed(model: MaskVLM, samples: list[Sample]) -> None:
    for kept in ({"itc"}, {"itc", "itm"}, {"mlm"}, {"itc", "mim"}):
        weights = replace(model.config.weights, **{name: float(name in kept) for name in ("itc", "itm", "mlm", "mim")})
        other = MaskVLM(replace(model.config, weights=weights), model.tokenizer)
        assert set(other(other.collate(samples[:4], np.random.default_rng(0))).terms) == kept


def test_the_retrieval_stage_masks_nothing(model: MaskVLM, samples: list[Sample]) -> None:
    other = MaskVLM(replace(model.config, retrieval_foils=1.0), model.tokenizer)
    other.enter_stage("retrieval")
    batch = other.collate(samples[:6], np.random.default_rng(0))
    assert batch["has_foil"].any()
    hidden = {name: torch.zeros_like(batch[name]) for name in ("patches", "masked_ids", "masked_foil_ids")}
    found, same = other(batch), other(batch | hidden)
    assert set(found.terms) == {"itc", "itm"}
    assert torch.equal(found.total, same.total)
    other.enter_stage("pretraining")
    assert other(batch).total != other(batch | hidden).total
    with pytest.raises(ValueError, match="expected pretraining or retrieval"):
        other.enter_stage("finetuning")


def test_scores_and_reconstructions(model: MaskVLM, samples: list[Sample]) -> None:
    images, texts = [sample.image for sample in samples[:3]], [sample.captions[0] for sample in samples[:3]]
    together = model.score(images, texts)
    alone = torch.cat([model.score([image], [text]) for image, text in zip(images, texts, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    pairs = model.unmask(images, texts)
    assert [part.shape for pair in pairs for part in pair] == [(64, 64, 3)] * 6
    for image, (grey, painted) in zip(images, pairs, strict=True):
        visible = (grey.astype(int) - image).__abs__().max(axis=-1) <= 1
        assert 0.35 < visible.mean() < 0.75
        assert (np.abs(painted.astype(int) - image).max(axis=-1) <= 1)[visible].all()


def test_paper_size() -> None:
    """ViT-B/16 86 M, RoBERTa-base 125 M, nine cross-attention blocks of 9.45 M, heads: about 0.3 G parameters."""
    with torch.device("meta"):
        special = tokenizer(pad=1, end=2)
        special.mask = 50_264
        model = MaskVLM(MaskVLMConfig.paper(), special)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts["visual"] == 85_798_656
    assert counts["image_cross"] + counts["text_cross"] + counts["image_decoder"] == 9 * 9_451_776
    roberta = 124_055_040  # transformers' RobertaModel without pooler: 514 positions, one segment
    assert counts["text"] == roberta - (514 - 77 + 1) * 768


def test_foils_are_masked_as_captions_are(model: MaskVLM, samples: list[Sample]) -> None:
    """A false text that is whole would give itself away."""
    collate = replace(model.collate, foils=1.0, masking=replace(model.config.masking, mask_share=1.0, random_share=0.0))
    batch = collate(samples, np.random.default_rng(0))
    masks = [(batch[name] == model.collate.mask).sum().item() for name in ("masked_ids", "masked_foil_ids")]
    words = [(batch[name] > 2).sum().item() for name in ("ids", "foil_ids")]
    assert [hidden / all_ for hidden, all_ in zip(masks, words, strict=True)] == pytest.approx([0.3, 0.3], abs=0.03)
    assert batch["has_foil"].tolist() == [bool(sample.foils) for sample in samples]


def test_foils_stand_beside_what_they_were_made_from(model: MaskVLM, samples: list[Sample]) -> None:
    """Or their wording alone would tell them from captions."""
    batch = replace(model.collate, foils=1.0)(samples, np.random.default_rng(0))
    for row, sample in enumerate(samples):
        true, false = (model.tokenizer.decode(batch[name][row].tolist()) for name in ("ids", "foil_ids"))
        assert (true, false) in {(foil.caption, foil.foil) for foil in sample.foils} or (true == false and not sample.foils)


def test_a_foil_is_one_false_text_of_its_picture(model: MaskVLM, samples: list[Sample]) -> None:
    """With every negative text a foil, matching depends on the foils' words; without, it does not."""
    batch = replace(model.collate, foils=1.0)(samples[:6], np.random.default_rng(0))
    other = batch | {"foil_ids": batch["foil_ids"].flip(0), "masked_foil_ids": batch["masked_foil_ids"].flip(0)}
    none = {"has_foil": torch.zeros(6, dtype=torch.bool)}
    with torch.no_grad():
        assert model(batch).terms["itm"] != model(other).terms["itm"]
        assert model(batch | none).terms["itm"] == model(other | none).terms["itm"]


def test_small_painting_errors_count_by_their_square_where_asked() -> None:
    pixels, hidden = torch.zeros(1, 3, 4, 4), torch.ones(1, 4, dtype=torch.bool)
    for error, expected in ((0.5, 0.5 * 0.5**2), (3.0, 3.0 - 0.5)):  # Huber, 1964, with the bend at 1
        assert masked_pixels(pixels + error, pixels, hidden, rounded=1.0).item() == pytest.approx(expected)
        assert masked_pixels(pixels + error, pixels, hidden).item() == pytest.approx(error)


def test_painting_starts_at_the_trivial_fill_and_that_is_chance(words: BPETokenizer, samples: list[Sample]) -> None:
    model = MaskVLM(replace(MaskVLMConfig.tiny(), vocab_size=words.vocab_size), words)
    losses = model(model.collate(samples[:8], np.random.default_rng(0)))
    assert losses.terms["mim"].item() == pytest.approx(float(losses.chance["mim"]), abs=1e-6)


def test_the_trivial_fill_is_the_median_of_what_is_visible() -> None:
    pixels = pictures(3, 16).float()
    hidden = torch.tensor([[False, True, True, True], [True] * 4, [False] * 4])
    fill = visible_median(pixels, hidden)
    assert torch.equal(fill[0, :, 0, 0], pixels[0, :, :8, :8].flatten(1).median(dim=-1).values)
    assert torch.equal(fill[1], torch.zeros(3, 1, 1))
    assert torch.equal(fill[2, :, 0, 0], pixels[2].flatten(1).median(dim=-1).values)


def test_boxes_weigh_more(model: MaskVLM, samples: list[Sample]) -> None:
    batch = model.collate(samples[:4], np.random.default_rng(0))
    features = model.encode(batch)
    guess = torch.zeros_like(features["pixels"])
    squares = patches_to_pixels(batch["patches"], 64).float() * (1 + 3 * batch["objects"].float())
    error = features["pixels"].abs()
    error = torch.where(error < 1, error.square() / 2, error - 0.5)
    expected = ((error * squares).sum() / (3 * squares.sum())).item()
    assert model._pixel_loss(guess, features).item() == pytest.approx(expected, abs=1e-5)


def test_words_are_those_of_training(model: MaskVLM, samples: list[Sample]) -> None:
    batch = model.collate(samples[:4], np.random.default_rng(0))
    logits, _ = predictions(model, batch)
    again = model.words([sample.image for sample in samples[:4]], batch["masked_ids"])
    assert torch.allclose(logits, again, atol=1e-5)


def test_the_image_encoder_starts_from_clips(words: BPETokenizer) -> None:
    clip = CLIP(replace(CLIPConfig.tiny(), vocab_size=words.vocab_size), words)
    model = MaskVLM(replace(MaskVLMConfig.tiny(), vocab_size=words.vocab_size), words)
    model.adopt({"image_encoder": clip})
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.visual.parameters(), clip.visual.parameters(), strict=True))
    assert torch.equal(model.image_projection.weight, clip.visual_projection.weight)


@pytest.mark.slow
def test_it_overfits_16_pairs(words: BPETokenizer, samples: list[Sample]) -> None:
    torch.manual_seed(0)
    model = MaskVLM(replace(MaskVLMConfig.tiny(), vocab_size=words.vocab_size), words)
    batch = model.collate(samples[:16], np.random.default_rng(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        losses = model(batch)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.after_step()
    for name, most in {"itc": 0.1, "itm": 0.1, "mlm": 0.1, "mim": 0.15}.items():
        assert losses.terms[name] < most, f"{name}: {losses.terms[name]:.3f}"
