"""The pages of recipes/: any module there that declares `PRESETS` can be trained by its name, with any preset in it."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import recipes
from recipes.train.recipe import AnyRecipe


def page(name: str) -> Any:
    """The module `recipes/<name>.py`. Raises ValueError where there is none."""
    try:
        return importlib.import_module(f"recipes.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"recipes.{name}":
            raise  # the page is there, and something that it imports is not
        raise ValueError(f"no page recipes/{name}.py; there are {', '.join(names())}") from error


def names() -> list[str]:
    """The modules of recipes/ that declare presets."""
    modules = [each.name for each in pkgutil.iter_modules(recipes.__path__) if not each.ispkg]
    return [name for name in modules if hasattr(importlib.import_module(f"recipes.{name}"), "PRESETS")]


def preset(page_name: str, name: str) -> AnyRecipe:
    """One recipe of a page. Raises ValueError for an unknown page, one without presets, or an unknown preset."""
    presets: dict[str, AnyRecipe] = getattr(page(page_name), "PRESETS", {})
    if name not in presets:
        raise ValueError(f"recipes/{page_name}.py has no preset {name!r}, only {', '.join(presets) or 'none'}")
    return presets[name]
