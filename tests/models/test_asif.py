"""ASIF against a dense derivation in NumPy and against the reference's order of operations; editing is exact; edges are defined."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.asif import ASIF, ASIFConfig
from models.asif.relative import BLOCK, CHUNK, Relative, products, relative
from models.asif.texts import surprising_words
from models.classifier import Classifier, ClassifierConfig
from models.lm import LM, LMConfig
from models.shared.backbones import LanguageConfig
from models.shared.text import BPETokenizer, layout
from recipes.train.loop import train
from recipes.train.recipe import Log, Recipe
from tests.data.kit import encode, good_members, picture, write_tar
from tests.models.kit import tokenizer

SAMPLES = [make_sample(PRESETS["tiny"], "train", index) for index in range(40)]
IMAGES, TEXTS = [sample.image for sample in SAMPLES], [sample.captions[0] for sample in SAMPLES]
LANGUAGE = LanguageConfig(width=32, depth=2, heads=2, hidden=48)
WORDS = BPETokenizer.train([text for sample in SAMPLES for text in sample.captions], 500)


def build(**changes: Any) -> ASIF:
    torch.manual_seed(0)
    model = ASIF(replace(ASIFConfig.tiny(), language=LANGUAGE, vocab_size=WORDS.vocab_size, **{"k": 7, "p": 3.0} | changes), WORDS)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def filled(count: int = 30, **changes: Any) -> ASIF:
    model = build(**changes)
    model.add(IMAGES[:count], TEXTS[:count])
    return model


def unit(count: int, dim: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def derived(x: Tensor, anchors: Tensor, k: int, p: float) -> np.ndarray:
    """Anchor by anchor, in float64: the k largest products, then the power, then unit length."""
    rows = []
    for vector in x.double().numpy():
        similar = [float(vector @ anchor) for anchor in anchors.double().numpy()]
        nearest = sorted(range(len(similar)), key=lambda i: (-similar[i], i))[:k]
        row = np.zeros(len(similar))
        for i in nearest:
            row[i] = similar[i] ** p if similar[i] > 0 else 0.0
        rows.append(row / (np.linalg.norm(row) or 1.0))
    return np.stack(rows)


# ------------------------------------------------------------------------------------------- relative representations


@pytest.mark.parametrize("p", [1, 2, 3, 8, 2.5, 0.5])
@pytest.mark.parametrize("k", [1, 5, 50, 97, 500])
def test_it_is_the_dense_derivation(k: int, p: float) -> None:
    x, anchors = unit(9, 12, 0), unit(97, 12, 1)
    assert np.abs(relative(x, anchors, k=k, p=p).dense(97).numpy() - derived(x, anchors, k, p)).max() <= 1e-6


@pytest.mark.parametrize("chunk", [1, 2, 3, 10, 61, 96, 97, 1000])
@pytest.mark.parametrize("k", [1, 20, 200])
def test_chunks_of_any_size_change_no_bit(k: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a chunk holds fewer than k anchors, or none that is similar."""
    monkeypatch.setattr("models.asif.relative.BLOCK", 8)
    x, anchors = unit(9, 12, 0), unit(97, 12, 1)
    anchors[10:20] = -x[0]  # a chunk of nothing but opposites
    anchors[40:50] = anchors[60:70]  # and ties
    whole, parts = relative(x, anchors, k=k, p=3, chunk=97), relative(x, anchors, k=k, p=3, chunk=chunk)
    assert torch.equal(whole.anchors, parts.anchors)
    assert torch.equal(whole.weights, parts.weights)
    other = relative(unit(5, 12, 3), anchors, k=k, p=3)
    dense = whole.dense(97) @ other.dense(97).T
    assert torch.allclose(products(whole, other, 97), dense, atol=1e-6)


def test_nor_do_chunks_of_many_blocks() -> None:
    """Of sizes for which a library multiplies with other kernels than for small ones."""
    x, anchors = unit(33, 160, 0), unit(9 * BLOCK + 7, 160, 1)
    whole, *others = (relative(x, anchors, k=300, p=8, chunk=chunk) for chunk in (len(anchors), 1, 2 * BLOCK, CHUNK))
    assert all(torch.equal(whole.anchors, each.anchors) and torch.equal(whole.weights, each.weights) for each in others)
    exact = (x.double() @ anchors.double().T).topk(300).values
    found = x.double()[:, None] @ anchors.double()[whole.anchors].mT
    assert torch.allclose(found[:, 0], exact, atol=1e-6)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_a_score_depends_on_its_pair_alone(count: int) -> None:
    anchors = unit(97, 12, 1)
    one, other = (relative(unit(40, 12, seed), anchors, k=20, p=3) for seed in (0, 3))
    some = products(Relative(*(each[:count] for each in one)), other, 97)
    assert torch.equal(some, products(one, other, 97)[:count])


@pytest.mark.parametrize("p", [1, 2, 3, 8])
def test_with_similar_anchors_only_it_is_the_references_computation(p: int) -> None:
    """Products, all but the largest k set to 0, power, normalise: the released code, which keeps negative products."""
    x, anchors = unit(9, 12, 0).abs(), unit(97, 12, 1).abs()
    raw = x @ anchors.T
    top = raw.topk(20)
    sparse = torch.zeros_like(raw).scatter(1, top.indices, top.values) ** p
    assert torch.allclose(relative(x, anchors, k=20, p=p).dense(97), sparse / sparse.norm(dim=1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("p", [1, 2, 3, 2.5])
def test_what_is_unlike_counts_as_nothing_for_every_power(p: float) -> None:
    x = torch.tensor([[1.0, 0.0]])
    anchors = torch.tensor([[0.6, 0.8], [-0.8, 0.6], [-1.0, 0.0]])
    assert torch.allclose(relative(x, anchors, k=3, p=p).dense(3), torch.tensor([[1.0, 0.0, 0.0]]))
    assert relative(x, anchors[1:], k=2, p=p).dense(2).tolist() == [[0.0, 0.0]]


def test_high_powers_do_not_underflow() -> None:
    found = relative(0.01 * unit(4, 12, 0), unit(97, 12, 1), k=20, p=64).dense(97)
    assert torch.allclose(found.norm(dim=1), torch.ones(4))


def test_of_equal_anchors_the_first_are_taken() -> None:
    anchors = unit(3, 12, 1)[[0, 1, 1, 1, 2]]
    assert relative(anchors[1:2], anchors, k=2, p=1).anchors.tolist() == [[1, 2]]


# --------------------------------------------------------------------------------------------------------- encoders


def test_words_count_as_much_as_they_surprise() -> None:
    model = build()
    text = TEXTS[0]
    ids = [WORDS.start, *WORDS.encode(text), WORDS.end]
    with torch.no_grad():
        logits = model.language(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        table = model.language.get_input_embeddings().weight.double()
        weights = [-float(logits[place, token]) for place, token in enumerate(ids[1:-1])]
        expected = sum(weight * table[token] for weight, token in zip(weights, ids[1:-1], strict=True)) / sum(weights)
        found = surprising_words(model.language, layout(WORDS, [text, TEXTS[1] * 2], 64), WORDS)
    assert torch.allclose(found[0].double(), expected, atol=1e-5)


def test_towers_are_taken_over_frozen_and_stay_bitwise() -> None:
    tower = Classifier(ClassifierConfig.tiny(), WORDS)
    language = LM(LMConfig(language=LANGUAGE, vocab_size=WORDS.vocab_size), WORDS)
    model = build()
    model.adopt({"image_tower": tower, "language_model": language})
    model.add(IMAGES[:4], TEXTS[:4])
    for mine, theirs in ((model.visual, tower.visual), (model.language, language.language)):
        state = theirs.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in mine.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.allclose(model.anchors.image, tower.encode_image(IMAGES[:4]), atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- anchors


def test_scores_are_those_of_the_formula() -> None:
    model = filled()
    seen = derived(model._image_vectors(model.collate.images(IMAGES)), model.anchors.image, 7, 3)
    told = derived(model._text_vectors(model.collate.texts(TEXTS)), model.anchors.text, 7, 3)
    assert np.abs(model.encode_image(IMAGES).numpy() - seen).max() <= 1e-5  # of float32 towers, run in another batch
    assert np.abs(model.compare(IMAGES, TEXTS).numpy() - seen @ told.T).max() <= 1e-5
    assert torch.allclose(model.compare(IMAGES, TEXTS), model.encode_image(IMAGES) @ model.encode_text(TEXTS).T, atol=1e-6)


def test_deleted_anchors_were_never_there() -> None:
    gone = [0, 3, 4, 17, 29]
    edited, without = filled(), build()
    before = edited.compare(IMAGES, TEXTS)
    assert edited.caption(IMAGES)  # what captions remember of the anchors must go, too
    edited.delete(gone)
    kept = [i for i in range(30) if i not in gone]
    without.add([IMAGES[i] for i in kept], [TEXTS[i] for i in kept])
    for name, held in without.anchors.named_buffers():
        assert torch.allclose(dict(edited.anchors.named_buffers())[name].float(), held.float(), atol=1e-6), name
    assert torch.allclose(edited.compare(IMAGES, TEXTS), without.compare(IMAGES, TEXTS), atol=1e-5)
    assert edited.caption(IMAGES) == without.caption(IMAGES)
    edited.add([IMAGES[i] for i in gone], [TEXTS[i] for i in gone])  # in another order: the axes are exchanged, the scores are not
    assert torch.allclose(edited.compare(IMAGES, TEXTS), before, atol=1e-5)
    with pytest.raises(IndexError, match=r"rows 0 to 29, and 3 to 30"):
        edited.delete([3, 30])


def test_fitting_batches_is_adding_pairs() -> None:
    fitted, added = build(), filled(20)
    for start in (0, 10):
        fitted(fitted.collate(SAMPLES[start : start + 10]))  # without a generator: the first captions
    assert torch.equal(fitted.anchors.ids, added.anchors.ids)
    assert torch.allclose(fitted.anchors.text, added.anchors.text, atol=1e-6)
    assert torch.allclose(fitted.anchors.image, added.anchors.image, atol=1e-6)
    control = build(permuted=True)
    control(control.collate(SAMPLES[:10]))
    assert torch.equal(control.anchors.ids, fitted.anchors.ids[:10].roll(1, 0))
    assert torch.equal(control.anchors.pictures, fitted.anchors.pictures[:10])


def test_anchors_can_be_looked_at() -> None:
    model = filled(side=64)
    picture, text = model.anchor(5)
    assert np.array_equal(picture, IMAGES[5])
    assert text == TEXTS[5]
    assert filled(5).anchor(4)[0].shape == (32, 32, 3)
    assert filled(5, side=0).anchor(4)[0].size == 0


def test_the_reasons_of_a_score_add_up_to_it() -> None:
    model = filled()
    scores = model.compare(IMAGES[:6], TEXTS[:6]).diagonal()
    seen, told = model.encode_image(IMAGES[:6]), model.encode_text(TEXTS[:6])
    for i, reasons in enumerate(model.explain(IMAGES[:6], TEXTS[:6], most=30)):
        assert sum(reason.share for reason in reasons) == pytest.approx(1.0, abs=1e-5)
        for reason in reasons:
            assert reason.share * float(scores[i]) == pytest.approx(float(seen[i, reason.row] * told[i, reason.row]), abs=1e-6)
            assert reason.text == TEXTS[reason.row]
        assert [reason.share for reason in reasons] == sorted((reason.share for reason in reasons), reverse=True)
    most = model.explain(IMAGES[:1], TEXTS[:1], most=1)[0]
    assert most[0].row == 0  # its own pair is among the anchors


def test_captions_are_the_anchors_text_that_fits_best(monkeypatch: pytest.MonkeyPatch) -> None:
    model = filled()
    scores = model.compare(IMAGES, TEXTS[:30])
    assert model.caption(IMAGES) == [TEXTS[i] for i in scores.argmax(dim=1).tolist()]
    monkeypatch.setattr("models.asif.model.ROWS", 7)
    model._caption_anchors = None
    assert model.caption(IMAGES) == [TEXTS[i] for i in scores.argmax(dim=1).tolist()]


def test_a_run_folder_holds_the_anchors(tmp_path: Path) -> None:
    model = filled()
    models.save(model, tmp_path)
    loaded: Any = models.load(tmp_path)
    assert torch.equal(loaded.compare(IMAGES, TEXTS), model.compare(IMAGES, TEXTS))
    assert loaded.caption(IMAGES[:3]) == model.caption(IMAGES[:3])
    assert len(models.load(tmp_path, weights=False).anchors) == 0  # type: ignore[arg-type]
    narrow = build(context=16)
    with pytest.raises(RuntimeError, match=r"anchors.ids"):
        narrow.load_state_dict(model.state_dict())


# ------------------------------------------------------------------------------------------------------------ edges


def test_without_anchors_nothing_is_like_anything() -> None:
    model = build()
    assert model.encode_image(IMAGES[:2]).tolist() == [[0.0], [0.0]]
    assert model.encode_text(TEXTS[:3]).shape == (3, 1)
    assert model.compare(IMAGES[:2], TEXTS[:3]).tolist() == [[0.0] * 3] * 2
    assert model.caption(IMAGES[:2]) == ["", ""]
    assert model.explain(IMAGES[:2], TEXTS[:2]) == [[], []]


def test_a_picture_that_no_anchor_is_like_fits_no_text() -> None:
    model = filled()
    model.anchors.image = -model._image_vectors(model.collate.images(IMAGES[:1])).expand(30, -1)
    assert model.compare(IMAGES[:1], TEXTS).abs().max() == 0
    assert model.caption(IMAGES[:1]) == [""]
    assert model.explain(IMAGES[:1], TEXTS[:1]) == [[]]


def test_an_empty_text_is_like_nothing_and_an_anchor_needs_both_halves() -> None:
    model = filled()
    assert model.compare(IMAGES[:2], [""]).abs().max() == 0
    assert model.compare([], TEXTS[:2]).shape == (0, 2)
    assert model.compare(IMAGES[:2], []).shape == (2, 0)
    with pytest.raises(ValueError, match="picture 1 of 2 has none"):
        model.add(IMAGES[:2], [TEXTS[0], " "])
    with pytest.raises(ValueError, match="got 2 pictures and 1 texts"):
        model.add(IMAGES[:2], TEXTS[:1])
    assert len(model.anchors) == 30


def test_with_k_above_n_all_anchors_count() -> None:
    few, many = filled(5, k=5), filled(5, k=800)
    assert torch.equal(few.compare(IMAGES, TEXTS), many.compare(IMAGES, TEXTS))


def test_a_repeated_anchor_counts_twice() -> None:
    model = filled(4, k=10, p=1.0)
    once = model.encode_image(IMAGES[5:6])[0]
    model.add(IMAGES[:1], TEXTS[:1])
    twice = model.encode_image(IMAGES[5:6])[0]
    assert twice[0] == pytest.approx(float(twice[4]), abs=1e-6)
    raw = torch.cat([once, once[:1]])
    assert torch.allclose(twice, raw / raw.norm(), atol=1e-5)


@pytest.mark.parametrize(("k", "p"), [(0, 8.0), (-1, 8.0), (800, 0.0), (800, -2.0)])
def test_impossible_settings_are_refused(k: int, p: float) -> None:
    with pytest.raises(ValueError, match=f"got k = {k} and p = {p:g}"):
        ASIFConfig(k=k, p=p)


def test_every_text_has_a_start() -> None:
    with pytest.raises(ValueError, match="'kit' has none"):
        ASIF(replace(ASIFConfig.tiny(), language=LANGUAGE), tokenizer(pad=0, end=2))


def test_pictures_without_captions_become_no_anchors(tmp_path: Path) -> None:
    """Through the trainer: the loader leaves them out and counts them."""
    write_tar(tmp_path / "data" / "train" / "0.tar", [*good_members(20), ("bare.png", encode(picture(1))), ("bare.json", b"{}")])
    config = replace(ASIFConfig.tiny(), language=LANGUAGE)
    recipe = Recipe(model=config, budget=20, batch=5, data=str(tmp_path / "data"), device="cpu", log=Log(every=1))
    assert train(recipe, tmp_path / "run", "tiny") == 0
    model: Any = models.load(tmp_path / "run")
    assert {model.anchor(row)[1] for row in range(len(model.anchors))} == {"a picture"}
    assert len(model.anchors) == 20
    lines = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert sum([line for line in lines if "drops" in line][-1]["drops"].values()) == 1
    assert json.loads((tmp_path / "run" / "cost.json").read_text())["trainable_parameters"] == 0
