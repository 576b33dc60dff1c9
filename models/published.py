"""Published weights in our models, by name:

    published("open_clip:ViT-B-32/laion2b_s34b_b79k")         open_clip.list_pretrained() knows the names
    published("open_clip:ViT-B-32/my_run/weights.safetensors")  a local file instead of the tag
    published("open_clip:coca_ViT-B-32/laion2b_s13b_b90k")    models whose convert.py supports open_clip's
    published("open_clip:hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K")  a hub id in open_clip's layout; also open_clip:FOLDER
    published("hf:google/siglip-base-patch16-224")            models whose convert.py supports transformers'; also hf:FOLDER

Parts of a model that the weights do not have keep their random values, and the capabilities that need them are left out
(`Model.leave_out`); a line says so.

Only safetensors files are read, because loading a pickled checkpoint can execute code. Code that comes with weights is never executed.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.pretrained import download_pretrained
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.utils.hub import cached_file

import models
from data.files import read_json
from models.contract import Model
from models.shared.convert import State
from models.shared.images import HALF
from models.shared.sources import fetched, foreign
from models.shared.tensors import read_tensors
from models.shared.text import HubTokenizer, OpenCLIPTokenizer

HUB = "hf-hub:"  # as open_clip names it


def published(spec: str, device: str = "cpu") -> Model:
    """Load the model in eval mode, with the tokenizer and pixel normalisation that it was trained with.

    Raises ValueError for unknown names, unsupported architectures and pickled checkpoints, and ConnectionError if the files are
    not cached and cannot be downloaded.
    """
    source, _, name = spec.partition(":")
    with foreign(spec):
        if source == "open_clip" and (name.startswith(HUB) or Path(name).is_dir()):
            return _from_open_clips_layout(name).to(device).eval()
        if source == "open_clip" and "/" in name:
            return _from_open_clip(*name.split("/", 1)).to(device).eval()
        if source == "hf" and name:
            return _from_transformers(name).to(device).eval()
    raise ValueError(
        f"weights {spec!r}: expected open_clip:MODEL/TAG, open_clip:FOLDER, or hf:NAME, such as open_clip:ViT-B-32/laion2b_s34b_b79k"
    )


def _from_open_clip(name: str, tag: str) -> Model:
    cfg = open_clip.get_model_config(name)
    if cfg is None:
        raise ValueError(f"open_clip has no model {name!r}; `python -c 'import open_clip; print(open_clip.list_pretrained())'` lists them")
    trained = open_clip.get_pretrained_cfg(name, tag)
    if not trained and not Path(tag).is_file():
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise ValueError(f"open_clip has no weights {tag!r} for {name}, and there is no file with this name; available: {known}")
    quick = {"quick_gelu": trained["quick_gelu"]} if "quick_gelu" in trained else {}
    convert, config = _known_to_open_clip(cfg | quick)  # before anything is downloaded
    state = convert.from_open_clip(_safetensors(fetched(f"{name}/{tag}", download_pretrained, trained) if trained else tag))
    return _build(convert, config, state, cfg["text_cfg"].get("hf_tokenizer_name"), mean=trained.get("mean"), std=trained.get("std"))


def _from_open_clips_layout(name: str) -> Model:
    """open_clip_config.json and open_clip_model.safetensors, of a folder or of the hub (hf-hub:ID)."""
    place = name.removeprefix(HUB)
    folder = Path(place).is_dir()

    def file(wanted: str) -> str:
        if folder and not (Path(place) / wanted).is_file():
            raise ValueError(
                f"{place} has no {wanted}: expected a folder in open_clip's layout, with safetensors. hf:{place} is transformers'"
            )
        return str(Path(place) / wanted) if folder else str(fetched(place, cached_file, place, wanted))

    content = read_json(Path(file("open_clip_config.json")), "Expected the configuration of an open_clip model")
    cfg, pixels = content["model_cfg"], content["preprocess_cfg"]
    convert, config = _known_to_open_clip(cfg)
    state = convert.from_open_clip(_safetensors(file("open_clip_model.safetensors")))
    return _build(convert, config, state, cfg["text_cfg"].get("hf_tokenizer_name", place), mean=pixels.get("mean"), std=pixels.get("std"))


def _known_to_open_clip(cfg: dict[str, Any]) -> tuple[Any, Any]:
    """The converter of a model that open_clip describes so, and our configuration of it."""
    convert = next(each for each in _converters("is_open_clip") if each.is_open_clip(cfg))
    return convert, convert.config_from_open_clip(cfg)


def _from_transformers(name: str) -> Model:
    theirs = fetched(name, AutoConfig.from_pretrained, name, trust_remote_code=False)
    known = {each.TRANSFORMERS_TYPE: each for each in _converters("TRANSFORMERS_TYPE")}
    if theirs.model_type not in known:
        raise ValueError(f"{name} is a {theirs.model_type!r}; supported: {', '.join(known)}")
    convert = known[theirs.model_type]
    config = convert.config_from_transformers(theirs)
    kind = convert.their_class(theirs) if hasattr(convert, "their_class") else AutoModel
    options: dict[str, Any] = {"use_safetensors": True, "attn_implementation": "eager"}  # the configuration could name a kernel of the hub
    model, found = fetched(
        name, kind.from_pretrained, name, config=theirs, trust_remote_code=False, output_loading_info=True, dtype=torch.float32, **options
    )
    lacking = set(found["missing_keys"])  # they are random there
    state = convert.from_transformers({key: tensor for key, tensor in model.state_dict().items() if key not in lacking})
    processor = fetched(name, AutoImageProcessor.from_pretrained, name, trust_remote_code=False)
    return _build(convert, config, state, name, **_normalisation(processor))


def _normalisation(processor: Any) -> dict[str, tuple[float, ...]]:
    """Mean and deviation of pixel values in 0..1; some processors scale pixels to another range first."""
    scale = 255 * getattr(processor, "rescale_factor", 1 / 255)
    return {name: tuple(value / scale for value in getattr(processor, f"image_{name}")) for name in ("mean", "std")}


def _converters(attribute: str) -> list[Any]:
    """The packages' modules convert.py and *_convert.py that have the attribute: `is_open_clip(cfg)`, which tells whether they can read an
    open_clip model, or `TRANSFORMERS_TYPE`, the transformers `model_type` that they read."""
    names = [
        f"models.{package}.{each.name}"
        for package in models.packages()
        for each in pkgutil.iter_modules(importlib.import_module(f"models.{package}").__path__)
        if each.name == "convert" or each.name.endswith("_convert")
    ]
    return [convert for convert in map(importlib.import_module, names) if hasattr(convert, attribute)]


def _build(convert: Any, config: Any, state: State, tokenizer: str | None, *, mean: Any, std: Any) -> Model:
    """Build the model from a converted state; `convert.tokenizer(name)` returns the tokenizer of the weights.

    `convert.LACKING`: patterns of our tensors' names that weights may lack, and the capabilities that need them. Raises ValueError if
    other tensors are missing.
    """
    if mean and hasattr(config, "mean"):
        config = replace(config, mean=tuple(mean), std=tuple(std))
    elif mean and not np.allclose([mean, std], [HALF, HALF], atol=0.01):  # Chameleon's processor rounds its 2 / 255
        raise ValueError(f"these weights expect pixels normalised with mean {mean} and std {std}; this model uses {HALF} for both")
    words = convert.tokenizer(tokenizer)
    if isinstance(words, OpenCLIPTokenizer) and words.vocab_size != config.vocab_size:
        words = HubTokenizer(str(tokenizer))  # a model with a vocabulary of its own
    model = models.model_of(config)(config, words)
    optional: dict[str, tuple[str, ...]] = getattr(convert, "LACKING", {})
    lacking = [name for name in model.state_dict() if name not in state]
    if needed := [name for name in lacking if not any(fnmatch(name, part) for part in optional)]:
        raise ValueError(f"the weights lack {len(needed)} tensors of {type(model).__name__}: {', '.join(needed[:5])}")
    model.load_state_dict(state, strict=False)
    parts = [part for part in optional if optional[part] and any(fnmatch(name, part) for name in lacking)]
    if without := list(dict.fromkeys(capability for part in parts for capability in optional[part])):
        model.leave_out(without)
        missing = ", ".join(part.removesuffix(".*") for part in parts)
        print(f"these weights have no {missing} of our {type(model).__name__}: without {', '.join(without)}", file=sys.stderr)
    return model


def _safetensors(path: str) -> State:
    if not path.endswith(".safetensors"):
        raise ValueError(
            f"{path} is a pickle, which can execute code when it is loaded; only .safetensors files are read. If you trust it: "
            "torch.load(path, weights_only=True), then safetensors.torch.save_file(state, NEW), and open_clip:MODEL/NEW"
        )
    return read_tensors(Path(path), "Expected the weights of an open_clip model")
