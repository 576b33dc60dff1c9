"""SLIP: its loss against a second derivation, exact in parts, and views that keep captions true."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.fields import FieldError
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.clip import CLIP, SLIP, CLIPConfig, SLIPConfig
from models.clip.projector import BatchNorm, projector
from models.clip.slip import nt_xent
from models.clip.views import View, named, random_box, seen
from models.shared.images import normalise
from models.shared.text import BPETokenizer
from models.shared.vision import TINY_TOWER, VisionConfig, vision_transformer
from tests.models.views_kit import (
    BATCH,
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
    two_ranks,
    unit,
)

CONFIG = SLIPConfig(**SMALL, view=View(size=16), hidden=24, ssl_dim=12, ssl_weight=0.7)
SAMPLES = [make_sample(PRESETS["tiny"], "train", index) for index in range(12)]


# -------------------------------------------------------------------------------------------------------------- the loss


def slow_losses(model: SLIP, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sheet's formula, one view at a time."""
    pixels, one, other = (normalise(rows[name], model.config.mean, model.config.std) for name in ("pixels", "view1", "view2"))
    image = unit(model.visual(pixels) @ model.visual_projection.weight.T)
    text = unit(model.text(rows["ids"]) @ model.text_projection.weight.T)
    to_text, to_image = slow_clip(image, text, model.logit_scale.exp())
    views = torch.cat([unit(slow_mlp(model.ssl_head, smaller(model, view))) for view in (one, other)])
    n, total = len(views) // 2, torch.zeros((), dtype=torch.float64)
    for i in range(2 * n):
        logits = {j: (views[i] * views[j]).sum() / 0.1 for j in range(2 * n) if j != i}
        positive = (i + n) % (2 * n)
        total = total - (logits[positive] - torch.log(sum(torch.exp(logit) for logit in logits.values()))) / (2 * n)
    return {"total": (to_text + to_image) / 2 + 0.7 * total, "image_to_text": to_text, "text_to_image": to_image, "ssl": total}


def smaller(model: Any, pixels: Tensor) -> Tensor:
    """The tower's features of smaller pictures: the embeddings of 4 x 4 patches become those of 2 x 2 as pictures do."""
    tower = model.visual
    positions = tower.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    positions = F.interpolate(positions, (2, 2), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    x = tower.patch_embed.proj(pixels).flatten(2).transpose(1, 2) + positions
    x = torch.cat([(tower.cls_token + tower.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
    return tower.norm(tower.blocks(x))[:, 0]


def test_losses_and_all_gradients_equal_the_slow_derivation() -> None:
    model, rows = build(SLIP, CONFIG), batch()
    found = step(model, rows)
    model.zero_grad()
    with double():
        slow = slow_losses(model, rows)
        slow["total"].backward()
    assert_equal(found, ({name: value.detach() for name, value in slow.items()}, gradients(model)))
    assert_learns(model, found[1], but=tuple(before_norms(model.ssl_head, "ssl_head")))


def test_chance_is_the_loss_of_views_that_are_all_alike() -> None:
    alike = F.normalize(torch.ones(5, 8), dim=-1)
    loss, chance = nt_xent(alike, alike, 0.1)
    assert chance == math.log(9)
    assert loss.item() == pytest.approx(chance, rel=1e-5)


def test_it_is_clip_but_for_the_views() -> None:
    """The same pairs, the same features and terms, the same model after training."""
    words = BPETokenizer.train([caption for sample in SAMPLES for caption in sample.captions], 600)
    clip, slip = (kind.tiny() for kind in (CLIPConfig, SLIPConfig))
    torch.manual_seed(0)
    ours: Any = SLIP(replace(slip, vocab_size=words.vocab_size), words)
    torch.manual_seed(0)
    theirs: Any = CLIP(replace(clip, vocab_size=words.vocab_size), words)
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    pairs, more = (model.collate(SAMPLES, np.random.default_rng(4)) for model in (theirs, ours))
    assert more.keys() - pairs.keys() == {"view1", "view2"}
    assert all(torch.equal(more[name], rows) for name, rows in pairs.items())
    assert {tuple(more[name].shape) for name in ("view1", "view2")} == {(12, 3, 32, 32)}
    clips, slips = theirs(pairs), ours(more)
    assert {name: term.item() for name, term in clips.terms.items()}.items() <= {
        name: term.item() for name, term in slips.terms.items()
    }.items()
    assert slips.total.item() == pytest.approx(clips.total.item() + slips.terms["ssl"].item(), rel=1e-6)
    assert torch.equal(ours.encode_image([SAMPLES[0].image]), theirs.encode_image([SAMPLES[0].image]))


def test_the_scale_stays_between_1_and_100() -> None:
    model = build(SLIP, CONFIG)
    for before, after in ((-0.5, 0.0), (9.0, math.log(100)), (2.0, 2.0)):
        with torch.no_grad():
            model.logit_scale.fill_(before)
        model.after_step()
        assert model.logit_scale.item() == pytest.approx(after)


# ------------------------------------------------------------------------------------------------- BatchNorm, in parts


def test_micro_batches_and_two_ranks_equal_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_exact_in_parts(build(SLIP, CONFIG), batch(), monkeypatch)


def test_statistics_of_a_part_would_give_other_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the head is in `objective` and normalises over ranks: with the statistics of a rank, or of a micro-batch, the loss is another."""
    model, rows = build(SLIP, CONFIG), batch()
    whole = step(model, rows)[0]["ssl"]
    own = copy.deepcopy(model)
    for place, layer in enumerate(own.ssl_head):
        if isinstance(layer, BatchNorm):
            own.ssl_head[place] = _like(layer)
    torch.testing.assert_close(step(own, rows)[0]["ssl"], whole, atol=1e-9, rtol=0)
    assert (two_ranks(own, rows, monkeypatch)[0]["ssl"] - whole).abs() > 1e-2
    features = torch.randn(BATCH, 32, dtype=torch.float64)
    in_parts = torch.cat([own.ssl_head(part) for part in features.split(2)])
    assert (in_parts - own.ssl_head(features)).abs().max() > 1e-2


def _like(layer: BatchNorm) -> nn.Module:
    theirs = nn.BatchNorm1d(len(layer.weight)).double()
    theirs.load_state_dict({"weight": layer.weight, "bias": layer.bias}, strict=False)
    return theirs


def test_batch_norm_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    ours = BatchNorm(5).double()
    with torch.no_grad():
        ours.weight.normal_(generator=generator)
        ours.bias.normal_(generator=generator)
    found = []
    for layer in (ours, _like(ours)):
        leaf = (3 * x + 2).requires_grad_()
        y = layer(leaf)
        (y * weights).sum().backward()
        found.append((y.detach(), leaf.grad, layer.weight.grad, layer.bias.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_a_head_has_the_layers_that_it_is_given() -> None:
    kinds = [type(layer).__name__ for layer in projector(3, 4, 5, 6)]
    assert kinds == ["Linear", "BatchNorm", "ReLU"] * 2 + ["Linear"]
    assert [type(layer).__name__ for layer in projector(3, 4, normed=True)] == ["Linear", "BatchNorm"]


# ------------------------------------------------------------------------------------------------------------------ views

ALWAYS = View(size=16, area=(1.0, 1.0), jitter=0.0, grey=0.0, blur=0.0, flip=1.0)
HALVES = np.zeros((16, 16, 3), np.uint8)
HALVES[:, 8:] = (200, 40, 40)


def views(view: View, captions: tuple[str, ...], image: np.ndarray = HALVES, count: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [view(image, captions, rng) for _ in range(count)]


@pytest.mark.parametrize("caption", ["a cup to the left of a cup", "Right-hand side", "the RIGHTMOST one", "facing leftward", "clockwise"])
def test_where_a_caption_names_sides_nothing_is_mirrored(caption: str) -> None:
    assert all(np.array_equal(view, HALVES) for view in views(ALWAYS, ("a dog", caption)))
    assert all(np.array_equal(view, HALVES[:, ::-1]) for view in views(replace(ALWAYS, careful=False), ("a dog", caption)))


def test_where_none_does_it_is_mirrored() -> None:
    assert all(np.array_equal(view, HALVES[:, ::-1]) for view in views(ALWAYS, ("a cup above a dog", "it is upright")))


COLOUR = View(size=16, area=(1.0, 1.0), jitter=1.0, strength=(0.0, 0.0, 0.0, 0.5), grey=0.5, blur=0.0, flip=0.0)
RED = np.full((16, 16, 3), (200, 40, 40), np.uint8)


@pytest.mark.parametrize(
    "caption", ["a red car", "Reddish hair", "a GREY cat", "the golden gate", "a brightly coloured bird", "white noise"]
)
def test_where_a_caption_names_a_colour_it_stays(caption: str) -> None:
    assert all(np.abs(view.astype(int) - RED).max() <= 3 for view in views(COLOUR, (caption,), RED))
    assert any(np.abs(view.astype(int) - RED).max() > 50 for view in views(replace(COLOUR, careful=False), (caption,), RED))


def test_where_none_does_hue_changes_and_some_are_grey() -> None:
    found = [view[0, 0].astype(int) for view in views(COLOUR, ("two dogs on a beach",), RED)]
    grey = [colour for colour in found if np.ptp(colour) <= 1]
    assert 0 < len(grey) < len(found)
    assert len({int(colour.argmax()) for colour in found if np.ptp(colour) > 1}) == 3


BRIGHT = View(size=16, area=(1.0, 1.0), jitter=1.0, strength=(0.9, 0.9, 0.0, 0.0), grey=0.0, blur=0.0, flip=0.0)


@pytest.mark.parametrize("caption", ["on a dark background", "Lighter than air", "a moonlit night: nighttime", "brighter", "in the shade"])
def test_where_a_caption_says_how_dark_it_is_brightness_stays(caption: str) -> None:
    assert all(np.abs(view.astype(int) - HALVES).max() <= 3 for view in views(BRIGHT, (caption,)))
    assert any(np.abs(view.astype(int) - HALVES).max() > 40 for view in views(BRIGHT, ("a car",)))


def test_scenes_keep_their_colours_sides_and_background() -> None:
    """Every caption names a colour; most pictures have one that names a side, a place, or how dark the background is."""
    flags = np.array([named(sample.captions) for sample in SAMPLES])
    assert flags[:, 1].all()
    assert flags[:, 0].any()
    assert flags[:, 2].any()


def test_views_differ_from_draw_to_draw_and_leave_the_picture_as_it_is() -> None:
    before = SAMPLES[0].image.copy()
    one, other = (View(size=32)(SAMPLES[0].image, SAMPLES[0].captions, np.random.default_rng(seed)) for seed in (0, 1))
    assert one.shape == other.shape == (32, 32, 3)
    assert not np.array_equal(one, other)
    assert np.array_equal(SAMPLES[0].image, before)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (640, 20), (1, 300), (1, 1)])
def test_crops_lie_in_the_picture_and_keep_the_share_that_is_asked_for(width: int, height: int) -> None:
    rng, shares = np.random.default_rng(0), []
    for _ in range(300):
        left, top, right, bottom = random_box(width, height, (0.2, 0.5), rng)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        shares.append((right - left) * (bottom - top) / (width * height))
    if width == height:
        assert 0.2 <= min(shares) < 0.25
        assert 0.45 < max(shares) <= 0.5


def test_a_view_has_the_size_it_is_given_whatever_the_picture() -> None:
    odd = np.random.default_rng(0).integers(256, size=(7, 501, 3), dtype=np.uint8)
    assert View(size=48).batch([Sample("a", odd, ("a dog",))], np.random.default_rng(0)).shape == (1, 3, 48, 48)


@pytest.mark.parametrize(
    "tower", [TINY_TOWER, VisionConfig(width=32, depth=1, heads=2, image_size=64, patch_size=16, pre_norm=True)], ids=["conv", "patch"]
)
def test_a_small_view_is_seen_as_by_a_tower_of_its_size(tower: VisionConfig) -> None:
    """timm's own way to change a tower's size."""
    torch.manual_seed(0)
    whole, small = vision_transformer(tower), vision_transformer(replace(tower, image_size=32))
    nn.init.normal_(whole.pos_embed)
    state = whole.state_dict()
    skip = whole.num_prefix_tokens
    grid = state["pos_embed"][:, skip:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, (2, 2), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    small.load_state_dict(state | {"pos_embed": torch.cat([state["pos_embed"][:, :skip], resized], dim=1)})
    if tower.stem == "patch":
        whole.patch_embed.strict_img_size = False
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(seen(whole, pixels, 16), small(pixels))
    seen(whole, pixels, 16)[:, 0].sum().backward()
    assert whole.pos_embed.grad is not None
    assert whole.pos_embed.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"view": View(size=30)}, "view.size is 30, expected a multiple of the patch size, 8 pixels"),
        ({"frozen": True}, "frozen is True, expected False: a locked image tower learns nothing"),
        ({"ssl_temperature": 0.0}, r"ssl_temperature is 0\.0, expected a number above 0"),
        ({"ssl_weight": -1.0}, r"ssl_weight is -1\.0, expected 0 or more"),
    ],
)
def test_what_cannot_be_is_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FieldError, match=said):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"area": (0.5, 0.2)}, "view.area"),
        ({"flip": 1.5}, "view.flip"),
        ({"strength": (0.4, 0.4, 0.4, 0.6)}, "view.strength"),
        ({"size": 0}, "view.size"),
    ],
)
def test_a_view_that_cannot_be_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FieldError, match=said):
        View(**changes)
