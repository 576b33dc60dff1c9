"""What CM3leon draws, writes, scores and fills."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.cm3leon.drawing import Sampling, contrasted
from models.shared.generate import Decoding
from tests.models.cm3leon_kit import CONFIG, FRAMED, TOKENIZER, build, coloured, drawn_slowly, resolved
from tests.models.kit import randomise


@FRAMED
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_drawing_with_a_cache_is_drawing_without(framed: bool, guidance: float) -> None:
    """Token by token, from scratch for each."""
    model = build(framed=framed)
    randomise(model.decoder, 5)
    texts = ["a red square", "a large blue square on a plain background", ""]
    drawn = model.image_tokenizer.tokens(model.draw(texts, how=Sampling(guidance, temperature=0)))
    for text, codes in zip(texts, drawn_slowly(model, texts, guidance), strict=True):
        row = model.image_tokenizer.tokens(model.image_tokenizer.paint(codes[None]))
        assert torch.equal(row[0], drawn[texts.index(text)]), text


@FRAMED
def test_writing_with_a_cache_is_writing_without(framed: bool) -> None:
    model = build(framed=framed)
    randomise(model.decoder, 6)
    images = [sample.image for sample in coloured(3)]
    written = model.caption(images)
    for image, text in zip(images, written, strict=True):
        row = model.builder.captioning()
        ids, places = resolved(model, row, image)
        found: list[int] = []
        while len(found) < model.frame.text:
            places_now = places if framed else list(range(len(ids)))
            logits = model.decoder.logits(model.decoder(torch.tensor([ids]), torch.tensor([places_now]))[0, -1])[: CONFIG.vocab_size]
            logits[[TOKENIZER.pad, 1]] = float("-inf")
            token = int(logits.argmax())
            if token == TOKENIZER.end:
                break
            found.append(token)
            ids, places = [*ids, token], [*places, 2 * model.frame.length + len(found)]
        assert TOKENIZER.decode(found) == text


def test_likelihoods_are_sums_of_log_probabilities() -> None:
    model = build()
    randomise(model.decoder, 7)
    images = [sample.image for sample in coloured(2)]
    scores = model.score(images, ["a red square", "a large blue square"])
    assert scores.shape == (2,)
    for image, text, score in zip(images, ["a red square", "a large blue square"], scores, strict=True):
        text_ids = TOKENIZER.encode(text)
        ids, places = resolved(model, model.builder.document(text_ids, [(0, len(text_ids))]), image)
        log_p = model.decoder.logits(model.decoder(torch.tensor([ids]), torch.tensor([places]))[0]).log_softmax(dim=-1)
        last = len(text_ids) + 1  # the end token, too
        assert score.item() == pytest.approx(sum(log_p[-t - 1, ids[-t]].item() for t in range(1, last + 1)), rel=1e-4)
    asked = model.answer_likelihood(images, ["what colour?"] * 2, ["red", "blue"])
    assert (asked < 0).all()
    assert model.answer_likelihood(images[:1], ["what colour?"], ["red"])[0] == pytest.approx(asked[0].item(), rel=1e-4)
    assert model.score(images[1:], ["a large blue square"])[0] == pytest.approx(scores[1].item(), rel=1e-4)
    one, two = images  # a picture is read once for all of its texts, wherever they stand
    mixed = model.score([one, two, one], ["a red square", "a large blue square", "a star"])
    assert mixed[:2].tolist() == pytest.approx(scores.tolist(), rel=1e-4)
    assert mixed[2].item() == pytest.approx(model.score([one], ["a star"]).item(), rel=1e-4)


def test_contrast_allows_what_is_likely_enough() -> None:
    conditional = torch.tensor([[4.0, 3.0, 2.5, -1.0, 0.0]])
    unconditional = torch.tensor([[5.0, 1.0, 2.0, -6.0, 0.0]])
    p, q = conditional.softmax(dim=-1)[0], unconditional.softmax(dim=-1)[0]
    for k in (1, 2, 3):
        kept = p >= 0.3 * p.sort(descending=True).values[k - 1]
        found = contrasted(conditional, unconditional, alpha=0.3, k=k)[0]
        assert torch.equal(found.isfinite(), kept)
        torch.testing.assert_close(found[kept], (p / q).log()[kept])
    assert not found[3].isfinite()  # the best ratio of all, but too unlikely


def test_drawings_depend_on_the_seed_and_are_re_ranked_by_the_retriever() -> None:
    model = build()
    randomise(model.decoder, 8)
    texts = ["a red square", "a blue square"]
    once, again, other = (model.draw(texts, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(once, other, strict=True))
    rounds = [model.draw(texts, seed=1_000_003 * index) for index in range(4)]
    wanted = model.retriever.encode_text(texts)
    fits = torch.stack([(model.retriever.encode_image(pictures) * wanted).sum(dim=1) for pictures in rounds])
    for place, picture in enumerate(model.draw(texts, seed=0, samples=4)):
        assert np.array_equal(picture, rounds[int(fits[:, place].argmax())][place])
    contrast = model.draw(texts, how=Sampling(contrast_k=2))
    assert [picture.shape for picture in contrast] == [(16, 16, 3)] * 2


def test_filling_changes_the_box_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    randomise(model.decoder, 9)
    images = [sample.image for sample in coloured(2)]
    boxes = [(4.0, 4.0, 12.0, 12.0), (12.0, 0.0, 16.0, 3.0)]
    before = model.image_tokenizer.tokens(images)
    monkeypatch.setattr(model.image_tokenizer, "paint", list)
    filled = model.infill(images, boxes, ["a red square", "a blue square"])
    inside = torch.zeros(2, 4, 4, dtype=torch.bool)  # cells of 4 x 4 pixels
    inside[0, 1:3, 1:3] = inside[1, 0, 3] = True
    for codes, old, box in zip(filled, before, inside.flatten(1), strict=True):
        assert torch.equal(torch.as_tensor(codes)[~box], old[~box])
        assert 0 <= torch.as_tensor(codes).min() <= torch.as_tensor(codes).max() < model.vocabulary.images
    assert not torch.equal(torch.as_tensor(filled[0]), before[0])
    with pytest.raises(ValueError, match="outside of its picture"):
        model.infill(images[:1], [(20.0, 20.0, 30.0, 30.0)], ["a red square"])


def test_image_tokens_in_texts_and_texts_in_pictures_are_impossible() -> None:
    """Even where the decoder wants nothing else."""
    model = build()
    with torch.no_grad():
        model.decoder.tokens.weight.normal_(std=0.1)
        model.decoder.tokens.weight[model.vocabulary.image] *= 100
    images = [sample.image for sample in coloured(2)]
    assert all(isinstance(text, str) for text in model.caption(images, Decoding(temperature=1.0)))
    with torch.no_grad():
        model.decoder.tokens.weight[model.vocabulary.image] /= 1e4
        model.decoder.tokens.weight[: model.vocabulary.text] *= 100
    assert len(model.draw(["a red square"] * 3)) == 3


@pytest.mark.parametrize(
    "text",
    ["", " ", "square " * 500, "\N{GRINNING FACE} наука \x00\x07", "<end> <break> <mask>"],
    ids=["empty", "blank", "long", "unknown", "marks"],
)
def test_any_text_can_be_drawn_scored_and_asked(text: str) -> None:
    model = build()
    image = coloured(1)[0].image
    assert model.draw([text])[0].shape == (16, 16, 3)
    assert model.score([image], [text]).isfinite().all()
    assert isinstance(model.answer([image], [text])[0], str)
    assert model.answer_likelihood([image], [text], [text]).isfinite().all()
    assert len(model.edit([image], [text])) == len(model.infill([image], [(0.0, 0.0, 8.0, 8.0)], [text])) == 1


def test_nothing_in_nothing_out() -> None:
    model = build()
    assert model.draw([]) == model.caption([]) == model.answer([], []) == model.edit([], []) == model.infill([], [], []) == []
