"""The tasks: one file each, named like the task, and found here; nothing else names them. A file declares

plan(source)   the tasks that a data set allows
ORDER          where its columns stand in reports; last unless given
HEADLINE       the metrics that stand for it where there is room for few, as patterns: each shows the first metric that it
               matches whole. The first metric of all unless given; with () the task is in its own table only.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from functools import cache
from typing import Any

from eval.base.task import Task


@cache
def modules() -> dict[str, Any]:
    """Task -> the module that plans it, in their order."""
    found = {each.name: importlib.import_module(f"{__name__}.{each.name}") for each in pkgutil.iter_modules(__path__)}
    found = {name: module for name, module in found.items() if hasattr(module, "plan")}
    return dict(sorted(found.items(), key=lambda item: getattr(item[1], "ORDER", math.inf)))


def headlines() -> dict[str, tuple[str, ...] | None]:
    """Task -> its HEADLINE, None where it declares none, in their order."""
    return {name: getattr(module, "HEADLINE", None) for name, module in modules().items()}


def plan(source: Any) -> list[Task]:
    """Every task that the data of a `Source` allows."""
    return [task for module in modules().values() for task in module.plan(source)]
