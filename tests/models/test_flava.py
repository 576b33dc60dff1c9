from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import models
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.language import agreement
from data.scenes.world import PRESETS
from models.contract import IGNORE_INDEX
from models.flava import FLAVA, FLAVAConfig
from models.flava.collate import IMAGE, PAIR, QUESTION, TEXT, Mixture
from models.shared.masking import TokenMasking
from models.shared.text import BPETokenizer
from models.shared.vision import patches_to_pixels
from models.vq import VQConfig
from tests.hub import connect


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


def test_a_tenth_of_the_papers_pairs_mismatch(model: FLAVA, samples: list[Sample]) -> None:
    """As in the released code (itm_probability 0.1): of 8,192 rows 5,161 contrast."""
    mixture = FLAVAConfig.paper().mixture
    batch = replace(model.collate, mixture=mixture)(samples * 5, np.random.default_rng(0))
    pairs = int((batch["kind"] == PAIR).sum())
    assert (pairs, int((~batch["match"]).sum())) == (140, 14)
    many = int((mixture.kinds(8192) == PAIR).sum())
    assert many - round(mixture.mismatched * many) == 5161


def test_the_image_encoder_starts_from_published_weights(tokenizer: BPETokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = connect(monkeypatch, tmp_path, {}, tokenizer)
    paper = FLAVAConfig.paper()
    assert paper.image_weights.endswith(".dino")
    assert not FLAVAConfig.tiny().image_weights
    tower = replace(paper.vision, width=64, depth=6, heads=2, mlp_ratio=3.0, image_size=160)
    small = replace(FLAVAConfig.tiny(), vision=tower, codebook=replace(VQConfig.coarse(), network=VQConfig.coarse().network))
    small = replace(small, codebook=replace(small.codebook, network=replace(small.codebook.network, image_size=80)))
    model = FLAVA(replace(small, image_weights="test_vit.r160_in1k", vocab_size=tokenizer.vocab_size), tokenizer)
    assert model.fetch() == {"visual": "test_vit.r160_in1k"}
    assert asked == ["weights timm/test_vit.r160_in1k"]
    theirs = load_file(tmp_path / "timm--test_vit.r160_in1k.safetensors")
    assert all(torch.equal(value, theirs[name]) for name, value in model.visual.state_dict().items())


def test_a_batch_is_made_of_pairs_pictures_and_texts(model: FLAVA, samples: list[Sample]) -> None:
    batch = model.collate(samples, np.random.default_rng(0))
    assert torch.bincount(batch["kind"]).tolist() == [32, 4, 4]
    assert (~batch["match"]).sum() == 16
    assert batch["match"][batch["kind"] != PAIR].all()
    assert (batch["patches"].sum(dim=1) == 6).all()
    for row, sample in enumerate(samples):
        text = model.tokenizer.decode(batch["ids"][row].tolist())
        if batch["match"][row]:
            assert text in {*sample.captions, *(foil.caption for foil in sample.foils)}
            assert agreement(text, sample) == 1
        else:
            assert text not in sample.captions
            assert agreement(text, sample) < 1
    again = model.collate(samples, np.random.default_rng(0))
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_content_under_a_mask_does_not_leak(model: FLAVA, samples: list[Sample]) -> None:
    """Not even through the convolutions: another picture under the masked patches changes no state."""
    batch = model.collate(samples[:4], np.random.default_rng(0))
    pixels, patches = batch["pixels"].float() / 128 - 1, batch["patches"]
    squares = patches_to_pixels(patches, 64)
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


def test_matching_and_mismatched_texts_are_worded_alike(model: FLAVA, samples: list[Sample]) -> None:
    """A foil goes as a negative, what it was made from as a positive: else its wording alone would tell."""
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    collate = replace(model.collate, mixture=Mixture(0.0, 0.0, mismatched=0.5, hard=1.0))
    for seed in range(20):
        batch = collate(samples, np.random.default_rng(seed))
        for sample, match, ids in zip(samples, batch["match"].tolist(), batch["ids"].tolist(), strict=True):
            text = model.tokenizer.decode(ids)
            assert text in {foil.caption if match else foil.foil for foil in sample.foils}
            seen[match].add(text)
        assert int(batch["match"].sum()) == len(samples) - round(len(samples) / 2)
    assert len(seen[True]) > len(samples) < len(seen[False])


def test_nothing_masked_and_captions_of_one_token(model: FLAVA) -> None:
    config = replace(model.config, masked_patches=0, masking=TokenMasking(0.0))
    bare = [Sample(key=str(i), image=np.full((64, 64, 3), 9 * i, np.uint8), captions=("a",)) for i in range(4)]
    other = FLAVA(config, model.tokenizer)
    losses = other(other.collate(bare, np.random.default_rng(0)))
    assert losses.terms["mim"] == losses.terms["mlm"] == losses.terms["mmm_text"] == 0
    masked = model.collate(bare, np.random.default_rng(0))
    assert (masked["labels"] != IGNORE_INDEX).sum(dim=1).tolist() == [1, 1, 1, 1]


def test_patches_and_codes_have_to_agree(model: FLAVA) -> None:
    with pytest.raises(ValueError, match="16 x 16 patches and 8 x 8 codes"):  # four patches to a code
        FLAVA(replace(model.config, vision=replace(model.config.vision, patch_size=4, stem="patch")), model.tokenizer)


@pytest.mark.parametrize(("stage", "expected"), [("unimodal", [IMAGE] * 2 + [TEXT] * 6), ("joint", [PAIR] * 5 + [IMAGE] + [TEXT] * 2)])
def test_every_stage_has_its_own_mixture(model: FLAVA, samples: list[Sample], stage: str, expected: list[int]) -> None:
    """Pairs come first: what their captions are exchanged with are the first ones."""
    mixtures = {"unimodal": Mixture(pictures=0.25, texts=0.75), "mixture": Mixture(pictures=0.125, texts=0.25)}
    other = FLAVA(replace(model.config, **mixtures), model.tokenizer)
    other.enter_stage(stage)
    assert other.collate(samples[:8], np.random.default_rng(0))["kind"].tolist() == expected


def test_texts_alone_leave_the_image_encoder_as_it_is(model: FLAVA) -> None:
    """Also where every row is computed, with gradients of 0."""
    other = FLAVA(replace(model.config, unimodal=Mixture(pictures=0.0, texts=1.0)), model.tokenizer)
    for stage, looks in (("unimodal", False), ("joint", True)):
        other.enter_stage(stage)
        assert {each.requires_grad for each in (other.mask_token, *other.visual.parameters())} == {looks}


def test_a_patch_has_the_codes_of_its_own_square(model: FLAVA) -> None:
    """Row by row, whatever the number of codes."""
    grid = torch.arange(64).view(1, 8, 8)
    patches = model._by_patch(grid)
    assert patches.shape == (1, 16, 4)
    assert patches[0, 0].tolist() == [0, 1, 8, 9]
    assert patches[0, 5].tolist() == [18, 19, 26, 27]
    assert torch.equal(model._in_rows(patches), grid)


def test_codes_inside_of_boxes_weigh_more(model: FLAVA, samples: list[Sample]) -> None:
    batch = model.collate(samples, np.random.default_rng(0))
    plain = FLAVA(replace(model.config, object_weight=0.0), model.tokenizer)
    plain.load_state_dict(model.state_dict())
    before, after = plain.eval().encode(batch), model.encode(batch)
    asked = batch["kind"] == IMAGE
    assert (before["mim_n"][asked] == 4 * 6).all()
    share = torch.nn.functional.adaptive_avg_pool2d(batch["objects"].float(), 8)[:, 0]
    hidden = batch["patches"].view(-1, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2)
    expected = ((1 + 3 * share) * hidden).sum(dim=(1, 2))
    assert torch.allclose(after["mim_n"][asked], expected[asked])
    assert (after["mim_nll"][asked] >= before["mim_nll"][asked]).all()


def asked_questions(model: FLAVA, samples: list[Sample]) -> FLAVA:
    other = FLAVA(replace(model.config, most_answers=40), model.tokenizer)
    other.remember([samples[:20], samples[20:]])
    other.enter_stage("vqa")
    return other.eval()


def test_questions_are_answered_with_the_training_sets_answers(model: FLAVA, samples: list[Sample], tmp_path: Path) -> None:
    assert not hasattr(model, "answer")
    asked = asked_questions(model, samples)
    counts = Counter(question.answer for sample in samples for question in sample.questions)
    assert list(asked.config.answers) == sorted(counts, key=lambda each: (-counts[each], each))[:40]
    batch = asked.collate(samples, np.random.default_rng(0))
    rows = (batch["kind"] == QUESTION).nonzero()[:, 0].tolist()
    assert len(rows) == 16
    for row in rows:
        text = asked.tokenizer.decode(batch["ids"][row].tolist())
        answer = asked.config.answers[int(batch["answer"][row])]
        assert any(
            question.answer == answer and asked.tokenizer.decode(asked.tokenizer.encode(question.question)) == text
            for question in samples[row].questions
        )
    losses = asked(batch)
    assert losses.chance["vqa"] == pytest.approx(np.log(len(asked.config.answers)))
    losses.total.backward()
    assert [name for name, p in asked.named_parameters() if (p.grad is None) != name.startswith("codebook.")] == []
    models.save(asked, tmp_path)
    again = models.load(tmp_path)
    images, questions = [sample.image for sample in samples[:3]], [sample.questions[0].question for sample in samples[:3]]
    assert again.answer(images, questions) == asked.answer(images, questions)  # type: ignore[operator]
    said = asked.answer(images, questions)
    likelihood = asked.answer_likelihood(images, questions, said)
    for other in asked.config.answers:
        assert (asked.answer_likelihood(images, questions, [other] * 3) <= likelihood + 1e-6).all()
    every = torch.stack([asked.answer_likelihood(images, questions, [each] * 3) for each in asked.config.answers])
    assert torch.allclose(every.exp().sum(dim=0), torch.ones(3), atol=1e-5)
    assert asked.answer_likelihood(images[:1], questions[:1], ["no such thing"]).tolist() == [-100.0]


def test_a_question_does_not_change_the_other_losses(model: FLAVA, samples: list[Sample]) -> None:
    asked = asked_questions(model, samples)
    batch = asked.collate(samples, np.random.default_rng(0))
    before = asked.encode(batch)
    swapped = {**batch, "ids": torch.where((batch["kind"] == QUESTION)[:, None], 7, batch["ids"])}
    after = asked.encode(swapped)
    for name in ("image", "text", "match_logits", "mim_nll", "mlm_nll", "mmm_image_nll", "mmm_text_nll"):
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["vqa_nll"], after["vqa_nll"])


def test_a_stage_that_asks_needs_answers(model: FLAVA) -> None:
    with pytest.raises(ValueError, match="no answers: expected samples with questions"):
        model.enter_stage("vqa")
    with pytest.raises(ValueError, match="expected unimodal, joint, vqa"):
        model.enter_stage("other")


def test_what_is_hidden_is_painted_and_the_rest_stays(model: FLAVA, samples: list[Sample]) -> None:
    images, texts = [sample.image for sample in samples[:4]], [sample.captions[0] for sample in samples[:4]]
    helped, alone = model.unmask(images, texts, seed=3), model.unmask(images, [""] * 4, seed=3)
    for image, (grey, filled), (same, guessed) in zip(images, helped, alone, strict=True):
        hidden = (grey != image).any(axis=-1)
        assert 0.3 < hidden.mean() <= 6 / 16
        assert np.array_equal(grey, same)
        assert np.array_equal(filled[~hidden], image[~hidden])
        assert np.array_equal(guessed[~hidden], image[~hidden])
    assert any(not np.array_equal(one, other) for (_, one), (_, other) in zip(helped, alone, strict=True))


def test_a_trained_image_encoder_is_taken_over(model: FLAVA) -> None:
    donor = FLAVA(model.config, model.tokenizer)
    model.adopt({"image_tokenizer": donor.codebook, "image_encoder": donor})
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.visual.parameters(), donor.visual.parameters(), strict=True))


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


def test_a_batch_of_any_size_has_a_kind_for_each_sample() -> None:
    for size in range(1, 12):
        assert len(Mixture(pictures=0.5, texts=0.5).kinds(size)) == size  # both halves of an odd number are rounded up
        assert len(Mixture(pictures=0.0, texts=0.0, questions=1.0).kinds(size)) == size
    with pytest.raises(ValueError, match=r"mixture\.pictures is 2, expected a share from 0 to 1"):
        Mixture(pictures=2)
    with pytest.raises(ValueError, match=r"mixture\.pictures \+ texts \+ questions is 1\.2, expected at most 1"):
        Mixture(pictures=0.6, texts=0.6)
