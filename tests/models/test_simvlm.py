"""What SimVLM promises: who sees whom, what batches are made of, likelihoods, captions and answers as text."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.sample import Question, Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.contract import IGNORE_INDEX
from models.lm.corpus import documents
from models.shared.generate import Decoding
from models.shared.images import ImageTransform
from models.shared.prefix import PADDING
from models.shared.prompts import ask
from models.shared.text import BPETokenizer
from models.simvlm import SimVLM, SimVLMConfig
from models.simvlm.collate import Mix, PrefixLMCollate
from models.simvlm.stage import StageConfig, image_stage
from models.simvlm.transformer import EncoderDecoderConfig
from tests.models.kit import assert_close, randomise

SAMPLES = [make_sample(PRESETS["tiny"], "train", index) for index in range(24)]
TEXTS = [caption for sample in SAMPLES for caption in sample.captions]
QUESTIONS = [(question.question, question.answer) for sample in SAMPLES for question in sample.questions]
TOKENIZER = BPETokenizer.train([*TEXTS, *(f"{ask(q)} {a}" for q, a in QUESTIONS)], 400)
IMAGES = [sample.image for sample in SAMPLES]


# ------------------------------------------------------------------------------------------------- architecture


def test_the_prefix_sees_all_of_itself_and_nothing_of_the_rest() -> None:
    model = _model()
    image, prefix = model._look(_pixels(model, 2)), torch.tensor([[5, 6, 7], [8, 9, PADDING]])
    before = model.transformer.read(image, prefix).states
    for place, row in ((2, 0), (1, 1)):  # the last token of each prefix changes every state before it
        changed = prefix.clone()
        changed[row, place] += 1
        after = model.transformer.read(image, changed).states
        assert not torch.isclose(after[row, : 16 + place], before[row, : 16 + place]).all(dim=-1).any()
        assert torch.equal(after[1 - row], before[1 - row])


def test_what_is_predicted_later_changes_nothing_before() -> None:
    model = _model()
    read = model.transformer.read(model._look(_pixels(model, 1)), torch.tensor([[5, 6]]))
    ids, places = torch.tensor([[1, 7, 8, 9]]), torch.arange(2, 6)[None]
    memories = model.transformer.remember(read)
    before, after = (model.transformer.predict(tokens, places, memories, read.seen) for tokens in (ids, ids + torch.tensor([0, 0, 1, 0])))
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.isclose(before[:, 2:], after[:, 2:]).all(dim=-1).any()


def test_places_go_on_after_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of the text has one place, in the prefix and after it; the start token has that of the last token before it."""
    model = _model()
    found: list[Tensor] = []
    embed = model.transformer.embed

    def watched(ids: Tensor, places: Tensor) -> Tensor:
        found.append(places.expand_as(ids))
        return embed(ids, places)

    monkeypatch.setattr(model.transformer, "embed", watched)
    batch = _batch(model, [([5, 6, 7], [8, 9])])
    model.encode(batch)
    assert [places.tolist() for places in found] == [[[1, 2, 3]], [[3, 4]]]


def test_a_hidden_picture_is_not_seen_and_a_shown_one_is() -> None:
    model = _model()
    batch = _batch(model, [([5, 6, 7], [8, 9]), ([5, 6, 7], [8, 9])], shown=[True, False])
    other = batch | {"pixels": 255 - batch["pixels"]}
    one, two = model.encode(batch)["nll"], model.encode(other)["nll"]
    assert not torch.isclose(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_a_row_does_not_depend_on_the_others() -> None:
    """Neither on the padding that longer ones bring, nor on whether they have pictures."""
    model = _model()
    rows = [([5], [8, 9, 10, 11, 2]), ([5, 6, 7, 8], [2]), ([], [5, 6, 2]), ([9, 5, 7, 8, 6, 5, 7], [8, 2]), ([7, 8], [9, 2])]
    shown = [True, True, True, False, False]
    together = model.encode(_batch(model, rows, shown=shown))
    for number, row in enumerate(rows):
        batch = _batch(model, [row], shown=[shown[number]])
        batch["pixels"] = _pixels(model, len(rows))[number : number + 1]
        alone = model.encode(batch)
        assert_close(alone["nll"][0], together["nll"][number], f"row {number}")
        assert alone["tokens"][0] == together["tokens"][number] == len(row[1])


def test_a_batch_without_pictures_gives_every_parameter_a_gradient() -> None:
    """Ranks add up their gradients, so all have to have the same ones."""
    model = _model()
    rows = [([5, 6], [8, 9, 2]), ([5], [7, 2])]
    alone = model.encode(_batch(model, rows, shown=[False, False]))
    together = model.encode(_batch(model, [*rows, ([], [5, 2])], shown=[False, False, True]))
    assert_close(alone["nll"], together["nll"][:2], "negative log-likelihood")
    alone["nll"].sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not any(parameter.grad.any() for parameter in model.stage.parameters() if parameter.grad is not None)
    model.zero_grad()
    samples = [replace(sample, questions=()) for sample in SAMPLES[:3]]
    batch = replace(model.collate, mix=Mix(texts=1.0, questions=1.0))(samples, np.random.default_rng(0))  # no questions: no second texts
    model(batch).total.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_where_the_host_does_not_know_the_values_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    batch = model.collate(SAMPLES, np.random.default_rng(0))
    assert not batch["shown"].all()
    assert not (batch["labels"] != IGNORE_INDEX).any(dim=2).all()  # not every sample has a question
    expected = model.encode(batch)
    monkeypatch.setattr("models.shared.device.host_knows", lambda _: False)
    for name, values in model.encode(batch).items():
        assert_close(values / 10, expected[name] / 10, name)


@pytest.mark.parametrize("kind", ["resnet", "conv", "patch"])
def test_a_stage_gives_a_token_for_every_sixteen_pixels(kind: Any) -> None:
    stage = image_stage(StageConfig(kind, layers=(1, 1, 1), image_size=64), 32)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = stage(pixels)
    assert tokens.shape == (2, 16, 32)
    assert_close(stage(pixels[:1]), tokens[:1], "tokens of an image alone")  # no batch statistics
    pixels[:, :, 48:, 48:] += 1
    moved = (stage(pixels) - tokens).abs().amax(dim=-1)[0].view(4, 4)
    assert moved[3, 3] == moved.max()  # row by row


def test_what_it_cannot_be_built_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--model\.stage\.patch-size is 8, expected 16: .* one token per 16 pixels"):
        image_stage(StageConfig(patch_size=8), 32)
    with pytest.raises(ValueError, match=r"--model.stage.image-size is 72, expected a multiple of the patch size, 16"):
        image_stage(StageConfig("patch", image_size=72), 32)
    with pytest.raises(ValueError, match=r"--model.transformer.width is 30, expected a multiple of 4"):
        _model(transformer=EncoderDecoderConfig(width=30, depth=1, decoder_depth=1, heads=2))


# ---------------------------------------------------------------------------------------------------- objective


def test_the_loss_equals_a_slow_one() -> None:
    """One sample and one token at a time, each read alone: -log p of every token after the prefix, weighted, over all of them."""
    model = _model()
    batch = model.collate(SAMPLES[:10], np.random.default_rng(1))
    losses = model(batch)
    total, count = 0.0, 0.0
    texts = _rows(batch)
    assert len(texts) > 12
    for pixels, shown, labels, prefixes, weights in zip(
        batch["pixels"], batch["shown"], batch["labels"], batch["prefix"], batch["weight"], strict=True
    ):
        for number in range(len(labels)):
            prefix = [token for token in prefixes[number].tolist() if token != PADDING]
            rest = [token for token in labels[number].tolist() if token != IGNORE_INDEX]
            image = model._look(pixels[None]) if shown[number] else None
            for place, token in enumerate(rest):
                logits = _next(model, image, prefix, rest[:place])
                total -= float(weights[number] * logits.double().log_softmax(dim=-1)[token])
                count += float(weights[number])
    assert losses.total.item() == pytest.approx(total / count, abs=1e-5)
    assert losses.terms["suffix"].item() == losses.total.item()


def test_a_model_that_knows_nothing_is_at_chance() -> None:
    model = _model()
    torch.nn.init.zeros_(model.transformer.tokens.weight)
    losses = model(model.collate(SAMPLES, np.random.default_rng(0)))
    assert losses.terms["suffix"].item() == pytest.approx(losses.chance["suffix"], abs=1e-6) == math.log(TOKENIZER.vocab_size)


def test_every_parameter_learns() -> None:
    model = _model()
    model(model.collate(SAMPLES, np.random.default_rng(0))).total.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]


# ------------------------------------------------------------------------------------------------------ batches


def test_a_batch_is_made_of_cut_captions_whole_ones_answers_and_texts() -> None:
    collate = _collate(Mix(texts=0.2, questions=0.5, whole=0.5, answer_weight=3.0))
    captions = {tuple(TOKENIZER.encode(text)) for text in TEXTS}
    answers = {(tuple(TOKENIZER.encode(ask(q))), tuple(TOKENIZER.encode(a))) for q, a in QUESTIONS}
    found: Counter[str] = Counter()
    for seed in range(60):
        batch = collate(SAMPLES, np.random.default_rng(seed))
        assert batch["labels"].shape[:2] == (len(SAMPLES), 2)
        for prefix, rest, shown, weight in _rows(batch):
            assert rest[-1] == TOKENIZER.end
            if not shown:
                kind = "text"
                assert prefix
                assert rest[:-1]
            elif (tuple(prefix), tuple(rest[:-1])) in answers:
                kind = "answer"
            else:
                kind = "cut" if prefix else "whole"
                assert (*prefix, *rest[:-1]) in captions
                assert rest[:-1]
            assert weight == (3.0 if kind == "answer" else 1.0)
            found[kind] += 1
    shares = {kind: count / (60 * len(SAMPLES)) for kind, count in found.items()}
    # A whole caption is also drawn by a cut before the first of its dozen tokens.
    assert shares == pytest.approx({"text": 0.2, "answer": 0.5, "whole": 0.4 * (1 + 1 / 14), "cut": 0.4 * (1 - 1 / 14)}, abs=0.04)


def test_each_caption_is_cut_at_a_place_of_its_own_before_its_last_token() -> None:
    collate = _collate(Mix(texts=0.0))
    sample = replace(SAMPLES[0], captions=("a red star above a blue circle",))
    length = len(TOKENIZER.encode(sample.captions[0]))
    cuts = Counter(len(prefix) for prefix, *_ in _rows(collate([sample] * 1400, np.random.default_rng(0))))
    assert set(cuts) == set(range(length))
    assert max(cuts.values()) < 1.5 * 1400 / length


def test_without_a_generator_the_first_caption_is_whole_and_its_picture_shown() -> None:
    batch = _collate(Mix(texts=1.0, questions=1.0))(SAMPLES)
    for sample, (prefix, rest, shown, weight) in zip(SAMPLES, _rows(batch), strict=True):
        assert (prefix, rest, shown, weight) == ([], [*TOKENIZER.encode(sample.captions[0]), TOKENIZER.end], True, 1.0)


@pytest.mark.parametrize("caption", ["", "a", "a " * 3000], ids=["nothing", "one token", "too long"])
def test_odd_captions(caption: str) -> None:
    """Nothing to cut: whole. A document of a single token would leave nothing to read, so its picture is shown. Too long: truncated."""
    model = _model(context=10)
    samples = [replace(SAMPLES[0], captions=(caption,), questions=(), objects=())] * 4
    for mix in (Mix(texts=0.0), Mix(texts=1.0)):
        batch = replace(model.collate, mix=mix)(samples, np.random.default_rng(0))
        for prefix, rest, shown, _ in _rows(batch):
            assert len(prefix) <= 10
            assert 1 <= len(rest) <= 10
            assert shown or (prefix and len(rest) > 1)
            assert shown or mix.texts
        assert model(batch).total.isfinite()
    assert len(model.caption([IMAGES[0]])[0]) >= 0
    assert model.score([IMAGES[0]], [caption]).isfinite().all()


def test_long_questions_and_answers_fit() -> None:
    model = _model(context=10)
    sample = replace(SAMPLES[0], questions=(Question("is it red? " * 40, "yes " * 40),))
    batch = replace(model.collate, mix=Mix(texts=0.0, questions=1.0))([sample], np.random.default_rng(0))
    _, (prefix, rest, _, _) = _rows(batch)
    assert (len(prefix), len(rest)) == (10, 10)
    assert model(batch).total.isfinite()
    assert len(model.answer([sample.image], [sample.questions[0].question])) == 1


def test_texts_are_documents_of_the_language_models_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def kept(samples: list[Sample], rng: np.random.Generator) -> list[str]:
        made.extend(documents(samples, rng))
        return made

    monkeypatch.setattr("models.simvlm.collate.documents", kept)
    batch = _collate(Mix(texts=1.0), context=400)(SAMPLES, np.random.default_rng(0))
    assert len(made) == len(SAMPLES)
    for text, (prefix, rest, shown, _) in zip(made, _rows(batch), strict=True):
        assert [*prefix, *rest] == [*TOKENIZER.encode(text), TOKENIZER.end]
        assert not shown


# ------------------------------------------------------------------------------------------------- capabilities


def test_a_score_is_the_likelihood_of_the_whole_text() -> None:
    model = _model()
    images, texts = [IMAGES[0], IMAGES[1], IMAGES[0], IMAGES[0]], [TEXTS[0], TEXTS[0], TEXTS[1], "a"]
    expected = [_log_p(model, image, [], TOKENIZER.encode(text)) for image, text in zip(images, texts, strict=True)]
    assert model.score(images, texts).tolist() == pytest.approx(expected, abs=1e-4)


def test_an_answers_likelihood_is_that_of_the_text_after_picture_and_question() -> None:
    model = _model()
    asked = [QUESTIONS[0][0], QUESTIONS[0][0], QUESTIONS[1][0], QUESTIONS[0][0], "is it?"]
    images, answers = [IMAGES[0], IMAGES[0], IMAGES[0], IMAGES[2], IMAGES[2]], ["yes", "no", "yes", "a large red star", ""]
    expected = [
        _log_p(model, image, TOKENIZER.encode(ask(question)), TOKENIZER.encode(answer))
        for image, question, answer in zip(images, asked, answers, strict=True)
    ]
    assert model.answer_likelihood(images, asked, answers).tolist() == pytest.approx(expected, abs=1e-4)


def test_captions_and_answers_are_the_likeliest_tokens_one_after_another() -> None:
    model = _model(context=12)
    never = {TOKENIZER.pad, TOKENIZER.start}
    asked = [question for question, _ in QUESTIONS[:3]]
    begun = TOKENIZER.encode("a picture of")
    written = [model.caption(IMAGES[:3]), model.answer(IMAGES[:3], asked), model.caption(IMAGES[:3], prompt="a picture of")]
    for row in range(3):
        for texts, prefix, before in zip(written, ([], TOKENIZER.encode(ask(asked[row])), begun), ([], [], begun), strict=True):
            tokens: list[int] = []
            while len(tokens) < 12:
                logits = _next(model, _seen(model, IMAGES[row]), prefix, tokens)
                best = max((token for token in range(len(logits)) if token not in never), key=lambda token: float(logits[token]))
                if best == TOKENIZER.end:
                    break
                tokens.append(best)
            assert texts[row] == TOKENIZER.decode([*before, *tokens])
    assert all(text.startswith("a picture of") for text in written[2])


def test_beams_find_likelier_texts_than_greedy_decoding() -> None:
    """Rows of the beams change places: each has to keep its own picture and its own question."""
    model = _model(context=6)
    how = Decoding(beams=4, length_penalty=0.0)
    prefixes = [model.collate.question(question) for question, _ in QUESTIONS[:12]]
    greedy, beams = (model._write(IMAGES[:12], prefixes, each) for each in (Decoding(), how))
    assert greedy != beams
    likelihoods = [
        [_log_p(model, IMAGES[row], prefixes[row], texts[row], end=len(texts[row]) < 6) for row in range(12)] for texts in (greedy, beams)
    ]
    assert all(other >= one - 1e-4 for one, other in zip(*likelihoods, strict=True))


def test_nothing_asked_nothing_said() -> None:
    model = _model()
    assert model.caption([]) == [] == model.answer([], [])
    assert model.score([], []).shape == (0,)


def test_features_depend_on_the_picture_alone_and_have_length_one() -> None:
    model = _model()
    together, alone = model.encode_image(IMAGES[:3]), torch.cat([model.encode_image([image]) for image in IMAGES[:3]])
    assert_close(together, alone, "features")
    assert_close(together.norm(dim=1), torch.ones(3), "length")
    assert not torch.isclose(together[0], together[1]).all()


# ------------------------------------------------------------------------------------------------------ helpers


def _model(**changes: Any) -> SimVLM:
    config = SimVLMConfig(
        stage=StageConfig("conv", image_size=64),
        transformer=EncoderDecoderConfig(width=32, depth=2, decoder_depth=2, heads=2),
        context=64,
        vocab_size=TOKENIZER.vocab_size,
        mix=Mix(questions=0.4, whole=0.3, answer_weight=3.0),
    )
    torch.manual_seed(0)
    model = SimVLM(replace(config, **changes), TOKENIZER).eval()
    randomise(model, 1)
    return model


def _collate(mix: Mix, context: int = 96) -> PrefixLMCollate:
    return PrefixLMCollate(ImageTransform(64), TOKENIZER, context, mix)


def _pixels(model: SimVLM, count: int) -> Tensor:
    return model.collate.transform(IMAGES[:count])


def _batch(model: SimVLM, rows: list[tuple[list[int], list[int]]], shown: list[bool] | None = None) -> dict[str, Tensor]:
    prefix, labels = torch.full((len(rows), 9), PADDING), torch.full((len(rows), 8), IGNORE_INDEX)
    for number, (begin, rest) in enumerate(rows):
        prefix[number, : len(begin)] = torch.tensor(begin, dtype=torch.long)
        labels[number, : len(rest)] = torch.tensor(rest)
    seen = torch.tensor(shown or [True] * len(rows))
    texts = {"prefix": prefix, "labels": labels, "shown": seen, "weight": torch.ones(len(rows))}
    return {"pixels": _pixels(model, len(rows))} | {name: each[:, None] for name, each in texts.items()}


def _rows(batch: dict[str, Tensor]) -> list[tuple[list[int], list[int], bool, float]]:
    """Prefix, rest, whether the picture is shown, and weight of all texts of all samples."""
    flat = (batch[name].flatten(0, 1) for name in ("prefix", "labels", "shown", "weight"))
    found = [
        (
            [token for token in prefix.tolist() if token != PADDING],
            [token for token in labels.tolist() if token != IGNORE_INDEX],
            bool(shown),
            float(weight),
        )
        for prefix, labels, shown, weight in zip(*flat, strict=True)
    ]
    return [row for row in found if row[1]]


def _seen(model: SimVLM, image: np.ndarray) -> Tensor:
    return model._look(model.collate.transform([image]))


@torch.no_grad()
def _next(model: SimVLM, image: Tensor | None, prefix: list[int], rest: list[int]) -> Tensor:
    """Logits of the next token `[V]`, computed for one row without padding, cache or tree."""
    read = model.transformer.read(image, torch.tensor([prefix], dtype=torch.long).view(1, -1))
    ids = torch.tensor([[TOKENIZER.start, *rest]])
    places = torch.arange(len(prefix), len(prefix) + len(rest) + 1)[None]
    return model.transformer.predict(ids, places, model.transformer.remember(read), read.seen)[0, -1]


def _log_p(model: SimVLM, image: np.ndarray, prefix: list[int], rest: list[int], *, end: bool = True) -> float:
    found, seen = 0.0, _seen(model, image)
    for place, token in enumerate([*rest, TOKENIZER.end] if end else rest):
        found += float(_next(model, seen, prefix, rest[:place]).double().log_softmax(dim=-1)[token])
    return found
