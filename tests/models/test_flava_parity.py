"""Our FLAVA computes what transformers' computes: every loss term and every gradient, of pairs, pictures alone and texts alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import FlavaConfig, FlavaForPreTraining, FlavaModel

from models.contract import IGNORE_INDEX
from models.flava import FLAVA, FLAVAConfig
from models.flava.collate import IMAGE, PAIR, TEXT, Mixture
from models.flava.convert import UNUSED, from_transformers, to_transformers
from models.shared.images import OPENAI_MEAN, OPENAI_STD, normalise
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from models.vq import VQConfig
from models.vq.network import NetworkConfig
from tests.models.kit import assert_close, assert_round_trip, pictures, randomise, texts, tokenizer

CONTEXT, WORDS, CODES, SIDE = 12, 100, 64, 4
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TERMS = {
    "contrastive": "global_contrastive",
    "itm": "itm",
    "mim": "mim",
    "mlm": "mlm",
    "mmm_image": "mmm_image",
    "mmm_text": "mmm_text",
}


@pytest.fixture(scope="module")
def theirs() -> FlavaForPreTraining:
    config = FlavaConfig(
        text_config={"vocab_size": WORDS, "max_position_embeddings": CONTEXT, **SIZES, **NO_DROPOUT},
        image_config={"image_size": 32, "patch_size": 8, "vocab_size": CODES, "mask_token": True, **SIZES, **NO_DROPOUT},
        multimodal_config={**SIZES, **NO_DROPOUT, "num_hidden_layers": 3},
        projection_dim=24,
        hidden_size=32,
        init_codebook=False,
    )
    model = FlavaForPreTraining(config)
    randomise(model, 0)
    return model.eval()


@pytest.fixture(scope="module")
def ours(theirs: FlavaForPreTraining) -> FLAVA:
    tower = {"width": 32, "heads": 4, "mlp_ratio": 2.0, "norm_eps": 1e-12}
    config = FLAVAConfig(
        vision=VisionConfig(depth=2, image_size=32, patch_size=8, **tower),
        text=TransformerConfig(depth=2, **tower),
        fusion=TransformerConfig(depth=3, **tower),
        codebook=VQConfig(
            network=NetworkConfig(image_size=32, patch=8, width=32, multiplier=(1,), blocks=1), quantiser="fsq", levels=(8, 8)
        ),
        embed_dim=24,
        context=CONTEXT,
        vocab_size=WORDS,
        mixture=Mixture(),
    )
    words = tokenizer(pad=0, end=95)
    words.mask = 94
    model = FLAVA(config, words)
    frozen = {name: value for name, value in model.state_dict().items() if name.startswith("codebook.")}
    model.load_state_dict(from_transformers(theirs.state_dict()) | frozen)
    return model.eval()


def batch(kind: int, match: list[bool]) -> dict[str, Tensor]:
    size = len(match)
    ids = texts(size, CONTEXT, pad=0, end=95)
    generator = torch.Generator().manual_seed(3)
    chosen = (torch.rand(ids.shape, generator=generator) < 0.3) & (ids > 0) & (ids != 95)
    chosen[:, 1] = True
    return {
        "pixels": pictures(size, 32),
        "ids": ids,
        "masked_ids": ids.masked_fill(chosen, 94),
        "labels": torch.where(chosen, ids, IGNORE_INDEX),
        "patches": torch.rand(size, SIDE * SIDE, generator=generator) < 0.4,
        "kind": torch.full((size,), kind),
        "match": torch.tensor(match),
    }


@pytest.mark.parametrize(
    ("kind", "match", "terms"),
    [
        (PAIR, [True, True, False, True, False], {"contrastive", "itm", "mmm_image", "mmm_text"}),
        (PAIR, [True] * 4, {"contrastive", "itm", "mmm_image", "mmm_text"}),
        (IMAGE, [True] * 4, {"mim"}),
        (TEXT, [True] * 4, {"mlm"}),
    ],
)
def test_every_term_and_gradient_equals_transformers(
    ours: FLAVA, theirs: FlavaForPreTraining, kind: int, match: list[bool], terms: set[str]
) -> None:
    data = batch(kind, match)
    ours.zero_grad()
    theirs.zero_grad()
    losses = ours(data)
    losses.total.backward()
    out = theirs(**_as_theirs(ours, data, kind), return_loss=True)
    out.loss.backward()
    for name, term in losses.terms.items():
        reference = getattr(out.loss_info, TERMS[name]) if name in terms else torch.tensor(0.0)
        assert_close(term, reference, name)
    assert {name for name in TERMS if getattr(out.loss_info, TERMS[name]) is not None} == terms
    assert_close(losses.total, out.loss, "total")
    reference = from_transformers({name: _gradient(parameter) for name, parameter in theirs.state_dict(keep_vars=True).items()})
    for name, parameter in ours.named_parameters():
        if not name.startswith("codebook."):
            assert_close(_gradient(parameter), reference[name], f"gradient of {name}")


def test_parts_of_a_batch_do_not_meet(ours: FLAVA) -> None:
    """A mixed batch has the losses of its parts: pairs, pictures alone, texts alone."""
    data = batch(PAIR, [True, False, True, True, True, True, True])
    data["kind"] = torch.tensor([PAIR] * 3 + [IMAGE] * 2 + [TEXT] * 2)
    mixed = ours(data).terms
    for part, names in ((slice(0, 3), ("contrastive", "itm", "mmm_image", "mmm_text")), (slice(3, 5), ("mim",)), (slice(5, 7), ("mlm",))):
        alone = ours({name: rows[part] for name, rows in data.items()}).terms
        for name in names:
            assert_close(mixed[name], alone[name], name)


def test_weights_round_trip(theirs: FlavaForPreTraining) -> None:
    kept = {name: value for name, value in theirs.state_dict().items() if not name.startswith(UNUSED)}
    assert_round_trip(kept, from_transformers, to_transformers)


def test_embeddings_and_matching_equal_transformers(ours: FLAVA, theirs: FlavaForPreTraining) -> None:
    data = batch(PAIR, [True] * 4)
    pixels, real = _pixels(data), (data["ids"] != 0).long()
    with torch.no_grad():
        image = theirs.flava.get_image_features(pixels).pooler_output[:, 0]
        text = theirs.flava.get_text_features(data["ids"], attention_mask=real).pooler_output[:, 0]
        both = theirs.flava(input_ids=data["ids"], pixel_values=pixels, attention_mask=real).multimodal_embeddings
        logits = theirs.itm_head(both)
    images = list(data["pixels"].permute(0, 2, 3, 1).numpy())
    assert_close(ours.encode_image(images), torch.nn.functional.normalize(image, dim=-1), "image")
    with torch.no_grad():
        ids = data["ids"]
        mine = ours._text_feature(ours.text.norm(ours.text(ids, ours._real(ids))))
        fused = ours.fusion(ours._image_states(pixels), ours.text(ids, ours._real(ids)), ours._real(ids))
    assert_close(mine, torch.nn.functional.normalize(text, dim=-1), "text")
    assert_close(ours.match_head(fused[:, 0]), logits, "matching")


def test_paper_size() -> None:
    """241,356,289 without heads, of which transformers' three poolers, which no loss reaches, are 590,592 each."""
    with torch.device("meta"):
        reference = sum(parameter.numel() for parameter in FlavaModel(FlavaConfig()).parameters())
        words = tokenizer(pad=0, end=102)
        words.mask = 103
        model = FLAVA(FLAVAConfig.paper(), words)
    heads = ("mim_head", "mlm_head", "mmm_image_head", "mmm_text_head", "match_head", "codebook")
    counted = sum(parameter.numel() for name, parameter in model.named_parameters() if not name.startswith(heads))
    assert reference == 241_356_289
    # Ours has 77 text positions instead of 512.
    assert counted + 3 * 590_592 + (512 - 77) * 768 == reference


def _as_theirs(ours: FLAVA, data: dict[str, Tensor], kind: int) -> dict[str, Any]:
    image = {
        "pixel_values": _pixels(data),
        "bool_masked_pos": data["patches"],
        "mim_labels": ours.codes(data["pixels"]).clone(),  # changed in place there
    }
    text = {
        "input_ids": data["ids"],
        "input_ids_masked": data["masked_ids"],
        "attention_mask": (data["ids"] != 0).long(),
        "mlm_labels": data["labels"].clone(),
    }
    return {
        PAIR: image | text | {"itm_labels": data["match"].long(), "skip_unmasked_multimodal_encoder": True},
        IMAGE: image,
        TEXT: text,
    }[kind]


def _pixels(data: dict[str, Tensor]) -> Tensor:
    return normalise(data["pixels"], OPENAI_MEAN, OPENAI_STD)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
