"""Image towers by name, folder and file in every model that has one: folders that timm and transformers write, with random weights."""

from __future__ import annotations

import json
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

import models
import models.shared.generate as generate
import models.shared.towers as towers
from data.scenes.build import make_sample
from data.scenes.world import PRESETS as WORLDS
from models.clip import CLIP, CLIPConfig
from models.shared.backbones import without_last
from models.shared.text import BPETokenizer
from models.shared.towers import build_tower, fetch_named_tower, known_tower
from models.shared.vision import VisionConfig
from tests.models.kit import assert_close, randomise
from tests.recipes.kit import narrow

WORDS = BPETokenizer.train(["a red circle", "how many blue squares are there?"], 300)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
PICTURES = [np.random.default_rng(seed).integers(256, size=(40, 50, 3), dtype=np.uint8) for seed in range(4)]


def config(tower: str) -> CLIPConfig:
    tiny = CLIPConfig.tiny()
    return replace(tiny, vision=replace(tiny.vision, tower=tower), vocab_size=WORDS.vocab_size)


def loaded(tower: str) -> tuple[Any, CLIPConfig]:
    known = known_tower(config(tower))
    visual = build_tower(known.vision.tower).eval()
    assert fetch_named_tower(visual, known.vision) == {"visual": tower}
    return visual.eval(), known


def written(theirs: Any, folder: Path) -> Any:
    randomise(theirs, 0)
    theirs.eval().save_pretrained(folder)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=mean, image_std=std).save_pretrained(folder)
    return theirs


def timms(folder: Path, name: str, **arguments: Any) -> Any:
    """As `timm.models.push_to_hf_hub` writes it."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0, **arguments).eval()
    randomise(theirs, 0)
    timm.models.save_for_hf(theirs, str(folder), model_args=arguments or None, safe_serialization=True)
    return theirs


def small(folder: Path) -> None:
    """A convolutional tower reads pictures of any size."""
    content = json.loads((folder / "config.json").read_text())
    content["pretrained_cfg"]["input_size"] = [3, 64, 64]
    (folder / "config.json").write_text(json.dumps(content))


KINDS: dict[str, Any] = {
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES)),
    "vit classifier": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)),
    "clip vision": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES)),
    "clip": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=SIZES, text_config={"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2})
    ),
    "siglip vision": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES)),
    "blip": lambda: transformers.BlipModel(
        transformers.BlipConfig(
            vision_config=SIZES,
            text_config={"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "encoder_hidden_size": 32},
        )
    ),
    "convnext": lambda: transformers.ConvNextModel(
        transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=64)
    ),
    "resnet": lambda: transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_towers(kind: str, tmp_path: Path) -> None:
    theirs = written(KINDS[kind](), tmp_path)
    visual, known = loaded(str(tmp_path))
    size = known.vision.image_size
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    body = next(getattr(theirs, name) for name in ("vit", "vision_model", "base_model") if hasattr(theirs, name))
    with torch.no_grad():
        states, pooled = visual.forward_features(pixels), visual(pixels)
        expected = body(pixel_values=pixels).last_hidden_state
    expected = expected.flatten(2).transpose(1, 2) if expected.ndim == 4 else expected
    assert_close(states, expected, "states")
    assert pooled.shape == (2, known.vision.width)
    assert known.vision.width == states.shape[-1]
    assert known.mean == pytest.approx((0.1, 0.2, 0.3))
    assert known.std == pytest.approx((0.4, 0.5, 0.6))
    if "vit" in kind or kind == "dinov2":  # the class token, and not a pooler that is not in the weights
        assert_close(pooled, states[:, 0], "pooled")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("test_vit", {"img_size": 64}), ("test_resnet", {}), ("test_convnext", {}), ("test_efficientnet", {}), ("test_vit2", {})],
)
def test_timm_towers_of_folders(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    theirs = timms(tmp_path, name, **arguments)
    visual, known = loaded(str(tmp_path))
    assert known.vision.image_size == arguments.get("img_size", 160)
    pixels = torch.rand(2, 3, known.vision.image_size, known.vision.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(visual(pixels), theirs(pixels), "pooled")
        assert visual.forward_features(pixels).shape == (2, visual.num_prefix_tokens + visual.patch_embed.num_patches, known.vision.width)


def test_timms_architecture_with_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", num_classes=0).eval()
    save_file(theirs.state_dict(), tmp_path / "mine.safetensors")
    visual, known = loaded(f"test_vit/{tmp_path / 'mine.safetensors'}")
    pixels = torch.rand(1, 3, known.vision.image_size, known.vision.image_size)
    with torch.no_grad():
        assert_close(visual(pixels), theirs(pixels), "pooled")


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_the_hub_up_to_the_wire(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "timm":
        timms(tmp_path, "test_resnet")
    else:
        written(KINDS["vit"](), tmp_path)
    asked = []

    def cached(repository: str, file: str) -> str:
        asked.append(f"{repository} {file}")
        return str(tmp_path / file)

    monkeypatch.setattr(towers, "cached_file", cached)
    method = "from_pretrained"
    for kind in (towers.AutoConfig, towers.AutoImageProcessor, transformers.ViTModel):
        original = getattr(kind, method)
        monkeypatch.setattr(kind, method, lambda name, *args, original=original, **options: original(tmp_path, *args, **options))
    _, known = loaded("hf:someone/tower")
    assert asked[0] == "someone/tower config.json"
    assert json.loads(known.vision.tower)["source"] == "hf:someone/tower"


def test_offline_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(towers, "cached_file", unreachable)
    with pytest.raises(ConnectionError, match="on a machine without one, copy the folder here and name its path"):
        known_tower(config("hf:facebook/dinov2-small"))


def test_what_is_no_tower_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("nonsense", "timm has no model 'nonsense'"),
        (str(tmp_path / "empty"), "no config.json"),
        ("test_vit/there_is_none.safetensors", "a file that is there"),
        ("test_vit/weights.bin", "expected ARCHITECTURE/FILE.safetensors"),
    ):
        with pytest.raises(ValueError, match=message):
            known_tower(config(name))
    timms(tmp_path, "test_vit")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors; pickles"):
        loaded(str(tmp_path))


def _with_a_vision() -> list[str]:
    """Of all models, those whose `tiny` has a vision transformer."""
    found = []
    for name, kind in models.all_models().items():
        if "Config" in vars(kind) and isinstance(getattr(kind.Config.tiny(), "vision", None), VisionConfig):  # others are base classes
            found.append(name)
    return sorted(found)


@pytest.mark.parametrize(
    ("name", "tower"),
    [*((name, "dinov2") for name in _with_a_vision()), *((name, "test_resnet") for name in ("blip2", "clip", "llava", "qwenvl"))],
)
def test_every_model_that_has_a_tower(name: str, tower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees with a named tower, and its run folder loads without the name."""
    one_at_a_time = generate._one_at_a_time
    monkeypatch.setattr(generate, "_one_at_a_time", lambda reader, logits, end, _, *how: one_at_a_time(reader, logits, end, 6, *how))
    kind = models.model_class(name)
    tiny = narrow(kind.Config.tiny())
    if hasattr(tiny, "language") and is_dataclass(tiny.language):
        tiny = replace(tiny, language=replace(tiny.language, vocab_size=WORDS.vocab_size))
    if tower == "test_resnet":
        timms(tmp_path / "hub", tower)
        small(tmp_path / "hub")
    else:
        written(transformers.Dinov2Model(transformers.Dinov2Config(**SIZES | {"image_size": 64, "patch_size": 16})), tmp_path / "hub")
    given = replace(tiny, vision=replace(tiny.vision, tower=str(tmp_path / "hub")))
    known = kind.configured(given, tokenizer=WORDS if kind.reads_text() else None, split=_Split())
    words = WORDS if kind.reads_text() else None
    if name in ("llip", "flava", "maskvlm") or (tower == "test_resnet" and name == "llava"):
        with pytest.raises(
            ValueError, match=r"Llip has class tokens|hides patches, so its image tower must be|and this tower has 0 of them"
        ):
            kind(known, words)
        return
    model: Any = kind(known, words)
    if model.visual.num_features != known.vision.width:
        pytest.fail("the width is another one")
    assert model.fetch()["visual"] == str(tmp_path / "hub")
    models.save(model, tmp_path / "run")
    (tmp_path / "hub").rename(tmp_path / "gone")
    again: Any = models.load(tmp_path / "run")
    loaded = again.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in model.state_dict().items())
    for looks in ("encode_image", "caption"):
        if getattr(model, looks, None) and name not in ("asif", "magic"):
            mine, other = getattr(model.eval(), looks)(PICTURES[:2]), getattr(again, looks)(PICTURES[:2])
            assert torch.equal(mine, other) if isinstance(mine, Tensor) else mine == other
            break


@pytest.mark.parametrize(("name", "tower"), [("slip", "test_vit"), ("slip", "siglip"), ("declip", "siglip"), ("clip_rocket", "siglip")])
def test_small_views_are_seen_by_a_tower_of_one_size(name: str, tower: str, tmp_path: Path) -> None:
    """timm's test_vit takes other sizes itself."""
    if tower == "test_vit":
        timms(tmp_path, tower, img_size=64)
    else:
        written(KINDS["siglip vision"](), tmp_path)
    kind = models.model_class(name)
    tiny = narrow(kind.Config.tiny())
    given = replace(tiny, vision=replace(tiny.vision, tower=str(tmp_path)))
    model = kind(kind.configured(given, tokenizer=WORDS, split=_Split()), WORDS)  # type: ignore[arg-type]
    samples = [make_sample(WORLDS["tiny"], "train", index) for index in range(2)]
    assert model(model.collate(samples, np.random.default_rng(0))).total.isfinite()


def test_lits_embedding_is_as_wide_as_its_tower(tmp_path: Path) -> None:
    written(KINDS["vit"](), tmp_path)
    tiny = CLIPConfig.tiny()
    tower = replace(tiny.vision, tower=str(tmp_path))
    lit = known_tower(replace(tiny, vision=tower, image_head=False, embed_dim=tiny.vision.width))
    assert CLIP(replace(lit, vocab_size=WORDS.vocab_size), WORDS).encode_image(PICTURES[:1]).shape == (1, 32)


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip vision", "test_eva"])
def test_the_states_before_the_last_blocks(kind: str, tmp_path: Path) -> None:
    """Without the norm, as transformers' `hidden_states` are."""
    pixels = PIXELS
    if kind == "test_eva":
        theirs: Any = timms(tmp_path, "eva02_tiny_patch14_224", img_size=28, embed_dim=24, depth=3, num_heads=2)
        pixels = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
        expected: list[Tensor] = []
        theirs.blocks[1].register_forward_hook(lambda _, inputs, out: expected.append(out))
        with torch.no_grad():
            theirs(pixels)
    else:
        theirs = written(KINDS[kind](), tmp_path)
        body = next(getattr(theirs, name) for name in ("vision_model", "base_model") if hasattr(theirs, name))
        with torch.no_grad():
            expected = [body(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]]
    visual, known = loaded(str(tmp_path))
    shorter = without_last(visual, 1)
    with torch.no_grad():
        assert_close(shorter.forward_features(pixels), expected[0], "states")
    again = without_last(build_tower(known.vision.tower), 1)
    assert again.state_dict().keys() == shorter.state_dict().keys()
    with pytest.raises(ValueError, match="and this tower has"):
        without_last(shorter, 9)


def test_towers_of_stages_have_no_states_before_the_last_block(tmp_path: Path) -> None:
    written(KINDS["convnext"](), tmp_path / "convnext")
    for name in ("test_resnet", "test_efficientnet"):
        timms(tmp_path / name, name)
    for name, words in (
        ("test_resnet", "this tower has 0"),
        ("test_efficientnet", "of different widths: name a"),
        ("convnext", "this tower has 0|of different widths"),  # by where transformers keeps its blocks
    ):
        with pytest.raises(ValueError, match=words):
            without_last(loaded(str(tmp_path / name))[0], 1)


def test_a_run_folder_follows_no_name(tmp_path: Path) -> None:
    timms(tmp_path / "hub", "test_vit", img_size=64)
    known = known_tower(config(str(tmp_path / "hub")))
    models.save(CLIP(known, WORDS), tmp_path / "run")
    path = tmp_path / "run" / "model.json"
    content = json.loads(path.read_text())
    content["config"]["vision"]["tower"] = str(tmp_path / "hub")
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"names the image tower .* without its architecture"):
        models.load(tmp_path / "run")


class _Split:
    classes: tuple[str, ...] = ()
