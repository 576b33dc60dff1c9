"""CLOOB's objective against a derivation by loops, with each of its two parts switched off, with repeated captions, and over ranks."""

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

from models.clip import CLIP, CLOOB, CLOOBConfig
from models.clip.objective import clip_loss
from models.contract import Losses
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from recipes import cloob
from recipes.claims.measures.spectrum import needed
from recipes.train.step import backward
from tests.models.kit import pictures, randomise, texts, tokenizer
from tests.recipes.ranks import on_ranks

CONTEXT = 12
FOUR = [{"retrieval": first, "leave_one_out": second} for first in (True, False) for second in (True, False)]
two_by_two = pytest.mark.parametrize("parts", FOUR, ids=["both", "Hopfield", "InfoLOOB", "InfoNCE"])


def build(**changes: Any) -> CLOOB:
    torch.manual_seed(0)
    vision = VisionConfig(width=32, depth=1, heads=2, image_size=16, patch_size=8)
    text = TransformerConfig(width=24, depth=1, heads=2)
    model = CLOOB(CLOOBConfig(vision=vision, text=text, embed_dim=16, context=CONTEXT, vocab_size=100, **changes), tokenizer(pad=0, end=99))
    randomise(model, 0)
    return model.double()


def batch_of(count: int, repeats: dict[int, int] | None = None) -> dict[str, Tensor]:
    """Pictures and captions, of which row i repeats row `repeats[i]`."""
    ids = texts(count, CONTEXT, pad=0, end=99)
    for row, first in (repeats or {}).items():
        ids[row] = ids[first]
    return {"pixels": pictures(count, 16), "ids": ids}


def features_of(model: CLOOB, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", lambda x: x.double())  # the model's way out of autocast
        return model.encode(batch)


# ------------------------------------------------------------------------------------- a second, slow derivation


def slow(image: Tensor, text: Tensor, captions: list[list[int]], config: CLOOBConfig) -> tuple[Tensor, Tensor]:
    """The sheet's formula, one pair at a time: tau LOOB(U_x, U_y) and tau LOOB(V_y, V_x)."""
    n, tau = len(image), config.temperature

    def recalled(patterns: Tensor, query: Tensor) -> Tensor:
        weights = [torch.exp(config.beta * (query @ pattern)) for pattern in patterns]
        found = sum(weight / sum(weights) * pattern for weight, pattern in zip(weights, patterns, strict=True))
        return found / torch.sqrt((found * found).sum())

    def all_recalled(patterns: Tensor, queries: Tensor) -> list[Tensor]:
        return [recalled(patterns, query) for query in queries]

    def loss(a: list[Tensor], b: list[Tensor]) -> Tensor:
        rows = []
        for i in range(n):
            negatives = [j for j in range(n) if j != i and (captions[i] != captions[j] or config.repeats_are_negatives)]
            if not negatives:
                continue
            summed = negatives if config.leave_one_out else [*negatives, i]
            rows.append(-(a[i] @ b[i]) / tau + torch.log(sum(torch.exp((a[i] @ b[j]) / tau) for j in summed)))  # type: ignore[arg-type]
        return tau * sum(rows) / len(rows)

    if config.retrieval:
        return loss(all_recalled(image, image), all_recalled(image, text)), loss(all_recalled(text, text), all_recalled(text, image))
    return loss(list(image), list(text)), loss(list(text), list(image))


@two_by_two
@pytest.mark.parametrize(
    ("repeats", "negatives"),
    [({}, False), ({2: 0, 3: 0, 4: 1}, False), ({2: 0, 3: 0, 4: 1}, True)],
    ids=["distinct", "repeats", "repeats-as-negatives"],
)
def test_loss_and_every_gradient_equal_the_slow_derivation(parts: dict[str, bool], repeats: dict[int, int], negatives: bool) -> None:
    batch = batch_of(5, repeats)
    found = []
    for objective in (CLOOB.objective, lambda model, rows: Losses(sum(terms := _slow(model, rows)), dict(enumerate(terms)), {})):
        model = build(**parts, repeats_are_negatives=negatives)
        losses = objective(model, features_of(model, batch))
        losses.total.backward()
        found.append((losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    (ours, mine), (theirs, reference) = found
    for one, other in zip(ours.terms.values(), theirs.terms.values(), strict=True):
        assert one.item() == pytest.approx(other.item(), abs=1e-12)
    assert ours.total.item() == pytest.approx(theirs.total.item(), abs=1e-12)
    for name, gradient in reference.items():
        assert gradient is not None
        assert gradient.abs().max() > 1e-9, name
        torch.testing.assert_close(mine[name], gradient, atol=1e-12, rtol=1e-6, msg=lambda said, name=name: f"{name}: {said}")


def _slow(model: CLOOB, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return slow(rows["image"], rows["text"], rows["ids"].tolist(), model.config)


def test_with_neither_part_it_is_clip_at_a_fixed_temperature() -> None:
    model = build(retrieval=False, leave_one_out=False)
    features = features_of(model, batch_of(6))
    expected = clip_loss(features["image"], features["text"], torch.tensor(30.0, dtype=torch.float64))
    assert model.objective(features).total.item() == pytest.approx(2 / 30 * expected.total.item(), abs=1e-12)


# ------------------------------------------------------------------------------------------------ chance, and below 0


def same_everywhere(count: int, ids: Tensor) -> dict[str, Tensor]:
    row = F.normalize(torch.arange(1.0, 6.0, dtype=torch.float64), dim=0).expand(count, -1)
    return {"image": row, "text": row, "ids": ids}


def test_chance_is_the_loss_of_equal_rows() -> None:
    """2 tau ln(N - 1), the sheet's; ln N with the positive in the denominator; fewer where captions repeat."""
    distinct = batch_of(8)["ids"]
    losses = build().objective(same_everywhere(8, distinct))
    assert float(losses.total) == pytest.approx(2 / 30 * math.log(7), abs=1e-12)
    assert float(losses.chance["total"]) == pytest.approx(0.1297, abs=5e-5)
    losses = build(leave_one_out=False).objective(same_everywhere(8, distinct))
    assert float(losses.chance["total"]) == pytest.approx(2 / 30 * math.log(8), abs=1e-12)
    losses = build().objective(same_everywhere(8, batch_of(8, {1: 0, 2: 0})["ids"]))
    assert float(losses.chance["total"]) == pytest.approx(2 / 30 * (3 * math.log(5) + 5 * math.log(7)) / 8, abs=1e-12)
    for name, value in losses.terms.items():
        assert float(losses.chance[name]) == pytest.approx(value.item(), abs=1e-12)


def test_retrieval_that_averages_everything_is_at_chance() -> None:
    features = features_of(model := build(beta=0.0), batch_of(8))
    losses = model.objective(features)
    assert float(losses.total) == pytest.approx(2 / 30 * math.log(7), abs=1e-12)


def test_the_loss_of_pairs_that_fit_is_below_zero() -> None:
    rows = torch.eye(8, dtype=torch.float64)
    features = {"image": rows, "text": rows, "ids": batch_of(8)["ids"]}
    for parts in FOUR:
        total = float(build(**parts).objective(features).total)
        assert total < -1 if parts["leave_one_out"] else total > 0


def test_a_loss_below_zero_is_not_still_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.train.watch import Watch

    said: list[str] = []
    watch: Any = object.__new__(Watch)
    watch.recent, watch.warned = {}, set()
    watch.progress = type("P", (), {"in_stage": 10**6, "step": 9})()
    watch.stage = type("S", (), {"budget": 10**6, "batch": 128})()
    watch.report = type("R", (), {"event": staticmethod(lambda kind, text, step: said.append(text))})()
    watch._guard_chance({"image_to_text": -0.4}, {"image_to_text": 0.16})
    assert not said
    watch.recent.clear()
    watch._guard_chance({"image_to_text": 0.16}, {"image_to_text": 0.16})
    assert "still at chance" in said[0]


# -------------------------------------------------------------------------------------------------- repeated captions


def test_a_pair_with_the_same_caption_is_no_negative() -> None:
    """However similar, it does not change the loss of the pair; as a negative it does."""
    ids = batch_of(4, {1: 0})["ids"]
    image = F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1)
    for negatives in (False, True):
        model = build(retrieval=False, repeats_are_negatives=negatives)
        text = image.clone().requires_grad_()
        losses = model.objective({"image": image, "text": text, "ids": ids})
        row = torch.autograd.grad(losses.terms["image_to_text"], text)[0][1]  # also the caption of picture 0
        of_others = [0, 2, 3] if negatives else [2, 3]
        shares = {i: [j for j in range(4) if j != i and (negatives or {i, j} != {0, 1})] for i in of_others}
        expected = -image[1]
        for i, summed in shares.items():
            weights = torch.stack([image[i] @ image[j] * 30 for j in summed]).softmax(0)
            expected = expected + weights[summed.index(1)] * image[i]
        torch.testing.assert_close(row, expected / 4, atol=1e-12, rtol=0)


def test_captions_are_recognised_however_far_they_are_padded() -> None:
    model, batch = build(), batch_of(5, {4: 2})
    longest = int((batch["ids"] == 99).int().argmax(dim=1)[1:].max()) + 1
    assert longest < CONTEXT
    short = {"pixels": batch["pixels"][1:], "ids": batch["ids"][1:, :longest]}
    long = {"pixels": batch["pixels"][1:], "ids": batch["ids"][1:]}
    assert torch.equal(features_of(model, short)["ids"], features_of(model, long)["ids"])


def test_a_batch_of_one_caption_learns_nothing_and_stays_finite() -> None:
    found = gradients(build(), batch_of(3, {1: 0, 2: 0}), None)
    assert len(found) > 10
    assert not any(value.any() for value in found.values())


def test_a_single_pair_is_refused() -> None:
    model = build()
    with pytest.raises(ValueError, match="this batch has 1 pair: set --batch to 2 or more"):
        model.objective(features_of(model, batch_of(1)))


# ------------------------------------------------------------------------------------- micro-batches and ranks, exactly


@two_by_two
def test_micro_batches_and_two_ranks_equal_the_full_batch(parts: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """With captions that repeat on the same rank and on the other, an uneven number of times, and one that is repeated by all others."""
    batch = batch_of(8, {1: 0, 5: 0, 6: 3})
    whole = gradients(build(**parts), batch, None)
    assert {"text.tokens.weight", "visual.patch_embed.proj.weight"} <= whole.keys()
    found = [gradients(build(**parts), batch, size) for size in (1, 3)]
    halves = [{name: rows[4 * rank : 4 * rank + 4] for name, rows in batch.items()} for rank in range(2)]
    models = [build(**parts) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", lambda x: x.double())
        one, other = on_ranks(monkeypatch, lambda rank: gradients(models[rank], halves[rank], 2 if rank else None))
    found.append({name: (one[name] + other[name]) / 2 for name in one})
    for each in found:
        assert each.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(each[name], gradient, atol=1e-9, rtol=1e-6, msg=lambda said, name=name: f"{name}: {said}")


def gradients(model: CLOOB, batch: dict[str, Tensor], micro_batch: int | None) -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", lambda x: x.double())
        losses = backward(model, batch, micro_batch=micro_batch, autocast=contextlib.nullcontext())
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"total": losses.total.detach()} | found | {f"chance of {k}": torch.as_tensor(v) for k, v in losses.chance.items()}


# ----------------------------------------------------------------------------------------------------------- the rest


def test_it_is_clip_but_for_the_objective() -> None:
    """Parameters, weights and embeddings: retrieval has no part in inference."""
    model = build()
    parent = CLIP(replace(model.config, temperature=0.07), model.tokenizer).double()  # type: ignore[arg-type]
    parent.load_state_dict(model.state_dict())
    raw = [picture.permute(1, 2, 0).numpy() for picture in pictures(3, 16)]
    model.collate = parent.collate  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", lambda x: x.double())
        assert torch.equal(model.encode_image(raw), parent.encode_image(raw))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["logit_scale"]
    assert float(CLOOB(model.config, model.tokenizer).logit_scale.exp()) == pytest.approx(30)


def test_arms_differ_in_the_objective_alone() -> None:
    base = cloob.short(cloob.PRESETS["tiny"])
    arms = [arm.change(base) for arm in (cloob.BOTH, cloob.LOOB, cloob.HOPFIELD, cloob.NEITHER)]
    assert [(arm.model.retrieval, arm.model.leave_one_out) for arm in arms] == [(True, True), (False, True), (True, False), (False, False)]
    assert {replace(arm, model=base.model) for arm in arms} == {base}


def test_directions_are_counted_by_the_variance_they_hold() -> None:
    rows = np.array([[3.0, 1.0, 0.0], [3.0, -1.0, 0.0], [-3.0, 1.0, 0.0], [-3.0, -1.0, 0.0]])  # variances 9 : 1 : 0
    assert [needed(rows, share) for share in (0.5, 0.89, 0.91, 0.99)] == [1, 1, 2, 2]
    assert needed(np.eye(4), 0.99) == 3  # the mean takes one away
