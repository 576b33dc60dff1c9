"""The models. `models.load(folder)` rebuilds any trained model from its run folder.

Every package in this folder is registered automatically; its `__init__.py` exports one or more subclasses of `models.contract.Model`.
Importing this module does not import torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from data.fields import check_types
from data.files import FileError, read_json, write_json

if TYPE_CHECKING:
    from models.contract import Model

# ------------------------------------------------------------------------------------------------- which there are


def packages() -> list[str]:
    """Names of the packages in this folder that contain models."""
    return sorted(each.name for each in pkgutil.iter_modules(__path__) if each.ispkg and each.name != "shared")


def all_models() -> dict[str, type[Model]]:
    """Name -> class, for all models exported by the packages."""
    for package in packages():
        importlib.import_module(f"models.{package}")
    return {name: each for name, each in _imported().items() if each.__module__.startswith("models.")}


def model_class(name: str) -> type[Model]:
    """The model class with this name. Raises ValueError for an unknown name."""
    if name in packages():  # most models are named like their package, so the others need not be imported
        importlib.import_module(f"models.{name}")
    if name not in _imported():
        all_models()
    if name not in (found := _imported()):
        raise ValueError(f"no model {name!r}; available: {', '.join(sorted(found))}")
    return found[name]


def model_of(config: Any) -> type[Model]:
    """The model class that declares the type of `config` as its `Config`. Raises ValueError unless there is exactly one."""
    kind = type(config)
    found = [each for each in _imported().values() if vars(each).get("Config") is kind]
    if not found:
        raise ValueError(
            f"no model has the configuration {kind.__name__}; a subclass of models.contract.Model must set Config = {kind.__name__}"
        )
    if len(found) > 1:
        names = " and ".join(each.__name__ for each in found)
        raise ValueError(f"{names} have the same Config = {kind.__name__}; a variant needs its own: class VariantConfig({kind.__name__})")
    return found[0]


def _imported() -> dict[str, type[Model]]:
    from models.contract import Model

    found: dict[str, type[Model]] = {}
    left = Model.__subclasses__()
    while left:
        each = left.pop()
        if "Config" in vars(each) and not each.without:  # others are base classes, or lack parts (see `leave_out`)
            found[each.name] = each
        left += each.__subclasses__()
    return found


# ------------------------------------------------------------------------------------------------- to and from disk

TRAIN_AGAIN = "Remove the run folder, and train it again"
# A model takes at most MORE times the bytes of its weights' file, which may hold half precision and tied weights once, and SMALL bytes.
MORE, SMALL = 8, 1 << 26


def load(folder: str | Path, device: str = "cpu", *, weights: bool = True) -> Model:
    """Load a model in eval mode from a run folder (`model.json`, `model.safetensors`, and `tokenizer.json` if it reads text), or
    published weights by name, such as open_clip:ViT-B-32/laion2b_s34b_b79k (see `models.published`).

    Without `weights` it is freshly initialised: the untrained control. Raises FileNotFoundError when the folder holds no
    model, ValueError when a file of it is broken (FileError) or the weights do not fit the configuration.
    """
    from models.shared.lora import adapt
    from models.shared.room import free_memory, room_for_parameters
    from models.shared.tensors import read_tensors
    from models.shared.text import load_tokenizer

    if str(folder).startswith(("open_clip:", "hf:")):
        return importlib.import_module("models.published").published(str(folder), device)
    folder = Path(folder)
    if not (folder / "model.json").exists():
        layouts = {"hf": "config.json", "open_clip": "open_clip_config.json"}
        if found := [f"{source}:{folder}" for source, name in layouts.items() if (folder / name).is_file()]:
            raise FileNotFoundError(f"{folder} has no model.json: published weights are named {' or '.join(found)}")
        raise FileNotFoundError(f"{folder} has no model.json: train a model first, for example `make train-clip`")
    kind, config = described(folder)
    tokenizer = load_tokenizer(folder) if kind.reads_text() else None
    adapted = _adapted(folder / "model.json")
    file = folder / "model.safetensors"
    room = MORE * file.stat().st_size + SMALL if weights and file.exists() else free_memory()
    try:
        with room_for_parameters(room):
            model = kind(config, tokenizer)
            if adapted:
                adapt(model, **adapted)
        model.leave_out(_without(folder / "model.json", kind))
    except Exception as error:  # constructors can raise anything if sizes are invalid
        raise FileError(f"{folder / 'model.json'} does not describe a valid {kind.name} ({_said(error)}). {TRAIN_AGAIN}") from error
    if weights:
        if not file.exists():
            raise FileNotFoundError(
                f"{folder} has no model.safetensors: its training was interrupted; run `make train-...` again to resume"
            )
        state = read_tensors(file, TRAIN_AGAIN)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{file} does not fit {folder / 'model.json'}: {error}") from error
    return model.to(device).eval()


def described(folder: Path) -> tuple[type[Model], Any]:
    """The class and the configuration that the model.json of a run folder names. Raises FileError."""
    path = folder / "model.json"
    description = read_json(path, TRAIN_AGAIN)
    for name, expected in (("model", str), ("config", dict)):
        if not isinstance(found := description.get(name), expected):
            raise FileError(f"{path}: {name} is {found!r}, expected a {expected.__name__}. {TRAIN_AGAIN}")
    try:
        kind = model_class(description["model"])
        config = from_dict(kind.Config, description["config"])
    except Exception as error:  # configurations can raise anything if values are invalid
        raise FileError(f"{path} does not describe a model of this version ({_said(error)}). {TRAIN_AGAIN}") from error
    _names_no_other_place(config, path)
    return kind, config


def _adapted(path: Path) -> dict[str, Any]:
    """Rank, scale and layers of a model with low-rank updates (`models.shared.lora.adapt`); {} for others. Raises FileError."""
    found = read_json(path, TRAIN_AGAIN).get("adapted", {})
    rank = found.get("rank") if isinstance(found, dict) and found.keys() == {"rank", "scale", "layers"} else None
    if found and not (type(rank) is int and 0 < rank <= 4096 and type(found["scale"]) in (int, float) and _are_names(found["layers"])):
        expected = '{"rank": 1 to 4096, "scale": a number, "layers": names of linear layers}'
        raise FileError(f"{path}: adapted is {found!r:.80}, expected {expected}. {TRAIN_AGAIN}")
    return dict(found)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _without(path: Path, kind: type[Model]) -> list[str]:
    """The capabilities that a model lacks (`Model.leave_out`). Raises FileError."""
    found = read_json(path, TRAIN_AGAIN).get("without", [])
    if not (isinstance(found, list) and all(isinstance(name, str) and callable(getattr(kind, name, None)) for name in found)):
        raise FileError(f"{path}: without is {found!r:.80}, expected names of methods of {kind.name}. {TRAIN_AGAIN}")
    return found


def _names_no_other_place(config: Any, file: Path) -> None:
    """The file describes the whole architecture: nothing that a run folder names is fetched or executed to load it."""
    for field in fields(config):
        value: Any = getattr(config, field.name)
        if field.name == "tower" and isinstance(value, str) and value and not value.startswith("{"):
            raise FileError(
                f"{file} names the image tower {value!r:.200} without its architecture, and names in a run folder are not followed: train "
                "the run again"
            )
        if is_dataclass(value):
            _names_no_other_place(value, file)
            source: str = getattr(value, "source", "")
            if source and not getattr(value, "architecture", "there"):
                raise FileError(
                    f"{file} names the language model {source!r} without its architecture, and names in a run folder are not "
                    "followed: train the run again, or write transformers' configuration of it into the field architecture"
                )


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def save(model: Model, folder: str | Path, state: dict[str, Any] | None = None) -> None:
    """Write the files that `load` reads. The weights (default: the model's own `state`) are written atomically. Raises FileError if they
    cannot be written."""
    from models.shared.tensors import write_tensors

    describe(model, Path(folder))
    write_tensors(Path(folder) / "model.safetensors", model.state_dict() if state is None else state)


def describe(model: Model, folder: Path) -> None:
    """Write the files that `load` reads except the weights: `model.json` and the tokenizer."""
    from models.shared.text import save_tokenizer

    description: dict[str, Any] = {"model": model.name, "paradigm": model.paradigm, "config": asdict(model.config)}
    if model.without:
        description["without"] = list(model.without)
    if hasattr(model, "adapted"):
        description["adapted"] = model.adapted
    write_json(folder / "model.json", description)
    if model.tokenizer is not None:
        save_tokenizer(model.tokenizer, folder)


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Inverse of `dataclasses.asdict`. Raises TypeError for unknown fields and for missing fields without a default, so that an old file
    is never loaded only in part, and FieldError for a value of another type than its field's."""
    check_types(cls, values)
    hints = get_type_hints(cls)
    nested = {field.name for field in fields(cls) if is_dataclass(hints[field.name])}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}  # JSON has no tuples
    return cls(**{name: from_dict(hints[name], value) if name in nested else value for name, value in values.items()})
