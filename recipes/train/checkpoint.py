"""Checkpoints: the whole training state in one safetensors file, which cannot contain code and is written atomically."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from data.fields import check_types
from data.files import FileError
from models.shared.tensors import read_about, read_tensors, write_tensors
from recipes.train.progress import Progress

ELSEWHERE = "Remove its folder, or choose another OUT="
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # AdamW's, Muon's


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Save weights, optimiser moments and `progress`. There is no random state to save, because every step is seeded."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = _names(model, optimizer)
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optim.{key}.{names[index]}": value for key, value in moments.items()}
    about = {"progress": json.dumps(asdict(progress))}
    write_tensors(path, tensors, about)


def read_progress(path: Path) -> Progress:
    """Read the progress from a checkpoint. Raises FileError if the file is not a checkpoint."""
    about = read_about(path, ELSEWHERE)
    try:
        values = json.loads(about["progress"])
        check_types(Progress, values)
        return Progress(**values)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _foreign(path, error) from error


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore the state of model and optimiser. Raises FileError if the checkpoint belongs to another run."""
    tensors = read_tensors(path, ELSEWHERE)
    try:
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        model.load_state_dict(weights)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for index, name in _names(model, optimizer).items():
            moments = {key: tensors[f"optim.{key}.{name}"] for key in MOMENTS if f"optim.{key}.{name}" in tensors}
            if moments:
                state[index] = moments
    except (KeyError, RuntimeError) as error:
        raise _foreign(path, error) from error
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _foreign(path: Path, error: Exception) -> FileError:
    return FileError(f"{path} is not a checkpoint of this run ({error}). {ELSEWHERE}")


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """Index in the optimiser -> name of the parameter."""
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: by_identity[id(parameter)] for index, parameter in enumerate(parameters)}
