"""Our image tokenizer's encoder and quantiser compute what transformers' Chameleon tokenizer computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from models.shared.images import HALF, normalise
from models.vq import VQ, VQConfig
from models.vq.convert import config_from_transformers, from_transformers, to_transformers
from tests.models.kit import TOLERANCE, assert_close, assert_round_trip, pictures, randomise


def test_equals_chameleons_tokenizer() -> None:
    theirs, ours = _pair(ChameleonVQVAEConfig(embed_dim=16, num_embeddings=64, latent_channels=32, resolution=32, **_SMALL))
    pixels = normalise(pictures(3, 32), HALF, HALF)
    _assert_same(ours, theirs, pixels)


@pytest.mark.slow
def test_equals_it_at_paper_shape() -> None:
    """All channels and codes of `paper`; the picture is smaller, which no weight depends on."""
    network = VQConfig.paper().network
    config = ChameleonVQVAEConfig(resolution=256, channel_multiplier=network.multiplier)
    theirs, ours = _pair(config)
    reference = replace(VQConfig.paper(), perceptual="", adversarial_weight=0.0, adversarial_after=0)
    assert replace(ours.config, network=reference.network) == reference
    assert ours.config.network == reference.network
    _assert_same(ours, theirs, normalise(pictures(1, 64), HALF, HALF))


def test_converts_there_and_back_to_the_bit() -> None:
    theirs, ours = _pair(ChameleonVQVAEConfig(embed_dim=16, num_embeddings=64, latent_channels=32, resolution=32, **_SMALL))
    assert_round_trip(theirs.state_dict(), from_one_block, to_one_block)
    assert_round_trip(to_one_block(ours.state_dict()), from_one_block, to_one_block)


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(ValueError, match="attention in the middle"):
        config_from_transformers(ChameleonVQVAEConfig(attn_resolutions=[16]))


_SMALL = {"base_channels": 32, "channel_multiplier": [1, 2, 2], "num_res_blocks": 1}


def from_one_block(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return from_transformers(state, blocks=1)


def to_one_block(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return to_transformers(state, blocks=1)


def _pair(config: ChameleonVQVAEConfig) -> tuple[ChameleonVQVAE, VQ]:
    torch.manual_seed(0)
    theirs = ChameleonVQVAE(config)
    randomise(theirs, 1)
    theirs.train()  # in eval mode it detaches nothing, but transformers freezes it
    theirs.requires_grad_(True)
    ours = VQ(config_from_transformers(config))
    missing, unexpected = ours.load_state_dict(from_transformers(theirs.state_dict(), config.num_res_blocks), strict=False)
    assert not unexpected
    assert all(name.startswith("decoder.") or name in {"steps", "seen", "quantiser.usage"} for name in missing)
    return theirs, ours


def _assert_same(ours: VQ, theirs: ChameleonVQVAE, pixels: Tensor) -> None:
    """Latents, codes, loss, and the gradients that reach both the encoder and the codebook."""
    latents = theirs.quant_conv(theirs.encoder(pixels))
    vectors, loss, codes = theirs.quantize(latents)
    mine = ours._latents(pixels)
    assert (mine - latents.permute(0, 2, 3, 1)).abs().max() <= TOLERANCE * latents.abs().max()
    quantised = ours.quantiser(mine)
    assert torch.equal(quantised.codes.flatten(), codes)
    assert len(codes.unique()) > 3
    assert_close(quantised.vectors.permute(0, 3, 1, 2) / latents.abs().max(), vectors / latents.abs().max(), "vectors")
    assert quantised.loss.mean().item() == pytest.approx(loss.item(), rel=1e-5)

    (loss + vectors.square().mean()).backward()
    (quantised.loss.mean() + quantised.vectors.square().mean()).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    for name, gradient in from_transformers(gradients, ours.config.network.blocks).items():
        found = ours.get_parameter(name).grad
        assert found is not None, name
        assert gradient.abs().max() > 0, name
        assert (found - gradient).abs().max() <= TOLERANCE * max(1.0, gradient.abs().max().item()), name
