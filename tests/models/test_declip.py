"""DeCLIP: its losses against a second derivation, exact in parts, and a bank that changes between steps alone."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.fields import FieldError
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.clip import CLIP, CLIPConfig, DeCLIP, DeCLIPConfig
from models.clip.declip import Weights
from models.clip.views import View, without_stop_words
from models.contract import IGNORE_INDEX
from models.shared.images import normalise
from models.shared.text import BPETokenizer
from recipes import declip
from tests.models.kit import pictures, texts
from tests.models.test_slip import smaller
from tests.models.views_kit import (
    BATCH,
    CONTEXT,
    SMALL,
    assert_equal,
    assert_exact_in_parts,
    assert_learns,
    before_norms,
    build,
    double,
    gradients,
    slow_clip,
    slow_mlp,
    step,
    unit,
)
from tests.recipes.ranks import on_ranks

CONFIG = DeCLIPConfig(**SMALL, view=View(size=16), first_view=False, hidden=12, narrow=8, bank=20)
MASK = 100  # the row after the vocabulary
SAMPLES = [make_sample(PRESETS["tiny"], "train", index) for index in range(40)]


def rows_of(size: int = BATCH, seed: int = 0) -> dict[str, Tensor]:
    """Two views, two texts and masked words; the last row has none."""
    ids, ids2 = (texts(size, CONTEXT, pad=0, end=99, seed=10 * seed + place) for place in (1, 2))
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    chosen &= (ids != 0) & (ids != 99)
    chosen[:, 0] = True
    chosen[-1] = False
    rows = {"pixels": pictures(size, 32, 10 * seed + 3), "view2": pictures(size, 16, 10 * seed + 4), "ids": ids, "ids2": ids2}
    return rows | {"masked_ids": ids.masked_fill(chosen, MASK), "labels": ids.masked_fill(~chosen, IGNORE_INDEX)}


def turned_over(model: Any) -> Any:
    """With a bank that has been filled, of known texts."""
    generator = torch.Generator().manual_seed(7)
    model.bank.copy_(F.normalize(torch.randn(model.bank.shape, generator=generator, dtype=torch.float64), dim=-1))
    model.bank_captions.copy_(torch.arange(len(model.bank)) // 2)  # each caption twice
    model.bank_seen.fill_(len(model.bank))
    return model.train()


# ------------------------------------------------------------------------------------------------------------ the losses


def slow_losses(model: Any, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sheet's formula, one row at a time."""
    pixels, view = (normalise(rows[name], model.config.mean, model.config.std) for name in ("pixels", "view2"))
    raw = [features @ model.visual_projection.weight.T for features in (model.visual(pixels), smaller(model, view))]
    images = [unit(each) for each in raw]
    words = [unit(model.text(rows[name]) @ model.text_projection.weight.T) for name in ("ids", "ids2")]
    scale = model.logit_scale.exp()
    pairs = [slow_clip(image, text, scale) for image in images for text in words]
    to_text, to_image = (sum(pair[side] for pair in pairs) / 4 for side in (0, 1))

    n, nn_loss = len(pixels), torch.zeros((), dtype=torch.float64)
    for text in words:
        best = [max(range(len(model.bank)), key=lambda entry, i=i: float(text[i].detach() @ model.bank[entry])) for i in range(n)]  # type: ignore[misc]
        for image in images:
            for i in range(n):
                logits = {}
                for j in range(n):
                    if j == i or model.bank_captions[best[j]] != model.bank_captions[best[i]]:
                        logits[j] = scale * (image[i] * model.bank[best[j]]).sum()
                nn_loss = nn_loss - (logits[i] - torch.log(sum(torch.exp(logit) for logit in logits.values()))) / (4 * n)

    z = [slow_mlp(model.simsiam_projector, each) for each in raw]
    p = [slow_mlp(model.simsiam_predictor, each) for each in z]
    cosines = [(unit(guess) * unit(target.detach())).sum(dim=-1).mean() for guess, target in ((p[0], z[1]), (p[1], z[0]))]
    simsiam = -(cosines[0] + cosines[1]) / 2

    states = model.text.norm(model.text.states(rows["masked_ids"]))
    each = []
    for row in range(n):
        for place in range(CONTEXT):
            if rows["labels"][row, place] != IGNORE_INDEX:
                logits = model.word_head.weight @ states[row, place] + model.word_head.bias
                each.append(torch.log(torch.exp(logits).sum()) - logits[rows["labels"][row, place]])
    mlm = torch.stack(each).mean()
    total = 0.4 * (to_text + to_image) / 2 + 0.2 * nn_loss + 0.2 * simsiam + 0.2 * mlm
    return {"total": total, "image_to_text": to_text, "text_to_image": to_image, "nn": nn_loss, "simsiam": simsiam, "mlm": mlm}


def silent(model: Any) -> tuple[str, ...]:
    """Biases that a BatchNorm takes away; the projector's last one by the predictor's, as a target has no gradient."""
    heads = ("simsiam_projector", "simsiam_predictor")
    before = [name for head in heads for name in before_norms(getattr(model, head), head)]
    return *before, f"simsiam_projector.{len(model.simsiam_projector) - 1}.bias"


def test_losses_and_all_gradients_equal_the_slow_derivation() -> None:
    model, rows = turned_over(build(DeCLIP, CONFIG)), rows_of()
    found = step(model, rows)
    model.zero_grad()
    with double():
        slow = slow_losses(model, rows)
        slow["total"].backward()
    assert_equal(found, ({name: value.detach() for name, value in slow.items()}, gradients(model)))
    assert_learns(model, found[1], but=silent(model))


def test_micro_batches_and_two_ranks_equal_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last row has no masked word, so that ranks and micro-batches differ in what they count."""
    assert_exact_in_parts(turned_over(build(DeCLIP, CONFIG)), rows_of(), monkeypatch)


def test_both_views_may_be_of_one_size() -> None:
    model, rows = turned_over(build(DeCLIP, CONFIG)), rows_of()
    rows["view2"] = pictures(BATCH, 32, 8)
    with double():
        features = model.encode(rows)
        for name, view in (("image1", "pixels"), ("image2", "view2")):
            alone = model.visual_projection(model._tower(rows[view]))
            torch.testing.assert_close(features[name], alone)


@pytest.mark.parametrize("left_out", ["nn", "simsiam", "mlm"])
def test_a_term_of_weight_0_is_neither_computed_nor_are_its_parameters_there(left_out: str) -> None:
    whole = turned_over(build(DeCLIP, CONFIG))
    config = replace(CONFIG, weights=replace(Weights(), **{left_out: 0.0}))
    model, state = build(DeCLIP, config), whole.state_dict()
    if left_out == "mlm":  # no mask, no row for it
        assert len(model.text.tokens.weight) == MASK
        state["text.tokens.weight"] = state["text.tokens.weight"][:MASK]
    model.load_state_dict({name: value for name, value in state.items() if name in model.state_dict()})
    (losses, learned), (terms, _) = step(model, rows_of()), step(whole, rows_of())
    assert terms.keys() - losses.keys() == {left_out}
    assert all(torch.allclose(losses[name], terms[name]) for name in losses if name != "total")
    gone = {"nn": "bank", "simsiam": "simsiam", "mlm": "word_head"}[left_out]
    assert any(gone in name for name in state)
    assert not any(gone in name for name in [*learned, *model.state_dict()])


def test_the_scale_stays_within_the_papers_range() -> None:
    model = build(DeCLIP, CONFIG)
    for before, after in ((0.0, 3.0), (9.0, math.log(100)), (3.5, 3.5)):
        with torch.no_grad():
            model.logit_scale.fill_(before)
        model.after_step()
        assert model.logit_scale.item() == pytest.approx(after)


# -------------------------------------------------------------------------------------------------------------- the bank


def kept(model: Any) -> tuple[Tensor, Tensor, int]:
    return model.bank.clone(), model.bank_captions.clone(), int(model.bank_seen)


def same(one: tuple[Tensor, Tensor, int], other: tuple[Tensor, Tensor, int]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and one[2] == other[2]


def test_until_the_bank_has_turned_over_neighbours_teach_nothing() -> None:
    model, rows = turned_over(build(DeCLIP, CONFIG)), rows_of()
    model.bank_seen.fill_(19)
    early = step(model, rows)
    none = build(DeCLIP, replace(CONFIG, weights=replace(Weights(), nn=0.0)))
    none.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("bank")})
    without = step(none, rows)
    assert early[0]["nn"].item() == pytest.approx(math.log(BATCH))
    assert_equal(({}, early[1]), ({}, without[1]))
    model.bank_seen.fill_(20)
    assert (step(model, rows)[1]["logit_scale"] - without[1]["logit_scale"]).abs() > 1e-4


def test_it_changes_after_a_step_alone_and_is_asked_before() -> None:
    """Whatever is encoded, however often; a text of the step is no neighbour of its own."""
    model, rows = turned_over(build(DeCLIP, CONFIG)), rows_of()
    before = kept(model)
    first = step(model, rows)
    assert_equal(step(model, rows, 2), first)
    assert same(kept(model), before)
    with double():
        features = model.encode(rows)
    model.after_step()
    bank, captions, seen = kept(model)
    assert seen == before[2] + 2 * BATCH
    entered = torch.cat([features["text1"], features["text2"]]).detach()
    torch.testing.assert_close(bank[: 2 * BATCH], entered)  # 20 had been seen: it begins at the front
    assert torch.equal(captions[: 2 * BATCH], torch.cat([features["caption1"], features["caption2"]]))
    assert torch.equal(bank[2 * BATCH :], before[0][2 * BATCH :])
    model.after_step()  # nothing new has been seen
    assert same(kept(model), (bank, captions, seen))


def test_the_oldest_texts_go_first() -> None:
    model = turned_over(build(DeCLIP, CONFIG))
    model.bank_seen.fill_(0)
    entered = []
    for seed in range(4):
        with double():
            features = model.encode(rows_of(seed=seed))
            model.objective(features)
        model.after_step()
        entered.append(torch.cat([features["text1"], features["text2"]]).detach())
    everything = torch.cat(entered)  # 48
    for place in range(20):
        newest = max(number for number in range(48) if number % 20 == place)
        torch.testing.assert_close(model.bank[place], everything[newest])


def test_a_batch_larger_than_the_bank_leaves_its_last_texts() -> None:
    model, rows = build(DeCLIP, replace(CONFIG, bank=5)).train(), rows_of()
    with double():
        features = model.encode(rows)
        model.objective(features)
    model.after_step()
    assert {tuple(row) for row in model.bank.tolist()} == {tuple(row) for row in features["text2"][-5:].tolist()}
    assert len(set(model.bank_captions.tolist())) == 5


def test_validation_leaves_it_alone() -> None:
    model, rows = turned_over(build(DeCLIP, CONFIG)), rows_of()
    before = kept(model)
    with torch.no_grad(), double():
        model.eval()
        model.objective(model.encode(rows))
    model.train().after_step()
    assert same(kept(model), before)


def test_two_ranks_keep_the_bank_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = turned_over(build(DeCLIP, CONFIG)), rows_of()
    copies = [copy.deepcopy(model) for _ in range(2)]

    def work(rank: int) -> None:
        half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
        copies[rank].objective(copies[rank].encode({name: values[half] for name, values in rows.items()}))
        copies[rank].after_step()

    with double():
        on_ranks(monkeypatch, work)
        model.objective(model.encode(rows))
    model.after_step()
    for each in copies:
        torch.testing.assert_close(each.bank, model.bank)
        assert torch.equal(each.bank_captions, model.bank_captions)
        assert int(each.bank_seen) == int(model.bank_seen)


def test_what_is_not_finite_does_not_stay_in_it() -> None:
    """On a GPU a step whose gradients are not finite is left out without the host's knowledge, but the texts come all the same."""
    model = turned_over(build(DeCLIP, CONFIG))
    model.entering = torch.full((2, 16), float("nan"), dtype=torch.float64), torch.ones(2, dtype=torch.int64)
    model.after_step()
    assert model.bank.isfinite().all()


def test_captions_that_come_twice_are_no_negatives_of_each_other() -> None:
    """All six texts are two: what is left are the columns of the other one."""
    model, rows = turned_over(build(DeCLIP, CONFIG)), rows_of()
    for name in ("ids", "ids2"):
        rows[name] = rows[name][[1, 2, 1, 2, 1, 2]]
    with double():
        features = model.encode(rows)
        for part in (1, 2):
            nearest = (features[f"text{part}"] @ model.bank.T).argmax(dim=1)
            model.bank_captions[nearest[0]], model.bank_captions[nearest[1]] = -1, -2
        image = F.normalize(features["image1"], dim=-1)
        scale, text = model.logit_scale.exp(), features["text1"]
        found = model._by_neighbours([image], text, scale)
    one, two = (model.bank[(text[row] @ model.bank.T).argmax()] for row in (0, 1))
    own = [(image[row] @ (one, two)[row % 2]) * scale for row in range(6)]
    other = [(image[row] @ (two, one)[row % 2]) * scale for row in range(6)]
    expected = sum(torch.log(torch.exp(a) + 3 * torch.exp(b)) - a for a, b in zip(own, other, strict=True)) / 6
    torch.testing.assert_close(found, expected)


def test_a_captions_number_is_the_same_whatever_its_padding_and_its_own() -> None:
    said = sorted({caption for sample in SAMPLES for caption in sample.captions})
    words = BPETokenizer.train(said, 600)
    model = DeCLIP(replace(CONFIG, vocab_size=words.vocab_size, context=40), words)
    together = model._numbers(model.collate.texts(said))
    alone = torch.cat([model._numbers(model.collate.texts([caption])) for caption in said])
    assert torch.equal(together, alone)
    assert len(set(alone.tolist())) == len(said) > 100
    assert (alone != 0).all()
    for a, b in (("a star above a moon", "a moon above a star"), ("red red", "red"), ("", "a")):  # order and length count
        assert model._numbers(model.collate.texts([a])) != model._numbers(model.collate.texts([b]))


# --------------------------------------------------------------------------------------------------------------- batches


def tiny(kind: Any, config: Any, words: Any) -> Any:
    torch.manual_seed(0)
    return kind(replace(config, vocab_size=words.vocab_size), words)


def test_the_first_view_and_text_are_clips() -> None:
    words = BPETokenizer.train([caption for sample in SAMPLES for caption in sample.captions], 600)
    ours, theirs = tiny(DeCLIP, DeCLIPConfig.tiny(), words), tiny(CLIP, CLIPConfig.tiny(), words)
    mask = ours.collate.mask
    assert mask == words.vocab_size
    state = ours.state_dict()
    assert len(state["text.tokens.weight"]) == mask + 1
    state["text.tokens.weight"] = state["text.tokens.weight"][:mask]
    assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())
    pairs, more = (model.collate(SAMPLES, np.random.default_rng(4)) for model in (theirs, ours))
    width = pairs["ids"].shape[1]
    assert torch.equal(more["pixels"], pairs["pixels"])
    assert torch.equal(more["ids"][:, :width], pairs["ids"])
    assert (more["ids"][:, width:] == words.pad).all()
    assert torch.equal(ours.encode_text(["a red star"]), theirs.encode_text(["a red star"]))
    chosen = more["labels"] != IGNORE_INDEX
    assert chosen.any(dim=1).all()
    assert torch.equal(more["labels"][chosen], more["ids"][chosen])
    assert torch.equal(more["masked_ids"][~chosen], more["ids"][~chosen])
    assert 0.6 < (more["masked_ids"][chosen] == mask).float().mean() < 0.95  # of .8
    for row, sample in enumerate(SAMPLES):
        first, second = (words.decode(more[name][row].tolist()) for name in ("ids", "ids2"))
        assert first != second
        assert second in {words.decode(words.encode(caption)) for caption in sample.captions}


def test_a_single_captions_second_text_has_no_stop_words() -> None:
    words = BPETokenizer.train([caption for sample in SAMPLES for caption in sample.captions], 600)
    single = [Sample(sample.key, sample.image, (sample.captions[0],)) for sample in SAMPLES]
    rows = tiny(DeCLIP, DeCLIPConfig.tiny(), words).collate(single, np.random.default_rng(0))
    for row in range(len(single)):
        first, second = (words.decode(rows[name][row].tolist()) for name in ("ids", "ids2"))
        assert second == without_stop_words(first)


def test_the_paper_augments_both_views() -> None:
    words = BPETokenizer.train([caption for sample in SAMPLES for caption in sample.captions], 600)
    model = tiny(DeCLIP, replace(DeCLIPConfig.tiny(), first_view=True, view=View(size=64)), words)
    rows = model.collate(SAMPLES[:8], np.random.default_rng(0))
    whole = model.collate(SAMPLES[:8])["pixels"]  # nothing is random
    assert rows["pixels"].shape == rows["view2"].shape == (8, 3, 64, 64)
    assert not any(torch.equal(rows[name][row], whole[row]) for name in ("pixels", "view2") for row in range(8))
    assert torch.equal(whole, model.collate.images([sample.image for sample in SAMPLES[:8]]))


def test_a_tokenizers_own_mask_is_used() -> None:
    words = SimpleNamespace(pad=0, end=99, start=None, mask=98, vocab_size=100, name="kit")
    model = DeCLIP(CONFIG, words)
    assert model.collate.mask == 98
    assert len(model.text.tokens.weight) == 100


# ---------------------------------------------------------------------------------------------------------------- claims


def test_weights_of_arms_sum_to_one() -> None:
    base = declip.few_pictures(declip.PRESETS["tiny"])
    for arm in (base, declip.without_neighbours(base), declip.views_alone(base)):
        assert sum(vars(arm.model.weights).values()) == pytest.approx(1)
    assert declip.without_neighbours(base).model.weights == Weights(clip=0.6, nn=0.0)
    assert declip.views_alone(base).model.weights == Weights(clip=1.0, nn=0.0, simsiam=0.0, mlm=0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: replace(CONFIG, bank=0), "bank is 0, expected 1 text or more"),
        (lambda: replace(CONFIG, max_scale=10.0), r"max_scale is 10\.0, expected at least 20\.1"),
        (lambda: Weights(clip=0.0), r"weights\.clip is 0\.0"),
        (lambda: Weights(nn=-1.0), r"weights\.nn is -1\.0"),
    ],
    ids=["bank", "scale", "no contrast", "negative"],
)
def test_what_cannot_be_is_said(change: Any, said: str) -> None:
    with pytest.raises(FieldError, match=said):
        change()
