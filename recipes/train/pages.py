"""Find the pages of recipes/. Every module there that declares `PRESETS` can be trained by name, with any of its presets."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tyro

import recipes
from recipes.train.recipe import AnyRecipe, Prerequisite, Recipe


def page(name: str) -> Any:
    """The module `recipes/<name>.py`. Raises ValueError if it does not exist."""
    try:
        found = importlib.import_module(f"recipes.{name}") if name.isidentifier() else None
    except ModuleNotFoundError as error:
        if error.name != f"recipes.{name}":
            raise  # the page exists, but something that it imports does not
        found = None
    if found is None or hasattr(found, "__path__"):  # a folder, such as recipes/train/, is an engine
        raise ValueError(f"no page recipes/{name}.py; available: {', '.join(names())}")
    return found


def names() -> list[str]:
    """The modules of recipes/ that declare presets."""
    modules = [each.name for each in pkgutil.iter_modules(recipes.__path__) if not each.ispkg]
    return [name for name in modules if hasattr(importlib.import_module(f"recipes.{name}"), "PRESETS")]


def preset(page_name: str, name: str) -> AnyRecipe:
    """A recipe of a page. Raises ValueError for an unknown page, a page without presets, or an unknown preset."""
    presets: dict[str, AnyRecipe] | None = getattr(page(page_name), "PRESETS", None)
    if not presets:
        raise ValueError(f"recipes/{page_name}.py declares no PRESETS, so it cannot be trained; pages with presets: {', '.join(names())}")
    if name not in presets:
        raise ValueError(f"recipes/{page_name}.py has no preset {name!r}, only {', '.join(presets)}")
    return presets[name]


def with_options(page_name: str, name: str, options: Sequence[str], program: str) -> AnyRecipe:
    """A recipe of a page with fields set on the command line, such as `--optim.lr 1e-3`. Raises ValueError as `preset` does."""
    default = preset(page_name, name)
    kind: Any = Recipe[type(default.model)]  # type: ignore[misc]  # tyro then shows the fields of this model's configuration
    return without_replaced(tyro.cli(kind, default=default, args=list(options), prog=f"{program} {page_name} {name}"), default)


# What a prerequisite gives -> fields of a model's configuration that name something else in its place.
INSTEAD: dict[str, tuple[str, ...]] = {"language_model": ("language.source",), "clip": ("clip_source",)}
INSTEAD |= dict.fromkeys(("image_tower", "image_encoder", "vision"), ("vision.tower", "timm_name", "image_weights", "clip_source"))
TOWERS = ("classifier", "clip")  # pages of which nothing but the image tower is taken in these roles


def without_replaced(recipe: AnyRecipe, default: AnyRecipe) -> AnyRecipe:
    """The recipe without the prerequisites in whose place it names another tower or language model than the preset does, or whole
    weights. The tokenizer of a prerequisite is then that of the language model."""

    def replaced(each: Prerequisite) -> bool:
        if recipe.weights:
            return each.role in INSTEAD
        names = INSTEAD.get(each.role, ()) if each.role in ("language_model", "clip") or each.recipe in TOWERS else ()
        return any((named := _field(recipe.model, name)) and named != _field(default.model, name) for name in names)

    gone = {each.role for each in recipe.prerequisites if replaced(each)}
    kept = tuple(each for each in recipe.prerequisites if each.role not in gone)
    source = _field(recipe.model, "language.source")
    return replace(recipe, prerequisites=kept, tokenizer=source if source and recipe.tokenizer in gone else recipe.tokenizer)


def _field(config: Any, path: str) -> str:
    """ "" where the configuration has no such field."""
    for name in path.split("."):
        config = getattr(config, name, "")
    return str(config)
