"""Checkpoints: the whole training state in safetensors files, which cannot contain code and are written atomically.

One file holds what a rank has whole, and the progress. What is sharded is in a folder beside, a file for each rank, which the file names:
it is written first, and counts from the moment when the file replaces the last one. torch.distributed.checkpoint writes and reads it in its
format for Hugging Face, whose metadata are JSON (its own format has pickled ones), and brings it to any number of ranks.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.fields import check_types
from data.files import FileError, remove_folder
from models.shared.distributed import rank
from models.shared.tensors import read_about, read_tensors, write_tensors
from recipes.train.parallel import is_sharded, share_of
from recipes.train.progress import Progress

ELSEWHERE = "Remove its folder, or choose another OUT="
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # AdamW's, Muon's
SHARES = "shares"  # in a file's metadata: JSON, [name of the folder beside it, number of files in there]


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Save weights, optimiser moments and `progress`. There is no random state to save, because every step is seeded. All ranks must call
    it. Raises FileError."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = _names(model, optimizer)
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optim.{key}.{names[index]}": value for key, value in moments.items()}
    shares = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
    progress.saved += 1
    folder = path.with_name(f"{path.stem}-{progress.saved}")
    if shares:
        _write_shares(folder, shares)
    if rank() == 0:
        about = {"progress": json.dumps(asdict(progress))}
        if shares:
            about[SHARES] = json.dumps([folder.name, len(list(folder.glob("*.safetensors")))])
        write_tensors(path, {name: tensor for name, tensor in tensors.items() if name not in shares}, about)
        for old in path.parent.glob(f"{path.stem}-*"):
            if old.is_dir() and not (shares and old == folder):
                remove_folder(old)


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
    """Restore the state of model and optimiser, sharded or not, on any number of ranks, whatever they were when it was saved. All ranks
    must call it. Raises FileError if the checkpoint belongs to another run."""
    tensors, names = read_tensors(path, ELSEWHERE), _names(model, optimizer)
    parameters = dict(model.named_parameters())
    targets: dict[str, Tensor] = {f"model.{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    targets |= {f"optim.{key}.{name}": parameters[name].detach() for name in names.values() for key in MOMENTS if key != "step"}
    try:
        tensors = {name: share_of(tensor, targets.get(name, tensor)) for name, tensor in tensors.items()}
        tensors |= _read_shares(path, targets)
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        model.load_state_dict(weights)
        state: dict[int, dict[str, Tensor]] = {}
        for index, name in names.items():
            moments = {key: tensors[f"optim.{key}.{name}"] for key in MOMENTS if f"optim.{key}.{name}" in tensors}
            if moments:
                state[index] = moments
    except (KeyError, RuntimeError) as error:
        raise _foreign(path, error) from error
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _write_shares(folder: Path, shares: Mapping[str, Tensor]) -> None:
    from torch.distributed.checkpoint import api, hf_storage, state_dict_saver

    if rank() == 0:
        remove_folder(folder)  # which a killed run may have left half-written
    dist.barrier()
    try:
        state_dict_saver.save(dict(shares), storage_writer=hf_storage.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except api.CheckpointException as error:  # on all ranks, whichever failed
        if rank() == 0:
            remove_folder(folder)
        raise FileError(f"{folder} cannot be written ({_why(error)}). Make room, and run the same command to resume") from error


def _read_shares(path: Path, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of `targets` is in the folder that the checkpoint at `path` names, sharded as they are; {} without one. Raises FileError."""
    about = read_about(path, ELSEWHERE).get(SHARES)
    if about is None:
        return {}
    from torch.distributed.checkpoint import api, hf_storage, state_dict_loader

    try:
        name, files = json.loads(about)
        folder = path.with_name(Path(name).name)
        there = len(list(folder.glob("*.safetensors")))
        if there != files:
            raise FileError(f"{folder} has {there} files, expected {files}. {ELSEWHERE}")
        reader = hf_storage.HuggingFaceStorageReader(str(folder))
        found = {name: torch.empty_like(targets[name]) for name in reader.read_metadata().state_dict_metadata}
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that ranks read without asking each other
            state_dict_loader.load(found, storage_reader=reader, no_dist=True)
    except FileError:
        raise
    except (api.CheckpointException, Exception) as error:  # what the reader meets in a broken file it does not put into sentences
        raise _foreign(path, error) from error
    return found


def _foreign(path: Path, error: BaseException) -> FileError:
    return FileError(f"{path} is not a checkpoint of this run ({_why(error)}). {ELSEWHERE}")


def _why(error: BaseException) -> BaseException:
    """The cause instead of torch.distributed.checkpoint's own exception, whose message is a traceback."""
    return next(iter(error.failures.values()))[0] if hasattr(error, "failures") else error


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, str]:
    """Index in the optimiser -> name of the parameter."""
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: by_identity[id(parameter)] for index, parameter in enumerate(parameters)}
