"""The image tokenizer: its quantisers against slow derivations, what keeps a codebook alive, its loss terms, and bad input."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import vgg16  # type: ignore[import-untyped]

from data.sample import Object, Sample
from models.vq import VQ, VQConfig
from models.vq.network import NetworkConfig
from models.vq.objective import PatchDiscriminator, Perceptual, psnr, squared_error
from models.vq.quantiser import FSQ, Codebook, perplexity

NETWORK = NetworkConfig(image_size=16, patch=2, width=16, multiplier=(1, 1), blocks=1, latent=16, norm="none", attention=False)
CONFIG = VQConfig(network=NETWORK, quantiser="ema", codes=32, embed_dim=8)


# ------------------------------------------------------------------------------------------------------ quantisers


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3), (4,)], ids=str)
def test_fsq_is_the_papers_rounding(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    latents = 3 * torch.randn(2, 3, 3, len(levels), generator=torch.Generator().manual_seed(0))
    found = fsq(latents)
    for place in np.ndindex(2, 3, 3):
        code = 0
        for channel in reversed(range(len(levels))):
            count = levels[channel]
            half = (count - 1) * 1.001 / 2
            offset = 0.0 if count % 2 else 0.5
            step = round(math.tanh(latents[place][channel].item() + math.atanh(offset / half)) * half - offset)
            assert -(count // 2) <= step <= (count - 1) // 2
            assert found.vectors[place][channel].item() == pytest.approx(step / (count // 2))
            code = code * count + step + count // 2
        assert found.codes[place].item() == code
    assert not found.loss.any()


def test_fsq_reaches_every_code_and_looks_each_one_up() -> None:
    fsq = FSQ((4, 3))
    codes = torch.arange(fsq.size).view(1, 3, 4)
    vectors = fsq.lookup(codes)
    assert len(vectors.flatten(0, 2).unique(dim=0)) == 12
    bounded = vectors * (fsq.levels // 2)  # back through the squashing: latents that fall on each code
    half, offset = (fsq.levels - 1) * 1.001 / 2, (fsq.levels % 2 == 0) * 0.5
    latents = torch.atanh((bounded + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(fsq(latents).codes, codes)


def test_codebook_takes_the_nearest_vector_and_passes_gradients_straight_through() -> None:
    book = _book(decay=0.0)
    latents = torch.randn(2, 2, 2, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found = book(latents)
    for place in np.ndindex(2, 2, 2):
        distances = [(latents[place] - vector).square().sum().item() for vector in book.vectors]
        assert found.codes[place].item() == int(np.argmin(distances))
    expected = [(latents[i] - book.vectors[found.codes[i]]).square().mean() * 1.25 for i in range(2)]
    assert found.loss.tolist() == pytest.approx([value.item() for value in expected])
    weight = torch.arange(24.0).view(2, 2, 2, 3)
    (found.vectors * weight).sum().backward(retain_graph=True)
    assert latents.grad is not None
    assert torch.equal(latents.grad, weight)
    assert book.vectors.grad is None
    latents.grad = None
    found.loss.sum().backward()
    committed = 2 * (latents - book.vectors[found.codes]) / 12  # weight 1 pulls latents, weight .25 pulls vectors
    torch.testing.assert_close(latents.grad, committed.detach())
    pulled = torch.zeros_like(book.vectors).index_add(0, found.codes.flatten(), -0.25 * committed.detach().flatten(0, 2))
    torch.testing.assert_close(book.vectors.grad, pulled)


def test_running_means_follow_the_latents() -> None:
    book = _book(decay=0.9)
    usage, sums = book.usage.clone(), book.sums.clone()
    for seed in range(3):
        latents = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))
        codes = book.nearest(latents)
        for code in range(book.size):
            mine = latents[codes == code]
            usage[code] = 0.9 * usage[code] + 0.1 * len(mine) / 20
            sums[code] = 0.9 * sums[code] + 0.1 * mine.sum(dim=0) / 20
        book.update(latents, codes)
        torch.testing.assert_close(book.vectors, sums / usage[:, None])
    assert book.usage.sum().item() == pytest.approx(1)


def test_perplexity_counts_the_codes_in_use() -> None:
    assert perplexity(torch.arange(8), 8).item() == pytest.approx(8)
    assert perplexity(torch.tensor([3] * 9), 8).item() == pytest.approx(1)
    assert perplexity(torch.tensor([0, 0, 5, 5]), 8).item() == pytest.approx(2)


def test_dead_codes_restart_from_latents() -> None:
    book = _book(decay=0.9)
    for held in (book.vectors, book.sums):
        held[2:] += 100  # nothing comes near them any more
    latents = torch.randn(64, 3, generator=torch.Generator().manual_seed(2))
    for _ in range(40):
        book.update(latents, book.nearest(latents))
    assert len(book.nearest(latents).unique()) <= 2
    assert book.revive(latents, torch.Generator().manual_seed(0)) == 4
    assert all((latents == vector).all(dim=1).any() for vector in book.vectors[2:])
    assert len(book.nearest(latents).unique()) > 3
    assert book.revive(latents, torch.Generator().manual_seed(0)) == 0  # they get time to be found


@pytest.mark.parametrize("quantiser", ["ema", "gradient"])
def test_a_collapsed_codebook_is_named_and_revived(quantiser: str) -> None:
    model = VQ(replace(CONFIG, quantiser=quantiser, revive_every=2, dead=0.5)).train()  # type: ignore[arg-type]
    assert isinstance(model.quantiser, Codebook)
    warnings = []
    for step in range(4):
        model(model.collate(_samples(8, seed=step)))
        if step == 3:  # at the end of which dead codes are looked for
            with torch.no_grad():
                model.quantiser.vectors[1:] = 1e3  # so far away that nothing comes near them again
                model.quantiser.usage.copy_(torch.tensor([1.0] + [0.0] * 31))
        warnings.append(model.after_step())
    collapsed = "the codebook has collapsed: 1 of 32 codes are in use; 31 dead codes restart from latents"
    assert warnings == [None, None, None, collapsed]
    assert model.quantiser.vectors.abs().max() < 100
    assert model(model.collate(_samples(8, seed=0))).terms["perplexity"] > 4


# ------------------------------------------------------------------------------------------------------ loss terms


def test_pixels_of_objects_weigh_more() -> None:
    samples = _samples(2)
    thing = Object("dot", (4.0, 2.5, 8.0, 6.0))
    batch = VQ(CONFIG).collate([samples[0], replace(samples[1], objects=(thing,))])
    assert not batch["objects"][0].any()
    rows, columns = batch["objects"][1, 0].nonzero(as_tuple=True)
    assert [int(edge) for edge in (rows.min(), rows.max(), columns.min(), columns.max())] == [2, 5, 4, 7]
    plain, weighted = (VQ(replace(CONFIG, object_weight=weight)).eval() for weight in (0.0, 3.0))
    weighted.load_state_dict(plain.state_dict())
    pixels = batch["pixels"].float() / 127.5 - 1
    error = plain._pixels(plain.quantiser(plain._latents(pixels)).vectors) - pixels
    each = (error.abs() / 2 + error.square()).mean(dim=1)[1]
    inside = batch["objects"][1, 0]
    expected = (each.sum() + 3 * each[inside].sum()) / (each.numel() + 3 * inside.sum())
    assert weighted.encode(batch)["pixels"][1].item() == pytest.approx(expected.item(), rel=1e-5)
    assert plain.encode(batch)["pixels"][1].item() == pytest.approx(each.mean().item(), rel=1e-5)


def test_psnr_by_hand_and_only_where_objects_are() -> None:
    pixels = torch.zeros(2, 3, 4, 4)
    off = pixels + 0.02
    where = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    where[0, 0, 1, 1] = True
    off[0, :, 1, 1] = 0.2
    assert psnr(squared_error(off, pixels, where)).item() == pytest.approx(10 * math.log10(4 / 0.04))
    assert psnr(squared_error(off, pixels, torch.zeros_like(where))) == 0


def test_adversarial_gradients_reach_one_side_each() -> None:
    critic = PatchDiscriminator(width=16, levels=2)
    real, fake = _noise(3, 32, 0), _noise(3, 32, 1).requires_grad_()
    critic.generator_loss(fake).sum().backward()
    assert fake.grad is not None
    assert fake.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in critic.parameters())
    fake.grad = None
    loss = critic.own_loss(fake, real)
    loss.sum().backward()
    assert fake.grad is None
    assert all(parameter.grad is not None for parameter in critic.parameters())
    hinge = [(torch.relu(1 - critic(x)) + torch.relu(1 + critic(y))).mean() / 2 for x, y in zip(real[:, None], fake[:, None], strict=True)]
    assert loss.tolist() == pytest.approx([value.item() for value in hinge], rel=1e-4)


def test_adversarial_term_starts_when_it_should_and_trains_both_sides() -> None:
    network = replace(NETWORK, image_size=32)
    model = VQ(replace(CONFIG, network=network, adversarial_weight=0.5, adversarial_after=8)).train()
    batch = model.collate(_samples(4, size=32))
    assert "generator" not in model(batch).terms
    for _ in range(2):
        model(batch)
        model.after_step()
    losses = model(batch)
    assert {"generator", "discriminator"} <= losses.terms.keys()
    terms = losses.terms
    expected = terms["pixels"] + terms["quantisation"] + 0.5 * terms["generator"] + terms["discriminator"]
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_perceptual_term_reads_weights_by_name(tmp_path: Path) -> None:
    path = tmp_path / "vgg16.safetensors"
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in vgg16().state_dict().items() if name.startswith("features.")}
    generator = torch.Generator().manual_seed(0)
    save_file({name: torch.randn(shape, generator=generator) / math.sqrt(shape.numel() / shape[0]) for name, shape in shapes.items()}, path)
    distance = Perceptual(str(path))
    pixels, other = _noise(2, 32, 0), _noise(2, 32, 1).requires_grad_()
    assert distance(pixels, pixels).abs().max() < 1e-6
    distance(other, pixels).sum().backward()
    assert other.grad is not None
    assert other.grad.abs().max() > 0
    model = VQ(replace(CONFIG, network=replace(NETWORK, image_size=32), perceptual=str(path)))
    assert not any("features" in name for name in model.state_dict())  # the classifier is no part of the tokenizer
    assert model(model.collate(_samples(2, size=32))).terms["perceptual"] > 0
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        _ = Perceptual(str(tmp_path / "nothing.safetensors")).features
    with pytest.raises(ValueError, match=r"perceptual weights 'no_such_weights' cannot be loaded .*name torchvision weights"):
        _ = Perceptual("no_such_weights").features


# --------------------------------------------------------------------------------------------------- whole model


def test_every_parameter_learns_and_sixteen_pictures_are_learned_by_heart() -> None:
    torch.manual_seed(0)
    model = VQ(replace(CONFIG, quantiser="fsq")).train()
    batch = model.collate([_blocks(seed) for seed in range(16)])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = model(batch)
    for step in range(120):
        losses = model(batch)
        optimizer.zero_grad()
        losses.total.backward()
        if step == 10:
            assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
        optimizer.step()
        model.after_step()
    assert losses.terms["psnr"] > first.terms["psnr"] + 8
    assert losses.terms["psnr"] > 18


def test_pictures_of_any_size_become_tokens_and_pictures_again() -> None:
    model = VQ(CONFIG).eval()
    images = [np.random.default_rng(0).integers(256, size=size, dtype=np.uint8) for size in ((16, 16, 3), (40, 23, 3), (5, 9, 3))]
    tokens = model.tokens(images)
    assert tokens.shape == (3, 16)
    assert 0 <= tokens.min() <= tokens.max() < model.size
    painted = model.reconstruct(images)
    assert [picture.shape for picture in painted] == [(16, 16, 3)] * 3
    assert all(np.array_equal(a, b) for a, b in zip(painted, model.paint(tokens), strict=True))
    assert model.grid(images).shape == (32, 48, 3)
    assert np.array_equal(model.grid(images)[:16, :16], images[0])
    assert model.reconstruct([]) == []


def test_what_is_no_token_is_refused() -> None:
    model = VQ(CONFIG).eval()
    with pytest.raises(ValueError, match=r"0\.\.31, found 0\.\.32"):
        model.paint(torch.tensor([[0] * 15 + [32]]))
    with pytest.raises(ValueError, match="multiple of 4"):
        NetworkConfig(image_size=18, patch=2, width=16, multiplier=(1, 1))
    with pytest.raises(ValueError, match="at least 2"):
        FSQ((1, 4))


def test_latents_are_continuous_at_first_and_the_codebook_starts_among_them() -> None:
    model = VQ(replace(CONFIG, continuous=16)).train()
    model.load_state_dict(model.state_dict() | {"quantiser.vectors": torch.full((32, 8), 50.0)})
    for step in range(2):
        batch = model.collate(_samples(8, seed=step))
        far = model.encode(batch)["pixels"]
        model(batch)
        model.after_step()
    assert far.max() < 10  # vectors 50 away did not reach the decoder
    assert model.quantiser.lookup(torch.arange(32)).abs().max() < 40


def _book(decay: float) -> Codebook:
    torch.manual_seed(3)
    book = Codebook(6, 3, commitment=1.0, codebook=0.25, decay=decay, dead=0.05)
    with torch.no_grad():
        book.vectors.copy_(torch.randn(6, 3))
        if decay:
            book.sums.copy_(book.vectors / 6)
    return book


def _samples(count: int, seed: int = 0, size: int = 16) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [Sample(str(i), rng.integers(256, size=(size, size, 3), dtype=np.uint8)) for i in range(count)]


def _blocks(seed: int) -> Sample:
    """A picture that can be told in few numbers: four blocks of one colour each."""
    colours = np.random.default_rng(seed).integers(256, size=(2, 2, 3), dtype=np.uint8)
    return Sample(str(seed), colours.repeat(8, axis=0).repeat(8, axis=1))


def _noise(count: int, size: int, seed: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
