"""Published weights in our models, by name:

    published("open_clip:ViT-B-32/laion2b_s34b_b79k")         open_clip.list_pretrained() knows the names
    published("open_clip:ViT-B-32/my_run/weights.safetensors")  a file of yours in place of the tag
    published("open_clip:coca_ViT-B-32/laion2b_s13b_b90k")    CLIP, SigLIP and CoCa can be had from open_clip
    published("hf:google/siglip-base-patch16-224")            a CLIP or SigLIP of the Hugging Face hub, or a folder like one

Only safetensors are read: any other checkpoint is a pickle, and loading one runs the code inside it.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from models.clip import CLIP, CLIPConfig
from models.coca import CoCa, CoCaConfig
from models.shared.convert import State
from models.shared.images import HALF
from models.shared.sources import fetched
from models.shared.text import HubTokenizer, OpenCLIPTokenizer
from models.siglip import SigLIP, SigLIPConfig


def published(spec: str, device: str = "cpu") -> nn.Module:
    """The model in eval mode, with the tokenizer and pixel normalisation it was trained with.

    Raises ValueError for names and architectures that are unknown here and for checkpoints that are pickles, and
    ConnectionError when the files are neither at hand nor within reach.
    """
    source, _, name = spec.partition(":")
    if source == "open_clip" and "/" in name:
        return _from_open_clip(*name.split("/", 1)).to(device).eval()
    if source == "hf" and name:
        return _from_transformers(name).to(device).eval()
    raise ValueError(f"weights {spec!r}: expected open_clip:MODEL/TAG or hf:NAME, such as open_clip:ViT-B-32/laion2b_s34b_b79k")


def _from_open_clip(name: str, tag: str) -> nn.Module:
    cfg = open_clip.get_model_config(name)
    if cfg is None:
        raise ValueError(f"open_clip has no model {name!r}; `python -c 'import open_clip; print(open_clip.list_pretrained())'` lists them")
    trained = open_clip.get_pretrained_cfg(name, tag)
    if not trained and not Path(tag).is_file():
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise ValueError(f"open_clip has no weights {tag!r} of {name}, and there is no such file; it has {known}")
    siglip = "siglip" in cfg["vision_cfg"].get("timm_model_name", "")
    kind = "coca" if "multimodal_cfg" in cfg else "siglip" if siglip else "clip"
    convert: Any = importlib.import_module(f"models.{kind}.convert")
    config = convert.config_from_open_clip(cfg | ({"quick_gelu": trained["quick_gelu"]} if "quick_gelu" in trained else {}))
    state = convert.from_open_clip(_safetensors(fetched(f"{name}/{tag}", download_pretrained, trained) if trained else tag))
    mean, std = trained.get("mean"), trained.get("std")
    return _build(config, state, cfg["text_cfg"].get("hf_tokenizer_name"), mean=mean, std=std)


def _from_transformers(name: str) -> nn.Module:
    theirs = fetched(name, AutoConfig.from_pretrained, name)
    if theirs.model_type not in ("clip", "siglip"):
        raise ValueError(f"{name} is a {theirs.model_type!r}; only clip and siglip can be loaded")
    convert: Any = importlib.import_module(f"models.{theirs.model_type}.convert")
    config = convert.config_from_transformers(theirs)
    model = fetched(name, AutoModel.from_pretrained, name, use_safetensors=True)
    processor = fetched(name, AutoImageProcessor.from_pretrained, name)
    return _build(config, convert.from_transformers(model.state_dict()), name, mean=processor.image_mean, std=processor.image_std)


def _build(config: CLIPConfig | CoCaConfig | SigLIPConfig, state: State, tokenizer: str | None, *, mean: Any, std: Any) -> nn.Module:
    """SigLIP's tokenizer is on the hub; the others' is part of open_clip."""
    if mean and not isinstance(config, SigLIPConfig):
        config = replace(config, mean=tuple(mean), std=tuple(std))
    model: CLIP | CoCa | SigLIP
    if isinstance(config, CLIPConfig):
        model = CLIP(config, OpenCLIPTokenizer())
    elif isinstance(config, CoCaConfig):
        model = CoCa(config, OpenCLIPTokenizer())
    else:
        if mean and (tuple(mean), tuple(std)) != (HALF, HALF):
            raise ValueError(f"these weights expect pixels normalised by {mean} and {std}; SigLIP here has {HALF} for both")
        model = SigLIP(config, HubTokenizer(str(tokenizer)))
    model.load_state_dict(state)
    return model


def _safetensors(path: str) -> State:
    if not path.endswith(".safetensors"):
        raise ValueError(
            f"{path} is a pickle, which runs code when it is loaded: only .safetensors are read. If you trust it: "
            "torch.load(path, weights_only=True), then safetensors.torch.save_file(state, NEW), and open_clip:MODEL/NEW"
        )
    return load_file(path)
