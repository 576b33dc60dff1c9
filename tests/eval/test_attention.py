"""Where models look: the maps equal attention that is written out here from the layers' own outputs, for every way of reading a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

import models
from eval.adapters.attention import NOWHERE, SIGHTLESS, attention_weights, look
from models.shared.backbones import LanguageConfig
from models.shared.text import BPETokenizer
from models.shared.towers import NamedTower
from tests.models import cm3leon_kit
from tests.models.kit import randomise

WORDS = BPETokenizer.train(["a small red star above a large blue circle", "what colour is the star?", "yes no red blue"], 320)
LANGUAGE = LanguageConfig(width=48, depth=2, heads=2, hidden=48)
SMALL = {"width": 32, "depth": 2, "heads": 2}


def build(name: str, vision: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A model of its `tiny` size, with random weights that differ everywhere. `vision` changes the image tower."""
    kind: Any = models.model_class(name)
    config = kind.Config.tiny()
    usual: dict[str, Any] = {"vocab_size": WORDS.vocab_size, "language": LANGUAGE, "context": 24}
    if hasattr(getattr(config, "clip", None), "vocab_size"):
        usual["clip"] = replace(config.clip, vocab_size=WORDS.vocab_size)
    if getattr(getattr(config, "language", None), "architecture", ""):  # one of another library
        del usual["language"]
    usual = {name: value for name, value in usual.items() if name in {field.name for field in fields(config)}}
    if vision:
        usual["vision"] = replace(config.vision, **vision)
    torch.manual_seed(0)
    model = kind(replace(config, **usual | changes), WORDS)
    randomise(model, 1)
    return model.eval()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)


def outputs(model: nn.Module, picture: np.ndarray, layers: Sequence[nn.Module], ask: str = "encode_image") -> list[list[np.ndarray]]:
    """What each layer returns in each of its calls, `[T, D]`."""
    found: list[list[np.ndarray]] = [[] for _ in layers]

    def keep(calls: list[np.ndarray]) -> Callable[..., None]:
        return lambda layer, args, output: calls.append(output.detach().reshape(-1, output.shape[-1]).numpy())

    hooks = [layer.register_forward_hook(keep(calls)) for layer, calls in zip(layers, found, strict=True)]
    with torch.no_grad():
        getattr(model, ask)([picture])
    for hook in hooks:
        hook.remove()
    return found


def written_out(queries: np.ndarray, keys: np.ndarray, heads: int) -> np.ndarray:
    """The mean over heads of softmax(q . k / sqrt(d)), `[T, S]`, from `[T, D]` and `[S, D]`."""
    size, mean = queries.shape[1] // heads, np.zeros((len(queries), len(keys)))
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for t, query in enumerate(queries[:, part]):
            powers = [math.exp(float(query @ key) / math.sqrt(size)) for key in keys[:, part]]
            mean[t] += np.array(powers) / sum(powers) / heads
    return mean


def on_grid(weights: np.ndarray) -> np.ndarray:
    side = math.isqrt(len(weights))
    return weights.reshape(side, side) / weights.sum()


def same(found: Any, expected: np.ndarray, kind: str) -> None:
    assert found.kind == kind
    assert found.shares is not None
    assert found.shares.dtype == np.float32
    np.testing.assert_allclose(found.shares, expected, atol=1e-5)
    assert expected.std() > 1e-4  # not an even map, which any error would give, too


# ---------------------------------------------------------------------------------------------- inside the image tower


def inside(model: Any, picture: np.ndarray, ask: str = "encode_image") -> np.ndarray:
    """`[S, S]` of the tower's last layer."""
    attention = model.visual.blocks[-1].attn
    ((both,),) = outputs(model, picture, [attention.qkv], ask)
    queries, keys, _ = np.split(both, 3, axis=1)
    return written_out(queries, keys, attention.num_heads)


def test_the_class_tokens_row(picture: np.ndarray) -> None:
    model = build("clip", {"pool": "token", "stem": "patch", **SMALL})
    same(look(model, picture), on_grid(inside(model, picture)[0, 1:]), "class token in the image tower")


@pytest.mark.parametrize(("name", "ask"), [("clip", "encode_image"), ("frozen", "caption"), ("llava", "caption")])
def test_the_mean_over_patches_where_patches_are_averaged_or_all_read(name: str, ask: str, picture: np.ndarray) -> None:
    """Attention of a language model to tokens of the picture is not taken for the tower's."""
    model = build(name)
    same(look(model, picture), on_grid(inside(model, picture, ask).mean(axis=0)), "patches in the image tower, mean")


def test_several_class_tokens(picture: np.ndarray) -> None:
    model = build("llip")
    count = model.config.tokens
    expected = on_grid(inside(model, picture)[:count, count:].mean(axis=0))
    same(look(model, picture), expected, f"{count} class tokens in the image tower, mean")


def test_towers_of_transformers_which_write_attention_out(picture: np.ndarray) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 64}
    inner = ViTModel(ViTConfig(patch_size=16, **sizes), add_pooling_layer=False)
    inner.set_attn_implementation("eager")
    model = build("clip", {**SMALL, "stem": "patch"})
    model.visual = NamedTower(inner, 64).eval()
    randomise(model, 3)
    names = {name.rpartition(".")[2]: layer for name, layer in inner.named_modules() if ".1." in name and isinstance(layer, nn.Linear)}
    query, key = (next(layer for name, layer in names.items() if name in choices) for choices in (("query", "q_proj"), ("key", "k_proj")))
    (queries,), (keys,) = outputs(model, picture, [query, key])
    same(look(model, picture), on_grid(written_out(queries, keys, 2)[0, 1:]), "class token in the image tower")


# ------------------------------------------------------------------------------------------------------ from elsewhere


def across(
    model: Any, picture: np.ndarray, attention: Any, ask: str = "encode_image", *, heads: int = 0
) -> tuple[list[np.ndarray], np.ndarray]:
    """The queries of each call of a layer, and its keys."""
    queries, both = outputs(model, picture, [attention.q, attention.kv], ask)
    return queries, np.split(both[-1], 2, axis=1)[0]


def test_the_attention_pooler_of_siglip(picture: np.ndarray) -> None:
    model = build("siglip", {"pool": "map", "stem": "patch", **SMALL})
    pooler = model.visual.attn_pool
    assert not pooler.fused_attn
    (queries,), keys = across(model, picture, pooler)
    same(look(model, picture), on_grid(written_out(queries[:1], keys, pooler.num_heads)[0]), "attention pooler")
    assert not pooler.fused_attn  # as it was


def test_the_poolers_of_coca(picture: np.ndarray) -> None:
    """The contrastive one where it reads the patches. In a cascade it reads the generative one's outputs, which are as many as patches."""
    for pooling, layer, kind in (
        ("parallel", "contrastive", "attention pooler"),
        ("cascade", "generative", "cross-attention of 16 queries, mean"),
    ):
        model = build("coca", pooling=pooling)
        attention = getattr(model.pooling, layer).attn
        (queries,), keys = across(model, picture, attention)
        same(look(model, picture), on_grid(written_out(queries, keys, attention.heads).mean(axis=0)), kind)


@pytest.mark.parametrize(("name", "ask"), [("blip2", "encode_image"), ("minigpt4", "caption")])
def test_the_queries_of_a_qformer(name: str, ask: str, picture: np.ndarray) -> None:
    model = build(name)
    attention = [layer.cross for layer in model.qformer.layers if layer.cross is not None][-1]
    (queries,), keys = across(model, picture, attention, ask)
    expected = on_grid(written_out(queries, keys, attention.heads).mean(axis=0))
    same(look(model, picture), expected, f"cross-attention of {model.config.queries} queries, mean")


@pytest.mark.parametrize("tower", [{}, {"pool": "token", "stem": "patch"}])
def test_the_latents_of_a_resampler_which_also_attend_to_themselves(tower: dict[str, Any], picture: np.ndarray) -> None:
    model = build("flamingo", tower)
    attention, first = model.resampler.blocks[-1][0], len(tower) // 2  # a class token or none
    (queries,), keys = across(model, picture, attention, "caption")
    weights = written_out(queries, keys, attention.heads).mean(axis=0)
    assert len(weights) == first + 16 + 8
    same(look(model, picture), on_grid(weights[first : first + 16]), "cross-attention of 8 queries, mean")


@pytest.mark.parametrize("name", ["virtex", "simvlm", "visualgpt", "vcgpt"])
def test_the_words_of_a_caption(name: str, picture: np.ndarray) -> None:
    """Each word's attention as it is about to be written, in the last layer that looks at the picture."""
    model = build(name)
    layers = {"virtex": "text.multimodal.0.cross", "simvlm": "transformer.decoder.2.cross"}
    attention = model.get_submodule(layers.get(name, f"blocks.{len(getattr(model, 'blocks', [])) - 1}.attention"))
    queries, keys = across(model, picture, attention, "caption")
    assert len(queries) > 1
    expected = np.mean([written_out(each[-1:], keys, attention.heads)[0] for each in queries], axis=0)
    same(look(model, picture), on_grid(expected), "cross-attention of the words of its caption, mean")


# -------------------------------------------------------------------------------------------------------- every model


@pytest.mark.parametrize("name", sorted(models.all_models()))
def test_every_model_shows_where_it_looks_or_says_why_not(name: str, picture: np.ndarray) -> None:
    model = cm3leon_kit.build() if name == "cm3leon" else build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = len(torch.nn.modules.module._global_forward_hooks), len(torch.nn.modules.module._global_forward_pre_hooks)
    found = look(model, picture)
    if found.shares is None:
        assert found.kind in (NOWHERE, SIGHTLESS)
    else:
        assert found.shares.shape == (len(found.shares),) * 2 >= (4, 4)
        assert found.shares.sum() == pytest.approx(1, abs=1e-5)
        assert (found.shares > 0).all()
    blind = {"cm3leon": NOWHERE, "lm": SIGHTLESS, "vq": SIGHTLESS}
    if name in blind:
        assert found == (blind[name], None, (0, 0, 1, 1))
    elif name in ("asif", "classifier", "clip", "coca", "flava", "magic", "maskvlm", "siglip"):
        assert found.shares is not None
    assert hooks == (len(torch.nn.modules.module._global_forward_hooks), len(torch.nn.modules.module._global_forward_pre_hooks))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_looking_changes_no_output(picture: np.ndarray) -> None:
    model = build("siglip", {"pool": "map", "stem": "patch", **SMALL})
    before = model.encode_image([picture])
    look(model, picture)
    assert torch.equal(before, model.encode_image([picture]))


class Bright(nn.Module):
    """Its class token attends to bright patches."""

    def __init__(self) -> None:
        super().__init__()
        self.visual: Any = VisionTransformer(img_size=64, patch_size=16, embed_dim=4, depth=1, num_heads=1, num_classes=0)
        with torch.no_grad():
            for parameter in self.visual.parameters():
                parameter.zero_()
            self.visual.patch_embed.proj.weight += 1 / 256  # the mean over a patch
            self.visual.blocks[0].norm1 = nn.Identity()
            self.visual.blocks[0].attn.qkv.weight[4:8] = 9 * torch.eye(4)
            self.visual.blocks[0].attn.qkv.bias[:4] = 1.0

    def encode_image(self, images: Sequence[np.ndarray]) -> Tensor:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return self.visual(pixels.float() / 255)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (3, 0)])
def test_rows_and_columns_are_those_of_the_picture(row: int, column: int) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 255
    found = look(Bright(), image)
    assert found.shares is not None
    assert np.unravel_index(found.shares.argmax(), (4, 4)) == (row, column)
    assert found.shares.max() > 0.99


@pytest.mark.parametrize(
    ("shape", "area"),
    [((64, 64), (0, 0, 1, 1)), ((50, 100), (0.25, 0, 0.75, 1)), ((80, 40), (0, 0.25, 1, 0.75)), ((1, 1), (0, 0, 1, 1))],
)
def test_the_patches_cover_the_central_square(shape: tuple[int, int], area: tuple[float, ...]) -> None:
    assert look(build("clip"), np.zeros((*shape, 3), np.uint8)).area == area


def test_a_model_that_squeezes_pictures_sees_all_of_them() -> None:
    assert look(build("minigptv2"), np.zeros((50, 100, 3), np.uint8)).area == (0, 0, 1, 1)


def test_weights_that_diverged_have_no_map(picture: np.ndarray) -> None:
    model = build("clip")
    with torch.no_grad():
        model.visual.blocks[-1].attn.qkv.weight.fill_(math.nan)
    assert look(model, picture) == ("attention that is not a number", None, (0, 0, 1, 1))


@pytest.mark.parametrize(
    "options", [{}, {"scale": 0.3}, {"is_causal": True}, {"attn_mask": "bool"}, {"attn_mask": "float"}, {"enable_gqa": True}]
)
def test_weights_are_those_of_torchs_function(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(2, 2 if options.get("enable_gqa") else 4, 6, 8, generator=generator) for _ in range(2))
    q = torch.randn(2, 4, 6, 8, generator=generator)
    masks = {"bool": torch.rand(2, 1, 6, 6, generator=generator) > 0.3, "float": torch.randn(2, 1, 6, 6, generator=generator)}
    masks["bool"][..., 0] = True
    options = options | ({"attn_mask": masks[options["attn_mask"]]} if "attn_mask" in options else {})
    weights = attention_weights(q, k, v, **options)
    values = v.repeat_interleave(2, dim=1) if options.get("enable_gqa") else v
    torch.testing.assert_close(weights @ values, F.scaled_dot_product_attention(q, k, v, **options))
