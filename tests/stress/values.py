"""Configurations with one value that is out of the ordinary."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from math import inf, nan
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch

import models
from data.fields import check_types
from data.loader import in_order
from data.sample import Sample
from data.shards import Split, find
from data.texts import texts
from models.shared.text import BPETokenizer
from recipes.train.pages import page
from recipes.train.progress import Progress
from recipes.train.recipe import AnyRecipe
from recipes.train.stages import constructed, enter, set_training
from recipes.train.step import backward
from tests.recipes.kit import narrow
from tests.recipes.test_contract import PAGES
from tests.stress.child import short_of_memory
from tests.stress.ground import Found, Ground

Place = tuple[str, ...]
WHOLE: Sequence[Any] = (0, -1, 1, 2, 3, 7, 20, 10**9, 10**18, 1.5, "", None, True)
NUMBERS: Sequence[Any] = (0.0, -1.0, nan, inf, 1e-30, 1e18, 0.5, 1.0, 2.0, "", None, True)
OTHERS: Sequence[Any] = (None, 3, "nonsense", (), ("a",), (nan, nan, nan), (0, 0, 0), (1, 1, 1, 1))


def odd_values(ground: Ground) -> Found:
    """A field of a page's model has another value: the model is built and learns from a batch, or a sentence says why it cannot."""
    split = find(ground.data, "train")
    tokenizer = BPETokenizer.train(texts(split, limit=200, questions=True), 400)
    samples = next(iter(in_order(split, batch_size=4)))
    while True:
        name = ground.chance.choice(PAGES)
        recipe = page(name).PRESETS["tiny"]
        recipe = replace(recipe, model=narrow(recipe.model))
        place, hint, value = ground.chance.choice(list(leaves(recipe.model)))
        odd = another(value, hint, ground.chance)
        outcome = short_of_memory(partial(learn, recipe, place, odd, tokenizer, split, samples), 120)
        yield f"{name}, {'.'.join(place)} {odd!r}", outcome.fault


def leaves(config: Any, where: Place = ()) -> Iterator[tuple[Place, Any, Any]]:
    """(place, declared type, value) of every field of a configuration and of those in it, but names of backbones, which are looked up."""
    hints = get_type_hints(type(config))
    for field in fields(config):
        value, place = getattr(config, field.name), (*where, field.name)
        if is_dataclass(value):
            yield from leaves(value, place)
        elif hints[field.name] is not str:
            yield place, hints[field.name], value


def changed(config: Any, place: Place, value: Any) -> Any:
    """Raises FieldError for a value of another type, as the command line and model.json do before anything else sees it."""
    name, *rest = place
    if not rest:
        check_types(type(config), {name: value})
    return replace(config, **{name: changed(getattr(config, name), tuple(rest), value) if rest else value})


def another(value: Any, hint: Any, chance: random.Random) -> Any:
    if get_origin(hint) is Literal:
        return chance.choice([*(each for each in get_args(hint) if each != value), "nonsense", None])
    if isinstance(value, bool):
        return chance.choice([not value, not value, "yes", None])
    return chance.choice(WHOLE if type(value) is int else NUMBERS if type(value) is float else OTHERS)


def learn(recipe: AnyRecipe, place: Place, value: Any, tokenizer: BPETokenizer, split: Split, samples: Sequence[Sample]) -> None:
    """From a batch, in every stage."""
    recipe = replace(recipe, model=changed(recipe.model, place, value))
    kind = models.model_of(recipe.model)
    words = tokenizer if kind.reads_text() else None
    model = constructed(kind, kind.configured(recipe.model, tokenizer=words, split=split), words)
    if recipe.prerequisites and not any(parameter.requires_grad for parameter in model.parameters()):
        return
    model.remember([samples])
    progress = Progress()
    for number in range(len(recipe.schedule)):
        enter(model, recipe, number, progress)
        set_training(model)
        batch = model.collate(model.precompute(samples), np.random.default_rng(0))
        backward(model, batch, micro_batch=None, autocast=torch.autocast("cpu", enabled=False))
        model.after_step()
