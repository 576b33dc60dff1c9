"""Llip: the loss against a derivation by loops over pairs, chunks, ranks, and scores of pairs that depend on the text."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.adapters.scorers import Subject
from eval.base.capabilities import Features, Scorer
from models.shared.images import normalise
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from models.siglip import Llip, LlipConfig, SigLIP, SigLIPConfig, llip
from models.siglip.objective import siglip_loss
from recipes import llip as page
from recipes.train.step import backward
from tests.models.kit import pictures, randomise, texts, tokenizer
from tests.recipes.ranks import on_ranks

CONTEXT = 12
SAID = ["red circle", "two blue squares left of a star", "a", "green ring above a small white cross"]


def build(words: Any = None, **changes: Any) -> Llip:
    torch.manual_seed(0)
    vision = VisionConfig(width=32, depth=1, heads=2, image_size=16, patch_size=8, pool="none", pre_norm=True)
    sizes: dict[str, Any] = {"tokens": 3, "heads": 2, "embed_dim": 16, "context": CONTEXT, "bias": -2.0, "mixing_temperature": 0.7}
    sizes |= {"vocab_size": words.vocab_size if words else 100}
    model = Llip(
        LlipConfig(vision=vision, text=TransformerConfig(width=24, depth=1, heads=2), **(sizes | changes)),
        words or tokenizer(pad=0, end=99),
    )
    randomise(model, 0)
    return model


def batch_of(count: int) -> dict[str, Tensor]:
    return {"pixels": pictures(count, 16), "ids": texts(count, CONTEXT, pad=0, end=99)}


@contextlib.contextmanager
def in_double() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", lambda x: x.double())  # the model's way out of autocast
        yield


# ------------------------------------------------------------------------------------- a second, slow derivation


def slow(model: Llip, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The sheet's formula from the towers' states, one pair, head and token at a time: (positive pairs, negative pairs)."""
    config, d = model.config, model.config.embed_dim // model.config.heads
    with in_double():
        pixels = normalise(batch["pixels"], config.mean, config.std)
    states = model.visual.forward_features(pixels)[:, : config.tokens]
    texts = model.text(batch["ids"])
    positive, negative = torch.zeros(()).double(), torch.zeros(()).double()
    for v, tokens in enumerate(states):
        keys = [tokens[n] @ model.key_projection[n] for n in range(config.tokens)]
        values = [tokens[n] @ model.value_projection[n] for n in range(config.tokens)]
        for t, state in enumerate(texts):
            query = model.query_projection.weight @ state
            heads = []
            for h in range(config.heads):
                own = slice(h * d, (h + 1) * d)
                weights = [torch.exp((key[own] @ query[own]) / config.mixing_temperature) for key in keys]
                if config.mix == "mean":
                    weights = [torch.ones(()).double() for _ in keys]
                heads.append(sum(weight / sum(weights) * value[own] for weight, value in zip(weights, values, strict=True)))
            mixed = model.out_projection.weight @ torch.cat(heads)
            text = model.text_projection.weight @ state
            cosine = (mixed @ text) / (mixed.norm() * text.norm())
            logit = torch.exp(model.logit_scale) * cosine + model.logit_bias
            if v == t:
                positive = positive + torch.log(1 + torch.exp(-logit)) / len(states)
            else:
                negative = negative + torch.log(1 + torch.exp(logit)) / len(states)
    return positive, negative


@pytest.mark.parametrize("mix", ["text", "mean"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_loss_and_every_gradient_equal_the_slow_derivation(mix: str, tokens: int) -> None:
    batch, found = batch_of(4), []
    for quick in (True, False):
        model = build(mix=mix, tokens=tokens).double()
        with in_double():
            losses = model(batch) if quick else None
        terms = tuple(losses.terms.values()) if losses else slow(model, batch)
        sum(terms).backward()  # type: ignore[union-attr]
        found.append(([term.item() for term in terms], {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
        if losses:
            assert losses.total.item() == pytest.approx(sum(found[0][0]), abs=1e-12)
    (ours, mine), (theirs, reference) = found
    assert ours == pytest.approx(theirs, abs=1e-9)
    unasked = {"key_projection", "query_projection.weight"}
    assert (unasked & mine.keys() == set()) == (mix == "mean")
    for name, gradient in reference.items():
        assert gradient is not None
        if tokens > 1 or name not in unasked:  # one token has all the attention, whatever is asked
            assert gradient.abs().max() > 1e-9, name
        torch.testing.assert_close(mine[name], gradient, atol=1e-9, rtol=1e-6, msg=lambda said, name=name: f"{name}: {said}")


def test_with_the_mean_the_loss_is_siglips() -> None:
    model, batch = build(mix="mean").double(), batch_of(5)
    with in_double():
        features = model.encode(batch)
        image = F.normalize(model.out_projection(features["values"].mean(dim=2).flatten(1)), dim=-1)
        expected = siglip_loss(image, features["text"], model.logit_scale.exp(), model.logit_bias)
        losses = model.objective(features)
    assert losses.total.item() == pytest.approx(expected.total.item(), abs=1e-10)
    assert losses.chance == expected.chance


# ------------------------------------------------------------------------------------------- chunks, micro-batches, ranks


@pytest.mark.parametrize("mix", ["text", "mean"])
def test_chunks_micro_batches_and_two_ranks_equal_the_full_batch(mix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(8)

    def gradients(model: Llip, rows: dict[str, Tensor], size: int | None) -> dict[str, Tensor]:
        with in_double():
            losses = backward(model, rows, micro_batch=size, autocast=contextlib.nullcontext())
        total = {"total": losses.total.detach()} | {name: each.detach() for name, each in losses.terms.items()}
        return total | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    whole = gradients(build(mix=mix).double(), batch, None)
    found = [gradients(build(mix=mix).double(), batch, size) for size in (1, 3)]
    halves = [{name: rows[4 * rank : 4 * rank + 4] for name, rows in batch.items()} for rank in range(2)]
    models = [build(mix=mix).double() for _ in range(2)]
    with in_double():
        one, other = on_ranks(monkeypatch, lambda rank: gradients(models[rank], halves[rank], 2 if rank else None))
    found.append({name: (one[name] + other[name]) / 2 for name in one})
    monkeypatch.setattr(llip, "PAIRS", 8 * 3)  # three texts at a time, computed again in the backward pass
    found.append(gradients(build(mix=mix).double(), batch, None))
    for each in found:
        assert each.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(each[name], gradient, atol=1e-9, rtol=1e-6, msg=lambda said, name=name: f"{name}: {said}")


def test_what_a_chunk_needs_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of pairs exist for one chunk at a time, in the forward pass and, with checkpoints, in the backward pass."""
    model = build()
    features = {name: rows.detach().requires_grad_() for name, rows in model.encode(batch_of(8)).items()}
    kept = []
    for pairs in (1 << 16, 8 * 2):
        monkeypatch.setattr(llip, "PAIRS", pairs)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):  # type: ignore[func-returns-value]
            model.objective(features)
        kept.append(max(sizes))
    assert kept[0] >= 8 * 8 * 16  # a vector for each pair
    assert kept[1] < 8 * 8 * 16


# ------------------------------------------------------------------------------------------------ the text decides


@pytest.fixture(scope="module")
def words() -> BPETokenizer:
    return BPETokenizer.train(SAID, 300)


def raw(count: int) -> list[np.ndarray]:
    return [picture.permute(1, 2, 0).numpy() for picture in pictures(count, 16)]


def test_a_pictures_vector_depends_on_the_text_and_with_the_mean_or_one_token_it_does_not(words: BPETokenizer) -> None:
    for changes, depends in (({}, True), ({"mix": "mean"}, False), ({"tokens": 1}, False)):
        model = build(words, **changes).eval()
        keys, values = model.image_parts(raw(2)).unbind(1)
        queries = model.text_parts(SAID)[:, 0].unflatten(1, (2, -1)).transpose(0, 1)
        vectors = model.mixed(keys, values, queries).expand(-1, len(SAID), -1)
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(2, len(SAID)))
        assert bool((vectors[:, 0] - vectors[:, 1]).abs().max() > 1e-3) == depends


def test_scores_are_the_logits_of_the_loss_however_they_are_asked_for(words: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pairs, as a matrix, in blocks, alone, and through the harness."""
    model, images = build(words).eval(), raw(5)
    batch = {"pixels": model.collate.images(images), "ids": model.collate.texts(SAID)}
    with torch.no_grad():
        keys, values = model._image_parts(batch["pixels"])
        query, text = model._text_parts(batch["ids"])
        expected = model._logits(keys, values, query.transpose(0, 1), text)
    found = model.compare(model.image_parts(images), model.text_parts(SAID))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=1e-5)
    rows, columns = [0, 1, 1, 4, 0], [3, 0, 1, 2, 2]
    scores = model.score([images[row] for row in rows], [SAID[column] for column in columns])
    torch.testing.assert_close(scores, expected[rows, columns], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(llip, "PAIRS", 2)
    torch.testing.assert_close(model.compare(model.image_parts(images), model.text_parts(SAID)), found, atol=1e-9, rtol=1e-9)
    subject = Subject(model, batch_size=2)
    (scorer,) = subject.able(Scorer, gallery=True)
    assert scorer.adapter == "text-conditioned similarity"
    assert scorer.matrix(images, SAID) == pytest.approx(expected.numpy(), abs=1e-5)
    assert scorer.pairs([images[row] for row in rows], [SAID[column] for column in columns]) == pytest.approx(scores.numpy(), abs=1e-5)
    one, two = scorer.classes(images, [SAID[:1], SAID[1:2]]).T
    assert np.stack([one, two], axis=1) == pytest.approx(expected[:, :2].numpy(), abs=1e-5)


def test_a_class_has_the_mean_query_and_the_normalised_mean_of_normalised_vectors(words: BPETokenizer) -> None:
    model, images = build(words).eval(), raw(3)
    with torch.no_grad():
        keys, values = model._image_parts(model.collate.images(images))
        query, text = model._text_parts(model.collate.texts(SAID))
        of_class = query.mean(dim=0)[:, None], F.normalize(text.mean(dim=0, keepdim=True), dim=-1)
        expected = model._logits(keys, values, *of_class)
    (scorer,) = Subject(model).able(Scorer)
    assert scorer.classes(images, [SAID]) == pytest.approx(expected.numpy(), abs=1e-5)


def test_probes_have_the_mean_of_the_values(words: BPETokenizer) -> None:
    model, images = build(words).eval(), raw(3)
    values = model.image_parts(images)[:, 1].mean(dim=2).flatten(1)
    expected = F.normalize(values @ model.out_projection.weight.T, dim=-1)
    torch.testing.assert_close(model.encode_image(images), expected)
    (features,) = Subject(model).able(Features)
    assert features.features(images) == pytest.approx(expected.detach().numpy(), abs=1e-6)
    assert Subject(model).embeddings is None


# ------------------------------------------------------------------------------------------------------------- sizes


def test_tiny_is_siglips_tower_with_tokens_and_a_bias_for_its_batch() -> None:
    config = LlipConfig.tiny()
    assert replace(config.vision, pool="avg") == SigLIPConfig.tiny().vision
    assert config.bias == pytest.approx(-math.log(page.PRESETS["tiny"].batch - 1))
    assert LlipConfig.small().bias == pytest.approx(-math.log(page.PRESETS["small"].batch - 1))
    model = Llip(config, tokenizer(pad=0, end=2))
    tower = SigLIP(SigLIPConfig.tiny(), tokenizer(pad=0, end=2)).visual
    assert {name for name, _ in model.visual.named_parameters()} - {"cls_token"} >= {
        name for name, _ in tower.named_parameters() if "fc_norm" not in name
    }
    assert model.visual(torch.zeros(2, 3, 64, 64)).shape == (2, 8 + 16, 160)


def test_arms_differ_in_the_mixture_alone() -> None:
    base = page.short(page.PRESETS["tiny"])
    one, mean = page.ONE.change(base), page.MEAN.change(base)
    assert (one.model.tokens, mean.model.mix) == (1, "mean")
    assert {replace(arm, model=base.model) for arm in (one, mean)} == {base}
    assert replace(mean.model, mix="text") == base.model
