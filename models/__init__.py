"""The models. `models.load(folder)` rebuilds any trained model from its run folder.

A package in this folder is found by being here: its `__init__.py` exports its subclass of `models.contract.Model`, or several.
Importing this page does not import torch.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from data.files import replacing, write_json

if TYPE_CHECKING:
    from models.contract import Model

# ------------------------------------------------------------------------------------------------- which there are


def packages() -> list[str]:
    """The packages of this folder that hold models."""
    return sorted(each.name for each in pkgutil.iter_modules(__path__) if each.ispkg and each.name != "shared")


def all_models() -> dict[str, type[Model]]:
    """Name -> class, of every model that a package here exports."""
    for package in packages():
        importlib.import_module(f"models.{package}")
    return {name: each for name, each in _imported().items() if each.__module__.startswith("models.")}


def model_class(name: str) -> type[Model]:
    """The class of a model's name. Raises ValueError for a name that no package has."""
    if name in packages():  # most are named like their package: the others need not be imported
        importlib.import_module(f"models.{name}")
    if name not in _imported():
        all_models()
    if name not in (found := _imported()):
        raise ValueError(f"no model {name!r}; there are {', '.join(sorted(found))}")
    return found[name]


def model_of(config: Any) -> type[Model]:
    """The class that a configuration belongs to: the one that declares its type as `Config`. Raises ValueError where none does, or two."""
    kind = type(config)
    found = [each for each in _imported().values() if vars(each).get("Config") is kind]
    if not found:
        raise ValueError(f"no model has the configuration {kind.__name__}; a subclass of models.contract.Model says Config = ...")
    if len(found) > 1:
        names = " and ".join(each.__name__ for each in found)
        raise ValueError(f"{names} have the same Config = {kind.__name__}; give a variant one of its own: class Its({kind.__name__})")
    return found[0]


def _imported() -> dict[str, type[Model]]:
    from models.contract import Model

    found: dict[str, type[Model]] = {}
    left = Model.__subclasses__()
    while left:
        each = left.pop()
        found[each.name] = each
        left += each.__subclasses__()
    return found


# ------------------------------------------------------------------------------------------------- to and from disk


def load(folder: str | Path, device: str = "cpu", *, weights: bool = True) -> Model:
    """The model of a run folder (`model.json`, `model.safetensors`, and `tokenizer.json` where it reads text), in eval mode; or
    published weights by name, such as open_clip:ViT-B-32/laion2b_s34b_b79k (see `models.published`).

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
    kind = model_class(description["model"])
    model = kind(from_dict(kind.Config, description["config"]), load_tokenizer(folder) if kind.reads_text() else None)
    if weights:
        if not (folder / "model.safetensors").exists():
            raise FileNotFoundError(f"{folder} holds no model.safetensors: its training was interrupted; run its `make train-...` again")
        state = load_file(folder / "model.safetensors", device="cpu")
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{folder / 'model.safetensors'} does not fit {folder / 'model.json'}: {error}") from error
    return model.to(device).eval()


def save(model: Model, folder: str | Path) -> None:
    """Write what `load` reads. The weights appear whole or not at all."""
    from safetensors.torch import save_file

    folder = Path(folder)
    describe(model, folder)
    # Copies, because tied weights (a language model's embedding is also its last layer) share memory, which the format refuses.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    with replacing(folder / "model.safetensors") as partial:
        save_file(state, partial)


def describe(model: Model, folder: Path) -> None:
    """Write what `load` reads except the weights: `model.json` and the tokenizer."""
    from models.shared.text import save_tokenizer

    description = {"model": model.name, "paradigm": model.paradigm, "config": asdict(model.config)}
    write_json(folder / "model.json", description)
    if model.tokenizer is not None:
        save_tokenizer(model.tokenizer, folder)


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Inverse of `dataclasses.asdict`. Unknown fields, and missing ones without a default, raise TypeError: old files do not load by
    halves."""
    hints = get_type_hints(cls)
    nested = {field.name for field in fields(cls) if is_dataclass(hints[field.name])}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}  # json has no tuples
    return cls(**{name: from_dict(hints[name], value) if name in nested else value for name, value in values.items()})
