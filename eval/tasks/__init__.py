"""The tasks: one file each, named like the task and found here; nothing else lists them. A file declares

plan(source)   the tasks that a data set allows
ORDER          the position of its columns in reports; last unless given
HEADLINE       its metrics in the overview, as patterns: each shows the first metric that it matches in full. Unless given, the
               first metric of all; with () the task is in its own table only.
"""

from __future__ import annotations

import ast
import importlib
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch would come with it
    from eval.base.task import Task


@cache
def headlines() -> dict[str, tuple[str, ...] | None]:
    """Task -> its HEADLINE, None where it declares none, in their order. Read from the files and not imported, because a report is made
    without torch."""
    found: dict[str, tuple[float, tuple[str, ...] | None]] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8")).body
        if any(isinstance(node, ast.FunctionDef) and node.name == "plan" for node in tree) and path.stem != "__init__":
            said = {ast.unparse(_target(node)): node.value for node in tree if isinstance(node, ast.Assign | ast.AnnAssign)}
            order, headline = (ast.literal_eval(value) if (value := said.get(name)) else None for name in ("ORDER", "HEADLINE"))
            found[path.stem] = math.inf if order is None else order, headline
    return {name: headline for name, (_, headline) in sorted(found.items(), key=lambda item: item[1][0])}


def _target(node: ast.Assign | ast.AnnAssign) -> ast.expr:
    return node.targets[0] if isinstance(node, ast.Assign) else node.target


def plan(source: Any) -> list[Task]:
    """Every task that the data of a `Source` allows."""
    return [task for name in headlines() for task in importlib.import_module(f"{__name__}.{name}").plan(source)]
