"""What VirTex promises: a loss that a slow derivation on torch's own layers confirms, captions in both directions, and features."""

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

from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from eval.base.capabilities import Captions, EncodesImages, ScoresPairs
from models.coca import VirTex, VirTexConfig, VirTexTokens, VirTexTokensConfig
from models.coca.virtex import backwards, bag_nll
from models.shared.generate import Decoding
from models.shared.images import normalise
from models.shared.mirror import mirrored
from models.shared.text import BPETokenizer, until_end
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from tests.models.kit import assert_close, randomise, tokenizer

SAMPLES = [make_sample(PRESETS["tiny"], "train", index) for index in range(12)]
CAPTIONS = [caption for sample in SAMPLES for caption in sample.captions]
TOKENIZER = BPETokenizer.train(CAPTIONS, 400)
IMAGES = [sample.image for sample in SAMPLES]
EXACT = 1e-6


# ---------------------------------------------------------------------------------------------------- objective


@pytest.mark.parametrize("layers", [1, 2])
def test_loss_and_gradients_equal_those_of_torchs_layers(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One caption and one direction at a time, without padding: each direction is a mean over the tokens of the batch, and their sum
    is the loss. Visual projection, embedding and output layer are shared, the layers are not."""
    monkeypatch.setattr("models.coca.virtex.normalise", lambda *given: normalise(*given).double())
    model = _model(layers).double()
    slow = copy.deepcopy(model)
    batch = model.collate(SAMPLES[:5], np.random.default_rng(0))
    losses = model(batch)
    losses.total.backward()

    text, stacks = slow.text, {name: _reference(slow, name == "backward") for name in ("forward", "backward")}
    grid = slow._grid(batch["pixels"])
    found: dict[str, list[Tensor]] = {"forward": [], "backward": []}
    for row, ids in enumerate(batch["ids"].tolist()):
        words = ids[1 : ids.index(TOKENIZER.end)]
        orders = {
            "forward": [TOKENIZER.start, *words, TOKENIZER.end],
            "backward": [TOKENIZER.end, *words[::-1], TOKENIZER.start],
        }
        for name, order in orders.items():
            x = F.layer_norm(text.tokens.weight[order[:-1]] + text.positions[: len(order) - 1], (16,), text.norm.weight, text.norm.bias)
            memory = grid[row] @ text.projection.weight.T + text.projection.bias
            states = x[None]
            for layer in stacks[name]:
                states = layer(states, memory[None], tgt_mask=nn.Transformer.generate_square_subsequent_mask(len(order) - 1).double())
            log_p = (states[0] @ text.tokens.weight.T + text.bias).log_softmax(dim=-1)
            found[name] += [-log_p[place, token] for place, token in enumerate(order[1:])]
    expected = {name: torch.stack(each).mean() for name, each in found.items()}
    torch.stack(list(expected.values())).sum().backward()

    assert losses.terms.keys() == expected.keys()
    for name, value in expected.items():
        assert losses.terms[name].item() == pytest.approx(value.item(), rel=EXACT), name
    assert losses.total.item() == pytest.approx(sum(float(value) for value in expected.values()), rel=EXACT)
    gradients = dict(_gradients(slow, stacks))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > EXACT, f"{name}: no gradient to compare"
        assert (parameter.grad - gradients.pop(name)).abs().max() <= EXACT, f"gradient of {name}"
    assert not gradients


def test_only_words_are_reversed() -> None:
    ids = torch.tensor([[1, 5, 6, 7, 2, 0], [1, 8, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]])
    assert backwards(ids, until_end(ids, TOKENIZER)).tolist() == [[2, 7, 6, 5, 1, 0], [2, 8, 1, 0, 0, 0], [2, 1, 0, 0, 0, 0]]


def test_a_bag_is_the_set_of_a_captions_tokens() -> None:
    ids = torch.tensor([[1, 5, 6, 5, 2, 0], [1, 2, 0, 0, 0, 0]])
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    nll, count = bag_nll(logits, ids, until_end(ids, TOKENIZER))
    log_p = logits.log_softmax(dim=-1)
    assert nll[0].item() == pytest.approx(-(log_p[0, 5] + log_p[0, 6]).item() / 2, abs=1e-6)
    assert (nll[1].item(), count.tolist()) == (0.0, [1, 0])


@pytest.mark.parametrize(("kind", "terms"), [("both", 2), ("forward", 1), ("tokens", 1)])
def test_every_parameter_learns_and_knowing_nothing_is_chance(kind: str, terms: int) -> None:
    model: Any = _tokens() if kind == "tokens" else _model(backward=kind == "both")
    batch = model.collate(SAMPLES, np.random.default_rng(0))
    losses = model(batch)
    losses.total.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert losses.terms.keys() == losses.chance.keys()
    assert len(losses.terms) == terms
    assert losses.total.item() == pytest.approx(sum(float(term) for term in losses.terms.values()), abs=1e-6)
    for parameter in (model.head if kind == "tokens" else model.text).parameters():
        nn.init.zeros_(parameter)
    for value in model(batch).terms.values():
        assert value.item() == pytest.approx(math.log(TOKENIZER.vocab_size), abs=1e-5)


def test_dropout_is_for_training() -> None:
    model = _model(dropout=0.5)
    batch = model.collate(SAMPLES)
    assert torch.equal(model(batch).total, model(batch).total)
    model.train()
    assert not torch.equal(model(batch).total, model(batch).total)


# ------------------------------------------------------------------------------------------------------ mirrored


def test_pictures_are_mirrored_with_their_captions() -> None:
    model = _model(mirror=1.0)
    for seed, expected in ((None, SAMPLES), (3, [mirrored(sample) for sample in SAMPLES])):
        batch = model.collate(SAMPLES, None if seed is None else np.random.default_rng(seed))
        texts = [TOKENIZER.decode(ids.tolist()) for ids in batch["ids"]]
        for sample, pixels, text in zip(expected, batch["pixels"], texts, strict=True):
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), sample.image)
            assert text in [TOKENIZER.decode(TOKENIZER.encode(caption)[:30]) for caption in sample.captions]


def test_half_of_the_pictures_are_mirrored() -> None:
    model = _model(mirror=0.5)
    batch = model.collate(SAMPLES[:1] * 1000, np.random.default_rng(0))
    same = (batch["pixels"].permute(0, 2, 3, 1) == torch.from_numpy(SAMPLES[0].image)).flatten(1).all(dim=1)
    assert same.float().mean() == pytest.approx(0.5, abs=0.05)


# -------------------------------------------------------------------------------------------------- capabilities


def test_a_score_is_the_forward_likelihood() -> None:
    model = _model()
    images, texts = [IMAGES[0], IMAGES[1], IMAGES[0], IMAGES[0]], [CAPTIONS[0], CAPTIONS[0], CAPTIONS[1], "a"]
    for image, text, found in zip(images, texts, model.score(images, texts).tolist(), strict=True):
        order = [TOKENIZER.start, *TOKENIZER.encode(text), TOKENIZER.end]
        log_p = _logits(model, image, order[:-1]).log_softmax(dim=-1)
        assert found == pytest.approx(sum(float(log_p[place, token]) for place, token in enumerate(order[1:])), abs=1e-4)


def test_captions_are_written_forwards() -> None:
    model = _model()
    never = {TOKENIZER.pad, TOKENIZER.start}
    for image, caption in zip(IMAGES[:3], model.caption(IMAGES[:3], how=Decoding()), strict=True):
        order = [TOKENIZER.start]
        while len(order) < 31:
            logits = _logits(model, image, order)[-1]
            best = max((token for token in range(len(logits)) if token not in never), key=lambda token: float(logits[token]))
            if best == TOKENIZER.end:
                break
            order.append(best)
        assert caption == TOKENIZER.decode(order)


def test_features_are_the_encoders_and_have_length_one() -> None:
    model = _model()
    together, alone = model.encode_image(IMAGES[:3]), torch.cat([model.encode_image([image]) for image in IMAGES[:3]])
    assert_close(together, alone, "features")
    assert_close(together.norm(dim=1), torch.ones(3), "length")
    assert together.shape[1] == 32
    randomise(model.text, 5)
    assert torch.equal(model.encode_image(IMAGES[:3]), together)


def test_a_model_without_a_decoder_neither_writes_nor_scores() -> None:
    model = _tokens()
    assert isinstance(model, EncodesImages)
    assert not isinstance(model, Captions)
    assert not isinstance(model, ScoresPairs)
    assert isinstance(_model(), Captions)
    assert isinstance(_model(), ScoresPairs)


def test_a_resnets_grid_is_read_row_by_row() -> None:
    model = _model(timm_name="test_resnet")
    grid = model._grid(model.collate(SAMPLES[:2])["pixels"])
    assert grid.shape[:2] == (2, 4)
    assert model(model.collate(SAMPLES, np.random.default_rng(0))).total.isfinite()
    assert len(model.caption(IMAGES[:2])) == 2


def test_a_tokenizer_without_a_start_is_refused() -> None:
    with pytest.raises(ValueError, match="begin with a start token"):
        VirTex(_model().config, tokenizer(pad=0, end=99))


# ------------------------------------------------------------------------------------------------------- helpers


def _model(layers: int = 1, **changes: Any) -> VirTex:
    config = VirTexConfig(
        vision=VisionConfig(width=32, depth=1, heads=2, image_size=64, stem="conv", pool="none"),
        text=TransformerConfig(width=16, depth=layers, heads=2),
        dropout=0.0,
        context=32,
        vocab_size=TOKENIZER.vocab_size,
    )
    torch.manual_seed(0)
    model = VirTex(replace(config, **changes), TOKENIZER).eval()
    randomise(model, 1)
    return model


def _tokens() -> VirTexTokens:
    model = VirTexTokens(VirTexTokensConfig(**vars(_model().config)), TOKENIZER).eval()
    randomise(model, 1)
    return model


@torch.no_grad()
def _logits(model: VirTex, image: np.ndarray, order: list[int]) -> Tensor:
    """Of what follows each token of a text `[T, V]`, without cache or tree."""
    tokens = model._image_tokens(model.collate.images([image]))
    return model.text.look(model.text.embed(torch.tensor([order])), tokens)[0]


def _reference(model: VirTex, backward: bool) -> list[nn.TransformerDecoderLayer]:
    """torch's post-norm layers with the weights of one direction."""
    found = []
    for block in model.text.backward_layers if backward else model.text.multimodal:
        layer = nn.TransformerDecoderLayer(16, 2, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=False).double()
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": block.attn.qkv.weight,
                "self_attn.in_proj_bias": block.attn.qkv.bias,
                "self_attn.out_proj.weight": block.attn.proj.weight,
                "self_attn.out_proj.bias": block.attn.proj.bias,
                "multihead_attn.in_proj_weight": torch.cat([block.cross.q.weight, block.cross.kv.weight]),
                "multihead_attn.in_proj_bias": torch.cat([block.cross.q.bias, block.cross.kv.bias]),
                "multihead_attn.out_proj.weight": block.cross.proj.weight,
                "multihead_attn.out_proj.bias": block.cross.proj.bias,
                **{f"linear{i}.{kind}": getattr(getattr(block, f"fc{i}"), kind) for i in (1, 2) for kind in ("weight", "bias")},
                **{f"norm{i}.{kind}": getattr(getattr(block, f"norm{i}"), kind) for i in (1, 2, 3) for kind in ("weight", "bias")},
            }
        )
        found.append(layer)
    return found


def _gradients(model: VirTex, stacks: dict[str, list[nn.TransformerDecoderLayer]]) -> dict[str, Tensor]:
    """Of the slow derivation, by our names."""
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for stack, ours in (("forward", "text.multimodal"), ("backward", "text.backward_layers")):
        for number, layer in enumerate(stacks[stack]):
            theirs: dict[str, Any] = {name: parameter.grad for name, parameter in layer.named_parameters()}
            for kind in ("weight", "bias"):
                q, kv = theirs[f"multihead_attn.in_proj_{kind}"].split([16, 32])
                parts = {
                    "attn.qkv": theirs[f"self_attn.in_proj_{kind}"],
                    "attn.proj": theirs[f"self_attn.out_proj.{kind}"],
                    "cross.q": q,
                    "cross.kv": kv,
                    "cross.proj": theirs[f"multihead_attn.out_proj.{kind}"],
                    **{f"fc{i}": theirs[f"linear{i}.{kind}"] for i in (1, 2)},
                    **{f"norm{i}": theirs[f"norm{i}.{kind}"] for i in (1, 2, 3)},
                }
                found |= {f"{ours}.{number}.{name}.{kind}": gradient for name, gradient in parts.items()}
    return found
