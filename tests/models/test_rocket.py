"""CLIP-rocket: its loss against a second derivation, exact in parts, and texts that stay true."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.fields import FieldError
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.language import NUMBERS, VOCABULARY
from data.scenes.world import PRESETS, TEXTURES, TONES
from models.clip import CLIP, CLIPConfig, CLIPRocket, CLIPRocketConfig
from models.clip.views import View, without_stop_words
from models.shared.images import normalise
from models.shared.text import BPETokenizer
from recipes import clip_rocket, slip
from tests.models.kit import texts
from tests.models.test_slip import smaller
from tests.models.views_kit import (
    BATCH,
    CONTEXT,
    SMALL,
    assert_equal,
    assert_exact_in_parts,
    assert_learns,
    batch,
    before_norms,
    build,
    double,
    gradients,
    slow_clip,
    slow_mlp,
    step,
    unit,
)

CONFIG = CLIPRocketConfig(**SMALL, view=View(size=16), hidden=24, smoothing=0.15)
SAMPLES = [make_sample(PRESETS["tiny"], "train", index) for index in range(60)]


def rows_of_texts(size: int = BATCH) -> dict[str, Tensor]:
    return batch(size) | {name: texts(size, CONTEXT, pad=0, end=99, seed=seed) for seed, name in enumerate(("ids1", "ids2"), 5)}


def slow_losses(model: Any, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sheet's formula, one pair of a strong view and a strong text at a time."""
    pixels, *views = (normalise(rows[name], model.config.mean, model.config.std) for name in ("pixels", "view1", "view2"))
    image = unit(model.visual(pixels) @ model.visual_projection.weight.T)
    text = unit(model.text(rows["ids"]) @ model.text_projection.weight.T)
    weak = slow_clip(image, text, model.logit_scale.exp())
    if model.config.separate:
        strong_images = [unit(slow_mlp(model.image_projector, smaller(model, view))) for view in views]
        strong_texts = [unit(slow_mlp(model.text_projector, model.text(rows[name]))) for name in ("ids1", "ids2")]
        scale = model.strong_scale.exp()
    else:
        strong_images = [unit(smaller(model, view) @ model.visual_projection.weight.T) for view in views]
        strong_texts = [unit(model.text(rows[name]) @ model.text_projection.weight.T) for name in ("ids1", "ids2")]
        scale = model.logit_scale.exp()
    pairs = [slow_clip(one, other, scale, smoothing=0.15) for one in strong_images for other in strong_texts]
    strong = [sum(pair[side] for pair in pairs) / 4 for side in (0, 1)]
    total = sum((weak[side] + 2 * strong[side]) / 3 for side in (0, 1)) / 2
    names = ("image_to_text", "text_to_image", "strong_image_to_text", "strong_text_to_image")
    return {"total": total} | dict(zip(names, (*weak, *strong), strict=True))


@pytest.mark.parametrize("separate", [True, False], ids=["projectors of their own", "CLIP's projections"])
def test_losses_and_all_gradients_equal_the_slow_derivation(separate: bool) -> None:
    model, rows = build(CLIPRocket, replace(CONFIG, separate=separate)), rows_of_texts()
    found = step(model, rows)
    model.zero_grad()
    with double():
        slow = slow_losses(model, rows)
        slow["total"].backward()
    assert_equal(found, ({name: value.detach() for name, value in slow.items()}, gradients(model)))
    heads = ("image_projector", "text_projector") if separate else ()
    assert_learns(model, found[1], but=tuple(name for head in heads for name in before_norms(getattr(model, head), head)))


def test_micro_batches_and_two_ranks_equal_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_exact_in_parts(build(CLIPRocket, CONFIG), rows_of_texts(), monkeypatch)


def test_chance_is_the_loss_of_features_that_are_all_alike() -> None:
    """With smoothing, too."""
    model = build(CLIPRocket, CONFIG)
    features = {name: torch.ones(5, 16, dtype=torch.float64) / 4 for name in ("image", "text")}
    features |= {name: torch.ones(5, 32, dtype=torch.float64) for name in ("view1", "view2")}
    losses = model.objective(features | {name: torch.ones(5, 24, dtype=torch.float64) for name in ("text1", "text2")})
    assert losses.chance == dict.fromkeys(losses.terms, math.log(5))
    assert {name: term.item() for name, term in losses.terms.items()} == pytest.approx(losses.chance, rel=1e-6)


def tiny(kind: Any, config: Any, words: BPETokenizer) -> Any:
    torch.manual_seed(0)
    return kind(replace(config, vocab_size=words.vocab_size), words)


def test_the_weak_pair_is_clips() -> None:
    words = BPETokenizer.train([caption for sample in SAMPLES for caption in sample.captions], 600)
    ours, theirs = tiny(CLIPRocket, CLIPRocketConfig.tiny(), words), tiny(CLIP, CLIPConfig.tiny(), words)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    pairs, more = (model.collate(SAMPLES[:12], np.random.default_rng(4)) for model in (theirs, ours))
    assert torch.equal(more["pixels"], pairs["pixels"])
    assert torch.equal(more["ids"][:, : pairs["ids"].shape[1]], pairs["ids"])
    clips, rockets = theirs(pairs), ours(more)
    for name, term in clips.terms.items():
        assert rockets.terms[name].item() == pytest.approx(term.item(), rel=1e-5)
    assert torch.equal(ours.encode_text(["a red star"]), theirs.encode_text(["a red star"]))


def test_both_scales_stay_between_1_and_100() -> None:
    model = build(CLIPRocket, CONFIG)
    for before, after in ((-0.5, 0.0), (9.0, math.log(100))):
        with torch.no_grad():
            model.logit_scale.fill_(before)
            model.strong_scale.fill_(before)
        model.after_step()
        assert model.logit_scale.item() == model.strong_scale.item() == pytest.approx(after)


# ------------------------------------------------------------------------------------------------------------------ texts


def test_no_word_that_says_something_is_dropped() -> None:
    says = {word for words in (*VOCABULARY.values(), NUMBERS, TONES, TEXTURES) for word in words} | {"left", "right", "above", "below"}
    says |= {"top", "bottom", "middle", "on", "in", "at", "objects"}
    dropped: set[str] = set()
    for sample in SAMPLES:
        for caption in sample.captions:
            short = without_stop_words(caption).split()
            dropped |= set(caption.split()) - set(short)
            assert [word for word in caption.split() if word in short] == short  # in their order
    assert dropped >= {"a", "of", "and"}
    assert not dropped & says


@pytest.mark.parametrize(
    "text", ["There is no dog in the car", "a man without a hat", "not red", "nobody is under the table", "two of them"]
)
def test_negations_places_and_numbers_stay(text: str) -> None:
    kept = without_stop_words(text).split()
    assert {"no", "in", "without", "not", "nobody", "under", "two"} & set(text.split()) <= set(kept)


@pytest.mark.parametrize("text", ["The", "it is", ""])
def test_a_text_of_stop_words_alone_stays_as_it_is(text: str) -> None:
    assert without_stop_words(text) == text


def test_strong_texts_are_the_pictures_other_captions() -> None:
    words = BPETokenizer.train([caption for sample in SAMPLES for caption in sample.captions], 600)
    model = tiny(CLIPRocket, replace(CLIPRocketConfig.tiny(), drop=0.0), words)
    rows = model.collate(SAMPLES, np.random.default_rng(0))
    for row, sample in enumerate(SAMPLES):
        said = [words.decode(rows[name][row].tolist()) for name in ("ids", "ids1", "ids2")]
        assert len(set(said)) == 3
        assert set(said) <= {words.decode(words.encode(caption)) for caption in sample.captions}


def test_a_single_caption_is_all_three_texts_but_for_stop_words() -> None:
    words = BPETokenizer.train([caption for sample in SAMPLES for caption in sample.captions], 600)
    single = [Sample(sample.key, sample.image, (sample.captions[0],)) for sample in SAMPLES]
    rows = tiny(CLIPRocket, CLIPRocketConfig.tiny(), words).collate(single, np.random.default_rng(0))
    said = [[words.decode(rows[name][row].tolist()) for name in ("ids", "ids1", "ids2")] for row in range(len(single))]
    assert all(set(texts) <= {texts[0], without_stop_words(texts[0])} for texts in said)
    share = np.mean([text != texts[0] for texts in said for text in texts[1:]])
    assert 0.65 < share < 0.95  # of .8


# ----------------------------------------------------------------------------------------------------------------- claims


def test_arms_differ_in_one_thing_each() -> None:
    base = slip.short(clip_rocket.PRESETS["tiny"]).model
    found = {}
    for change in (clip_rocket.without_image_views, clip_rocket.without_text_views, clip_rocket.without_projectors):
        arm = change(slip.short(clip_rocket.PRESETS["tiny"])).model
        found[change.__name__] = {name for name, value in vars(arm).items() if value != vars(base)[name]}
    assert found == {"without_image_views": {"view"}, "without_text_views": {"paraphrase", "drop"}, "without_projectors": {"separate"}}


@pytest.mark.parametrize("changes", [{"smoothing": 1.5}, {"drop": -0.1}, {"strong_temperature": 0.0}])
def test_what_cannot_be_is_said(changes: dict[str, Any]) -> None:
    with pytest.raises(FieldError, match=next(iter(changes))):
        replace(CONFIG, **changes)
