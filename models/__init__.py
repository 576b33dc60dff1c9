"""The paradigms. `models.load(folder)` rebuilds any trained model from its run folder."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:  # reports read this table without waiting for torch
    from torch import nn

PARADIGMS = {
    "clip": "contrastive",
    "siglip": "contrastive",
    "flava": "masking",
    "maskvlm": "masking",
    "coca": "generative",
    "cm3leon": "generative",
    "frozen": "pretrained backbones",
    "minigpt4": "pretrained backbones",
    "blip2": "pretrained backbones",
    "magic": "training-free",
    "asif": "training-free",
}

# name -> module, model class, configuration class: the models that exist
TABLE = {
    "clip": ("models.clip", "CLIP", "CLIPConfig"),
    "siglip": ("models.siglip", "SigLIP", "SigLIPConfig"),
    "vq": ("models.vq", "VQ", "VQConfig"),  # CM3leon's and FLAVA's image tokens
    "cm3leon": ("models.cm3leon", "CM3leon", "CM3leonConfig"),
    "coca": ("models.coca", "CoCa", "CoCaConfig"),
    "flava": ("models.flava", "FLAVA", "FLAVAConfig"),
    "maskvlm": ("models.maskvlm", "MaskVLM", "MaskVLMConfig"),
    "frozen": ("models.frozen", "Frozen", "FrozenConfig"),
    "blip2": ("models.blip2", "BLIP2", "BLIP2Config"),
    "minigpt4": ("models.minigpt4", "MiniGPT4", "MiniGPT4Config"),
    "asif": ("models.asif", "ASIF", "ASIFConfig"),
    "magic": ("models.magic", "MAGIC", "MAGICConfig"),
    "lm": ("models.lm", "LM", "LMConfig"),
    "classifier": ("models.classifier", "Classifier", "ClassifierConfig"),  # ASIF's image tower
}


def load(folder: str | Path, device: str = "cpu", *, weights: bool = True) -> nn.Module:
    """The model of a run folder (`model.json`, `model.safetensors`, `tokenizer.json`), in eval mode; or published weights by name,
    such as open_clip:ViT-B-32/laion2b_s34b_b79k (see `models.published`).

    Without `weights` it is freshly initialised: the untrained control. Raises FileNotFoundError when the folder holds no
    model, ValueError when the weights do not fit the configuration.
    """
    from safetensors.torch import load_file

    from models.shared.text import load_tokenizer

    if str(folder).startswith(("open_clip:", "hf:")):
        return importlib.import_module("models.published").published(str(folder), device)
    folder = Path(folder)
    if not (folder / "model.json").exists():
        raise FileNotFoundError(f"{folder} holds no model.json: train one first, for example `make train-clip`")
    description = json.loads((folder / "model.json").read_text())
    model_class, config_class = classes(description["model"])
    model: nn.Module = model_class(from_dict(config_class, description["config"]), load_tokenizer(folder))
    if weights:
        if not (folder / "model.safetensors").exists():
            raise FileNotFoundError(f"{folder} holds no model.safetensors: its training was interrupted; run its `make train-...` again")
        state = load_file(folder / "model.safetensors", device="cpu")
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{folder / 'model.safetensors'} does not fit {folder / 'model.json'}: {error}") from error
    return model.to(device).eval()


def save(model: nn.Module, folder: str | Path) -> None:
    """Write what `load` reads. The weights appear whole or not at all."""
    from safetensors.torch import save_file

    folder = Path(folder)
    describe(model, folder)
    # Copies, because tied weights (a language model's embedding is also its last layer) share memory, which the format refuses.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors.part")
    os.replace(folder / "model.safetensors.part", folder / "model.safetensors")


def describe(model: nn.Module, folder: Path) -> None:
    """Write what `load` reads except the weights: `model.json` and the tokenizer."""
    from models.shared.text import save_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    name = next(name for name, (_, class_name, _) in TABLE.items() if class_name == type(model).__name__)
    description = {"model": name, "paradigm": PARADIGMS.get(name, "prerequisite"), "config": asdict(model.config)}  # type: ignore[call-overload]
    (folder / "model.json").write_text(json.dumps(description, indent=1))
    save_tokenizer(model.tokenizer, folder)  # type: ignore[arg-type]


def classes(name: str) -> tuple[type, type]:
    """(model class, configuration class) of a model's name."""
    if name not in TABLE:
        raise ValueError(f"no model {name!r}; there are {', '.join(TABLE)}")
    module_name, model_class, config_class = TABLE[name]
    module = importlib.import_module(module_name)
    return getattr(module, model_class), getattr(module, config_class)


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Inverse of `dataclasses.asdict`. Unknown or missing fields raise TypeError, so that old files do not load by halves."""
    hints = get_type_hints(cls)
    nested = {field.name for field in fields(cls) if is_dataclass(hints[field.name])}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}  # json has no tuples
    return cls(**{name: from_dict(hints[name], value) if name in nested else value for name, value in values.items()})
