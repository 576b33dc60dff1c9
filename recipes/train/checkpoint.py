"""Checkpoints: the whole training state in one safetensors file, which cannot contain code and is written atomically."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from data.files import replacing
from recipes.train.progress import Progress

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # AdamW's, Muon's


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Save weights, optimiser moments and `progress`. There is no random state to save, because every step is seeded."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = _names(model, optimizer)
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optim.{key}.{names[index]}": value for key, value in moments.items()}
    about = {"progress": json.dumps(asdict(progress))}
    # Copied, because tied weights share memory, which the format does not allow.
    with replacing(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, partial, about)


def read_progress(path: Path) -> Progress:
    """Read the progress from a checkpoint. Raises ValueError if the file is not a checkpoint."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return Progress(**json.loads((file.metadata() or {})["progress"]))
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise _foreign(path, error) from error


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore the state of model and optimiser. Raises ValueError if the checkpoint belongs to another run."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        model.load_state_dict(weights)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for index, name in _names(model, optimizer).items():
            moments = {key: tensors[f"optim.{key}.{name}"] for key in MOMENTS if f"optim.{key}.{name}" in tensors}
            if moments:
                state[index] = moments
    except (KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise _foreign(path, error) from error
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _foreign(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a checkpoint of this run ({error}); remove its folder or choose another OUT=")


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """Index in the optimiser -> name of the parameter."""
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: by_identity[id(parameter)] for index, parameter in enumerate(parameters)}
