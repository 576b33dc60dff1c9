from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.language import agreement
from data.scenes.world import PRESETS
from models.flava import FLAVA, FLAVAConfig
from models.flava.collate import IMAGE, PAIR, TEXT, Mixture
from models.masking import UNSEEN, TokenMasking
from models.text import BPETokenizer


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(40)]


@pytest.fixture(scope="module")
def tokenizer(samples: list[Sample]) -> BPETokenizer:
    return BPETokenizer.train([text for sample in samples for text in sample.captions], 500)


@pytest.fixture
def model(tokenizer: BPETokenizer) -> FLAVA:
    torch.manual_seed(0)
    model = FLAVA(replace(FLAVAConfig.tiny(), vocab_size=tokenizer.vocab_size), tokenizer)
    for name, parameter in model.named_parameters():  # tiny's blocks start as the identity: nothing would reach anything
        if not name.startswith("codebook."):
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def test_a_batch_is_made_of_pairs_pictures_and_texts(model: FLAVA, samples: list[Sample]) -> None:
    batch = model.collate(samples, np.random.default_rng(0))
    assert torch.bincount(batch["kind"]).tolist() == [28, 6, 6]
    assert (~batch["match"]).sum() == 14
    assert batch["match"][batch["kind"] != PAIR].all()
    assert (batch["patches"].sum(dim=1) == 26).all()
    for row, sample in enumerate(samples):
        text = model.tokenizer.decode(batch["ids"][row].tolist())
        if batch["match"][row]:
            assert text in sample.captions
        else:
            assert text not in sample.captions
            assert agreement(text, sample) < 1
    again = model.collate(samples, np.random.default_rng(0))
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_content_under_a_mask_does_not_leak(model: FLAVA, samples: list[Sample]) -> None:
    """Not even through the convolutions: another picture under the masked patches changes no state."""
    batch = model.collate(samples[:4], np.random.default_rng(0))
    pixels, patches = batch["pixels"].float() / 128 - 1, batch["patches"]
    squares = patches.view(-1, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(squares, pixels.flip(0), pixels)
    assert not torch.equal(other, pixels)
    with torch.no_grad():
        assert torch.equal(model._image_states(other, patches), model._image_states(pixels, patches))
        assert not torch.allclose(model._image_states(other), model._image_states(pixels))


def test_the_other_modality_changes_a_masked_prediction(model: FLAVA, samples: list[Sample]) -> None:
    batch = model.collate(samples, np.random.default_rng(0))
    before = model.encode(batch)
    after = model.encode(batch | {"pixels": batch["pixels"].flip(2)})
    changed = (before["mmm_text_nll"] - after["mmm_text_nll"]).abs() > 1e-6
    positive = (batch["kind"] == PAIR) & batch["match"] & (before["mmm_text_n"] > 0)
    assert changed[positive].all()
    assert not changed[~positive].any()
    assert torch.equal(before["mlm_nll"], after["mlm_nll"])


def test_padding_changes_nothing(model: FLAVA, samples: list[Sample]) -> None:
    texts = ["a star", "a large solid red star above a small hollow blue moon, with a striped cross"]
    alone, together = model.encode_text(texts[:1]), model.encode_text(texts)[:1]
    assert torch.allclose(alone, together, atol=1e-6)
    images = [samples[0].image] * 2
    assert torch.allclose(model.score(images[:1], texts[:1]), model.score(images, texts)[:1], atol=1e-5)


def test_no_gradient_reaches_the_tokenizer_of_images_and_every_other_parameter_has_one(model: FLAVA, samples: list[Sample]) -> None:
    model.train()
    model(model.collate(samples, np.random.default_rng(0))).total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("codebook."), name


def test_terms_of_weight_0_are_not_computed(model: FLAVA, samples: list[Sample]) -> None:
    config = replace(model.config, weights=replace(model.config.weights, mim=0.0, mmm_image=0.0))
    losses = FLAVA(config, model.tokenizer)(model.collate(samples, np.random.default_rng(0)))
    assert set(losses.terms) == {"contrastive", "itm", "mlm", "mmm_text"} == set(losses.chance)


@pytest.mark.parametrize("mixture", [Mixture(0.0, 0.0), Mixture(1.0, 0.0), Mixture(0.0, 1.0), Mixture(0.5, 0.5, mismatched=1.0)])
def test_batches_without_pairs_or_without_matches_have_finite_losses(model: FLAVA, samples: list[Sample], mixture: Mixture) -> None:
    other = FLAVA(replace(model.config, mixture=mixture), model.tokenizer)
    losses = other(other.collate(samples[:6], np.random.default_rng(0)))
    losses.total.backward()
    assert all(torch.isfinite(value) for value in losses.terms.values())


def test_nothing_masked_and_captions_of_one_token(model: FLAVA) -> None:
    config = replace(model.config, masked_patches=0, masking=TokenMasking(0.0))
    bare = [Sample(key=str(i), image=np.full((64, 64, 3), 9 * i, np.uint8), captions=("a",)) for i in range(4)]
    other = FLAVA(config, model.tokenizer)
    losses = other(other.collate(bare, np.random.default_rng(0)))
    assert losses.terms["mim"] == losses.terms["mlm"] == losses.terms["mmm_text"] == 0
    masked = model.collate(bare, np.random.default_rng(0))
    assert (masked["labels"] != UNSEEN).sum(dim=1).tolist() == [1, 1, 1, 1]


def test_patches_and_codes_have_to_agree(model: FLAVA) -> None:
    with pytest.raises(ValueError, match="16 x 16 patches and 8 x 8 codes"):
        FLAVA(replace(model.config, vision=replace(model.config.vision, patch_size=4, stem="patch")), model.tokenizer)


def test_kinds_are_those_of_the_configuration() -> None:
    kinds = Mixture().kinds(100)
    assert [int((kinds == kind).sum()) for kind in (PAIR, IMAGE, TEXT)] == [70, 15, 15]


@pytest.mark.slow
def test_it_overfits_16_pairs(tokenizer: BPETokenizer, samples: list[Sample]) -> None:
    torch.manual_seed(0)
    config = FLAVAConfig.tiny()
    model = FLAVA(replace(config, vocab_size=tokenizer.vocab_size, mixture=Mixture(0.25, 0.25, mismatched=0.25, hard=0.5)), tokenizer)
    batch = model.collate(samples[:16], np.random.default_rng(0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(250):
        optimizer.zero_grad()
        losses = model(batch)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.after_step()
    for name, value in losses.terms.items():
        assert value < 0.1 * losses.chance[name], f"{name}: {value:.3f}, by chance {losses.chance[name]:.3f}"
