"""The arrows between the folders, and the shape of the top level."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "data": {"data"},
    "models": {"models", "data"},
    "eval": {"eval", "models", "data"},
    "recipes": {"recipes", "models", "data", "eval"},
}
# What a paper builds on: the only imports of one model by another.
BETWEEN_MODELS: dict[str, set[str]] = {
    "coca": {"clip"},
    "siglip": {"clip"},
    "flava": {"vq"},
    "maskvlm": {"clip"},
    "magic": {"clip"},
    "cm3leon": {"vq", "clip"},
    "minigpt4": {"blip2", "lm"},
}


def imports(path: Path) -> set[str]:
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
        inside = {name for name in imports(path) if name.startswith("models.") and name.count(".") >= 2}
        assert not inside, f"{path} reaches into {inside}"


def test_models_stand_alone() -> None:
    packages = {path.parent.name for path in (ROOT / "models").glob("*/__init__.py")}
    assert {"clip", "siglip"} <= packages
    for package in packages:
        for path in (ROOT / "models" / package).rglob("*.py"):
            others = {name.split(".")[1] for name in imports(path) if name.startswith("models.")} & (packages - {package})
            assert others <= BETWEEN_MODELS.get(package, set()), f"{path} imports {others}"


def test_the_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in tracked if not name.startswith(".")}
    expected = {"pyproject.toml", "README.md", "Makefile", "models", "recipes", "data", "eval", "tests", "LICENSE", "CITATION.cff"}
    assert top <= expected, top - expected


def test_nothing_unpickles() -> None:
    """Weights are safetensors, data are pictures and json: nothing that the project reads can execute."""
    for folder in ALLOWED:
        for path in (ROOT / folder).rglob("*.py"):
            used = imports(path)
            assert not used & {"pickle", "dill", "joblib", "shelve"}, path
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    assert ast.unparse(node.func) not in {"torch.load", "eval", "exec"}, f"{path}:{node.lineno}"
