"""Prerequisites and stages of a training run: where weights come from, and which modules are frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.fields import require
from models.contract import Model
from models.shared.backbones import known_positions
from models.shared.lora import adapt, freeze_layers, thaw_layers, trained_layers
from models.shared.room import free_memory, room_for_parameters
from recipes.train.folder import CHECKPOINT, PAID, finished, read_cost
from recipes.train.pages import preset
from recipes.train.progress import Progress
from recipes.train.recipe import AnyRecipe, Stage

# ------------------------------------------------------------------------------------------------- prerequisites


@dataclass(frozen=True)
class Needed:
    """The run of a prerequisite: `recipe`, trained in `folder`."""

    role: str
    page: str
    recipe: AnyRecipe
    preset: str
    folder: Path

    @property
    def state(self) -> str:
        if finished(self.folder):
            return "already trained"
        seen = f"{self.recipe.samples:,} samples"
        return f"interrupted, will be resumed first ({seen})" if (self.folder / CHECKPOINT).exists() else f"will be trained first ({seen})"


def prerequisites(recipe: AnyRecipe, preset_named: str, shared: Path) -> list[Needed]:
    """The prerequisite runs of a recipe, in folders under `shared`, with its data (`Prerequisite.data`), seed, device and logging options.

    Raises ValueError for an unknown page or preset.
    """
    found = []
    for prerequisite in recipe.prerequisites:
        chosen = prerequisite.preset or preset_named
        try:
            standard = preset(prerequisite.recipe, chosen)
        except ValueError as error:
            raise ValueError(f"prerequisite {prerequisite.role}: {error}") from error
        where = {name: getattr(recipe, name) for name in ("seed", "device", "workers", "memory_gb", "save_minutes", "log")}
        where["data"] = dict(prerequisite.data).get(recipe.data, recipe.data)
        folder = shared / run_name(prerequisite.recipe, chosen, replace(recipe, data=where["data"]), standard.data)
        found.append(Needed(prerequisite.role, prerequisite.recipe, replace(standard, **where), chosen, folder))
    return found


def run_name(name: str, preset: str, recipe: AnyRecipe, standard_data: str) -> str:
    """The name of a run folder, as in the Makefile. It contains the data set's name unless that is the preset's default."""
    place = Path(recipe.data).parent if ".tar" in recipe.data else Path(recipe.data)
    return f"{name}-{preset}{'' if recipe.data == standard_data else f'-{place.name}'}-s{recipe.seed}"


def constructed(kind: type[Model], config: Any, tokenizer: Any) -> Model:
    """`kind(config, tokenizer)`. Raises ValueError for a configuration whose values do not go together."""
    try:
        with room_for_parameters(free_memory()):
            model = kind(config, tokenizer)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError) as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"no {kind.name} can be built with these values of --model.*: {why}") from error
    if empty := [name for name, parameter in model.named_parameters() if not parameter.numel()]:
        raise ValueError(f"with these values of --model.* {empty[0]} has no weights; expected sizes of 1 or more")
    if hasattr(model, "language") and hasattr(config, "context"):
        limit, places = known_positions(model.language), getattr(model, "places", 0)  # of an image
        expected = f"at most the {limit} positions of {type(model.language).__name__}, less {places} for an image"
        require(limit is None or config.context + places <= limit, "--model.context", config.context, expected)
    return model


def adopt(model: Model, needed: Sequence[Needed], adopted: Mapping[str, Model], progress: Progress) -> None:
    """Pass the trained prerequisites to the model. Record their costs and which modules of the model contain them. Raises ValueError if the
    model has other sizes than they have."""
    if not adopted:
        return
    try:
        model.adopt(dict(adopted))
    except (AttributeError, KeyError, RuntimeError) as error:  # a tensor is missing, unexpected, or of another shape
        builds_on = " and ".join(f"{each.folder} ({each.role})" for each in needed)
        why = " ".join(str(error).split())[:300]
        raise ValueError(
            f"with these values of --model.* the {model.name} has other parts than {builds_on}, which it builds on: {why}"
        ) from error
    progress.sources |= _sources(model, {f"{each.role} of {each.folder}": adopted[each.role] for each in needed})
    for each in needed:
        cost = read_cost(each.folder)
        names = (*PAID, "prerequisites")
        progress.prerequisites[each.role] = {"run": each.folder.name} | {name: cost[name] for name in names if cost.get(name)}


def _sources(model: nn.Module, adopted: dict[str, nn.Module]) -> dict[str, str]:
    """Module -> prerequisite from which its matrices come. They are compared by value, whichever way the model copied them."""
    found: dict[str, str] = {}
    for name, mine in model.named_parameters():
        for source, module in adopted.items() if mine.ndim >= 2 else ():
            if any(mine.shape == theirs.shape and torch.equal(mine, theirs) for theirs in module.parameters()):
                found[name.split(".")[0]] = source
    return found


# -------------------------------------------------------------------------------------------------------- stages


def enter(model: Model, recipe: AnyRecipe, number: int, progress: Progress) -> Stage:
    """Start or resume stage `number`."""
    stage = recipe.schedule[number]
    if number > progress.stage:
        progress.next_stage()
    for name, parameter in model.named_parameters():
        if name in progress.frozen:  # by `adopt`, in the process that was interrupted
            parameter.requires_grad_(False)
    torch.manual_seed(recipe.seed + number)
    if recipe.lora_rank:
        thaw_layers(model)
    model.enter_stage(stage.name)
    if recipe.lora_rank:
        freeze_layers(model)
    freeze_named(model, recipe.freeze)
    progress.frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    progress.trained = list(dict.fromkeys([*progress.trained, *trained]))
    return stage


def adapt_stages(model: Model, recipe: AnyRecipe) -> None:
    """Give the model low-rank updates (`lora_rank`) beside the layers that any of its stages trains, without those that `freeze` names.

    Raises ValueError if there are none.
    """
    layers: set[str] = set()
    for stage in reversed(recipe.schedule):  # the first one last, since training begins with it
        with suppress(ValueError):  # what a stage lacks it says when it begins
            model.enter_stage(stage.name)
        layers |= set(trained_layers(model))
    frozen = _named(recipe.freeze)
    kept = [name for name, _ in model.named_modules() if name in layers and not any(f"{name}.".startswith(f"{part}.") for part in frozen)]
    adapt(model, rank=recipe.lora_rank, layers=kept)


def freeze_named(model: nn.Module, names: str) -> None:
    """Freeze the modules of these names, separated by commas. Raises ValueError for one that the model does not have, and if nothing would
    be left to train."""
    for name in _named(names):
        found = [parameter for full, parameter in model.named_parameters() if full == name or full.startswith(f"{name}.")]
        if not found:
            there = ", ".join(dict.fromkeys(full.split(".")[0] for full, _ in model.named_parameters()))
            raise ValueError(
                f"freeze: {type(model).__name__} has no module {name!r}; it has {there}, and modules in them (visual.blocks.0)"
            )
        for parameter in found:
            parameter.requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze: with {names} frozen nothing of this {type(model).__name__} is trained in this stage")


def _named(names: str) -> list[str]:
    return [part.strip() for part in names.split(",") if part.strip()]


def set_training(model: nn.Module) -> None:
    """Set training mode, but evaluation mode for entirely frozen modules, which disables dropout and updates of running statistics."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def describe(model: nn.Module, recipe: AnyRecipe, stage: Stage, progress: Progress) -> str:
    """A line about the stage, followed by one line per module: source of its weights, frozen or trained, number of parameters."""
    start = f"stage {progress.stage + 1} of {len(recipe.schedule)}, {stage.name}: " if recipe.stages else ""
    rows = [_module_row(name, list(parameters), progress) for name, parameters in _modules(model).items()]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
    rate = f", learning rate {stage.optim.lr:g}" if stage.optim.lr else ""
    return "\n".join([f"{start}{stage.budget:,} samples in batches of {stage.batch}{rate}", *lines])


def _modules(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(name.split(".")[0], []).append(parameter)
    return found


def _module_row(name: str, parameters: list[nn.Parameter], progress: Progress) -> tuple[str, str, str, str]:
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    how = "trained" if trained == total else f"{trained:,} trained, the rest frozen" if trained else "frozen"
    return name, progress.sources.get(name, "from scratch"), how, f"{total:,}"
