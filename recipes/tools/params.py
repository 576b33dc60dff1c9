"""Compare parameter counts with those of the papers and released models: `python -m recipes.tools.params` (= `make params`).

Covers every model, or those that are named (`make params ARGS="clip siglip"`), at `tiny` and the `SIZES` listed by its package. Models are
built on the meta device, so no memory is allocated.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from rich.table import Table
from torch.overrides import TorchFunctionMode

import models
from eval.base.console import plain_console
from models.contract import Size
from models.shared.text import OpenCLIPTokenizer

LEARNED = 436  # tokens, of the embedded data set's captions
INITIALISERS = {"normal_", "uniform_", "erfinv_", "clamp_", "mul_", "add_", "fill_", "zero_"}  # change only values
INITIALISERS |= {"kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "trunc_normal_", "constant_"}


def sizes() -> Iterator[Size]:
    """The sizes of all models, for each model the smallest first."""
    for package in models.packages():
        listed = importlib.import_module(f"models.{package}.sizes").SIZES if importlib.util.find_spec(f"models.{package}.sizes") else ()
        for kind in models.all_models().values():
            if kind.__module__.startswith(f"models.{package}."):
                yield Size("tiny", _learned(kind.Config.tiny()))
        yield from (size if size.source else replace(size, config=_learned(size.config)) for size in listed)


def _learned(config: Any) -> Any:
    """The configuration with the vocabulary learned from the embedded data set, also in nested configurations."""
    if not hasattr(config, "vocab_size"):
        return config
    inside = {name: _learned(value) for name, value in vars(config).items() if hasattr(value, "vocab_size")}
    return replace(config, vocab_size=LEARNED, **inside)


def count(size: Size) -> int:
    """Number of parameters in the modules that the published or derived count includes."""
    kind = models.model_of(size.config)
    with torch.device("meta"), _Uninitialised():
        model = kind(size.config, _tokenizer() if kind.reads_text() else None)
    parts = [model.get_submodule(name) for name in size.counted] or [model]
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


_tokenizer = cache(OpenCLIPTokenizer)  # reading its merges takes a third of a second


class _Uninitialised(TorchFunctionMode):
    """Initial values are not computed for tensors without storage, where that would take most of the time."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        first = args[0] if args else (kwargs or {}).get("tensor")  # of torch.nn.init
        if func.__name__ in INITIALISERS and isinstance(first, torch.Tensor) and first.is_meta:
            return first
        return func(*args, **(kwargs or {}))


def agrees(size: Size, ours: int) -> bool:
    """With the published figure, or else with the derived one."""
    figure = size.published or size.derived
    return figure is None or abs(ours - figure) <= size.rounded * figure


def main(names: Collection[str] = ()) -> int:
    """Print the table, of the models with these names or of all. Returns 1 if a count differs from the published or derived one."""
    if unknown := set(names) - models.all_models().keys():
        print(f"error: there is no model {', '.join(sorted(unknown))}; there are {', '.join(models.all_models())}", file=sys.stderr)
        return 1
    table = Table("model", "variant", "ours", "published", "derived", "source")
    for column in (2, 3, 4):
        table.columns[column].justify = "right"
    equal = True
    for size in sizes():
        name = models.model_of(size.config).name
        if names and name not in names:
            continue
        ours = count(size)
        equal &= agrees(size, ours)
        figures = [f"{figure:,}" if figure else "" for figure in (ours, size.published, size.derived)]
        table.add_row(name, size.name, *figures, size.source)
    console = plain_console()
    console.width = console.width if console.is_terminal else 160  # the sources are sentences
    console.print(table)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
