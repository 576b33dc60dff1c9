"""Every `paper` preset trains: its own code path, at tiny widths, on stand-ins of its real tokenizer's kind, up to the wire."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MPNetConfig,
    MPNetModel,
    OPTConfig,
    Qwen2Config,
    RobertaConfig,
    RobertaModel,
)

import models
import models.magic.model
from data.shards import find
from data.texts import texts
from models.clip import CLIP, CLIPConfig
from models.shared.text import OpenCLIPTokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from recipes.train.loop import train
from recipes.train.pages import names, page
from recipes.train.recipe import AnyRecipe, Log
from tests.hub import connect
from tests.recipes.kit import alike_are_slow
from tests.recipes.test_train import events, steps
from tests.stand_ins import KINDS, kind_of

SAID = {name: "captions-paper" if name == "lm" else "paper" for name in names() if any("paper" in size for size in page(name).PRESETS)}
SIZES = {112: 80, 256: 64}  # of pictures that become codes: as many a side as patches of the small towers
BATCH = 10  # of FLAVA's pairs, a tenth mismatch
TIMM = "test_vit.r160_in1k"  # 160 px, 6 blocks of 64
TOWER = {"width": 64, "depth": 6, "heads": 2, "mlp_ratio": 3.0, "image_size": 160, "patch_size": 16}
SMALL = {"width": 32, "depth": 2, "heads": 2, "hidden": 48, "embed_dim": 16, "queries": 4, "multimodal_depth": 1, "decoder_depth": 1}
SMALL |= {"memory": 40, "blocks": 1, "latent": 32, "codes": 64, "width_coefficient": 0.1, "depth_coefficient": 0.1}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 320}


def hub() -> dict[str, Any]:
    """Published architectures at tiny sizes."""
    opt = OPTConfig(hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=48, vocab_size=320)
    return {
        "gpt2": GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=320, n_positions=99),
        "facebook/opt-2.7b": opt,
        "lmsys/vicuna-13b-v1.5": LlamaConfig(**LLAMA),
        "lmsys/vicuna-7b-v1.5": LlamaConfig(**LLAMA),
        "EleutherAI/gpt-j-6b": GPTJConfig(n_embd=32, n_layer=1, n_head=2, rotary_dim=4, vocab_size=320, n_positions=99),
        "meta-llama/Llama-2-7b-chat-hf": LlamaConfig(**LLAMA),
        "huggyllama/llama-7b": LlamaConfig(**LLAMA),
        "EleutherAI/pythia-1.4b": GPTNeoXConfig(**LLAMA),
        "Qwen/Qwen1.5-7B": Qwen2Config(**LLAMA, num_key_value_heads=2),
        "sentence-transformers/all-mpnet-base-v2": MPNetConfig(
            vocab_size=330, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
        ),
        "roberta-base": RobertaConfig(
            vocab_size=320,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=99,
            type_vocab_size=1,
            pad_token_id=1,
        ),
    }


def shrunk(config: Any) -> Any:
    """The same configuration at tiny widths: what is named stays named, what is on stays on."""
    changes: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            changes[field.name] = shrunk(value)
        elif field.name in SMALL and isinstance(value, int | float) and value:
            changes[field.name] = min(value, SMALL[field.name])
        elif field.name == "image_size" and value in SIZES:
            changes[field.name] = SIZES[value]
        elif field.name == "layers":  # of a ResNet's stages
            changes[field.name] = (1,) * len(value)
    named = [name for name in ("timm_name", "image_weights") if getattr(config, name, "")]
    if named:
        changes |= dict.fromkeys(named, TIMM) | {"vision": replace(config.vision, **TOWER)}
    if not getattr(config, "image_head", True):
        changes["embed_dim"] = changes["vision"].width  # the tower's output is compared as it is
    small = replace(config, **changes)
    if getattr(config, "perceptual", ""):
        small = replace(small, perceptual="")  # half a gigabyte of VGG
    if hasattr(config, "architecture") and config.architecture:
        small = replace(small, architecture=known(config))
    return small


def known(config: Any) -> str:
    """A described architecture at the tiny size of the hub's."""
    kind = json.loads(config.architecture)["model_type"]
    found = next(each for each in hub().values() if each.model_type == kind)
    return found.to_json_string()


def fitted(name: str, config: Any) -> Any:
    """With the sizes that belong to each other."""
    small = shrunk(config)
    if name == "flava":  # 10 x 10 patches, 10 x 10 codes
        small = replace(small, masked_patches=30)
    if name == "cm3leon":
        small = replace(small, text=64)
    return small


def once(name: str, recipe: AnyRecipe, data: str) -> AnyRecipe:
    some: dict[str, Any] = {"budget": BATCH, "batch": BATCH}
    stages = tuple(replace(stage, optim=replace(stage.optim, warmup=0), **some) for stage in recipe.stages)
    how: dict[str, Any] = {
        "data": data,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
        "log": Log(every=1, validate=0),
        "vocab_size": 300,
    }
    short: dict[str, Any] = {"stages": stages} if stages else {"optim": replace(recipe.optim, warmup=0), **some}
    return replace(recipe, model=fitted(name, recipe.model), **short, **how)


@pytest.fixture(scope="module")
def runs(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for runs, while every `paper` preset is small and the hub has stand-ins for all that it is asked for."""
    folder, said = tmp_path_factory.mktemp("paper"), list(texts(find(str(few), "train"), limit=200, questions=True))
    inner = {kind: make(said) for kind, make in KINDS.items()}

    def tokenizer_of(name: str, *, trust_remote_code: bool) -> Any:
        assert trust_remote_code is False
        return inner[kind_of(name)]

    def encoder_of(name: str, *, trust_remote_code: bool, use_safetensors: bool, **_: object) -> Any:
        assert (trust_remote_code, use_safetensors) == (False, True)
        torch.manual_seed(zlib.crc32(name.encode()))
        return RobertaModel(hub()[name]) if "roberta" in name else MPNetModel(hub()[name])

    def load(source: object, *args: Any, **options: Any) -> Any:
        if not str(source).startswith("open_clip:"):
            return real(source, *args, **options)  # type: ignore[arg-type]
        torch.manual_seed(0)
        tower, text = VisionConfig(**{**SMALL_TOWER, "pre_norm": True}), TransformerConfig(width=32, depth=1, heads=2)
        return CLIP(CLIPConfig(vision=tower, text=text, embed_dim=16), OpenCLIPTokenizer())

    real = models.load
    with pytest.MonkeyPatch.context() as patch:
        connect(patch, folder, hub(), inner["gpt2"])
        patch.setattr(AutoTokenizer, "from_pretrained", tokenizer_of)
        patch.setattr(AutoModel, "from_pretrained", encoder_of)
        patch.setattr(models, "load", load)
        for name in names():
            presets = {key: once(name, recipe, str(few)) for key, recipe in page(name).PRESETS.items() if "paper" in key}
            patch.setattr(page(name), "PRESETS", page(name).PRESETS | presets)
        yield folder


SMALL_TOWER: dict[str, Any] = {"width": 32, "depth": 1, "heads": 2, "image_size": 32, "patch_size": 16}


def trained(name: str, runs: Path) -> Path:
    size = SAID[name]
    folder = runs / f"{name}-{size}-s0"
    assert train(page(name).PRESETS[size], folder, size, page=name) == 0
    return folder


@pytest.mark.parametrize("name", alike_are_slow(SAID))
def test_paper_takes_a_step(name: str, runs: Path) -> None:
    folder = trained(name, runs)
    model: Any = models.load(folder)
    recipe = page(name).PRESETS[SAID[name]]
    if "/" in recipe.tokenizer or recipe.tokenizer in ("gpt2", "roberta-base", "bert-base-uncased"):
        assert model.tokenizer.name == recipe.tokenizer  # its kind, not the embedded data's
    if model.paradigm == "training-free":
        return
    logged = steps(folder)
    assert len(logged) == len(recipe.schedule)
    assert all(0 < step["loss"] < float("inf") and 0 < step["grad_norm"] < float("inf") for step in logged), logged


@pytest.mark.parametrize("name", alike_are_slow(name for name in SAID if name not in ("vq", "classifier")))
def test_paper_does_what_it_can(name: str, runs: Path) -> None:
    """Every capability answers: with the real kind of tokenizer, texts have a beginning and an end."""
    model: Any = models.load(trained(name, runs)).eval()
    images = [np.full((40, 30, 3), value, np.uint8) for value in (30, 200)]
    said = ["a red circle", "two blue squares left of a green star"]
    asked = 0
    for one in ("encode_image", "caption"):
        if hasattr(model, one):
            assert len(getattr(model, one)(images)) == 2
            asked += 1
    if hasattr(model, "encode_text"):
        features = model.encode_text(said)
        assert not torch.allclose(features[0], features[1]), "the two texts are read as one"
        asked += 1
    if hasattr(model, "score"):
        assert model.score(images, said).isfinite().all()
        asked += 1
    if hasattr(model, "write") and name == "lm":
        assert len(model.write(said, limit=4)) == 2
        asked += 1
    assert asked


def test_masked_models_use_the_mask_that_their_tokenizer_has(runs: Path) -> None:
    for name, word in (("flava", "[MASK]"), ("maskvlm", "<mask>")):
        model: Any = models.load(trained(name, runs))
        assert model.tokenizer.inner.convert_ids_to_tokens(model.collate.mask) == word
        assert len(model.text.tokens.weight) == model.tokenizer.vocab_size  # no row of its own


def test_what_the_papers_start_from_is_fetched(runs: Path) -> None:
    """DINO for FLAVA, ImageNet and RoBERTa for MaskVLM, an image tower on ImageNet-21k for LiT: named in the run's log."""
    expected = {"flava": {"visual": TIMM}, "maskvlm": {"visual": TIMM, "text": "roberta-base"}, "lit": {"visual": TIMM}}
    for name, sources in expected.items():
        message = events(trained(name, runs), "stage")[0]["message"]
        rows = {line.split()[0]: line for line in message.splitlines()[1:]}
        for module, source in sources.items():
            assert source in rows[module], message
