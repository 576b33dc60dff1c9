"""A model that nobody has heard of: one package and one page, dropped into a copy of the project with no other file touched, trains,
evaluates, and appears wherever the others do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from data.scenes.build import build
from tests.processes import commands

ROOT = Path(__file__).parent.parent

MODEL = '''"""Toy: a linear picture tower and a bag of words, in one space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from models.clip.objective import clip_loss
from models.contract import Model
from models.shared.collate import PairCollate
from models.shared.images import ImageTransform


@dataclass(frozen=True)
class ToyConfig:
    width: int = 16
    vocab_size: int = 400

    @classmethod
    def tiny(cls):
        return cls()


class Toy(Model):
    paradigm = "contrastive"
    Config = ToyConfig
    builds_on = ("clip",)

    def __init__(self, config, tokenizer):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.collate = PairCollate(ImageTransform(8), tokenizer, 32)
        self.visual = nn.Linear(3 * 8 * 8, config.width)
        self.text = nn.EmbeddingBag(config.vocab_size, config.width)

    def encode(self, batch):
        return {"image": self._see(batch["pixels"]), "text": F.normalize(self.text(batch["ids"]).float(), dim=-1)}

    def objective(self, features):
        return clip_loss(features["image"], features["text"], torch.tensor(10.0))

    @torch.no_grad()
    def encode_image(self, images):
        return self._see(self.collate.images(images))

    @torch.no_grad()
    def encode_text(self, texts):
        return F.normalize(self.text(self.collate.texts(texts)).float(), dim=-1)

    def _see(self, pixels):
        return F.normalize(self.visual(pixels.flatten(1).float() / 255).float(), dim=-1)
'''

PAGE = '''"""Toy: a page for a test."""

from models.toy import ToyConfig
from recipes.train.recipe import Optim, Recipe

PRESETS = {
    "tiny": Recipe(model=ToyConfig.tiny(), optim=Optim(lr=1e-2), budget=640, batch=16),
    "brief": Recipe(model=ToyConfig.tiny(), optim=Optim(lr=1e-2), budget=64, batch=16),
}
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy") / "paragone"
    ignored = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for name in ("models", "recipes", "data", "eval", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    (root / "models" / "toy").mkdir()
    (root / "models" / "toy" / "__init__.py").write_text('from models.toy.model import Toy, ToyConfig\n\n__all__ = ["Toy", "ToyConfig"]\n')
    (root / "models" / "toy" / "model.py").write_text(MODEL)
    (root / "recipes" / "toy.py").write_text(PAGE)
    build(root / ".data" / "scenes-tiny", "tiny", workers=1, samples={"train": 96, "val": 32, "test": 32})
    return root


CHOSEN = "toy or package or arrows or build or knows"  # tests that concern the toy


def run(root: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_help_lists_the_page_and_make_knows_its_targets(copy: Path) -> None:
    assert " toy" in run(copy, "make", "help")
    commands = run(copy, "make", "-n", "train-toy", "eval-toy", "claims-toy", "PRESET=brief", f"VENV={copy}/venv")
    assert "recipes.train 'toy' 'brief' --out '.runs/toy-brief-s0'" in commands
    assert "eval.run '.runs/toy-brief-s0'" in commands
    assert "recipes.claims 'toy' --preset 'brief'" in commands
    assert "recipes.train 'toy' 'tiny'" in run(copy, "make", "-n", "all", f"VENV={copy}/venv")


@pytest.mark.timeout(900)
def test_it_trains_evaluates_is_compared_and_counted_and_keeps_the_contract(copy: Path) -> None:
    quiet = ("-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = commands(
        copy,
        ("recipes.train", "toy", "tiny", "--out", ".runs/toy-tiny-s0", "--device", "cpu"),
        ("eval.run", ".runs/toy-tiny-s0", "--tasks", "zeroshot,retrieval", "--device", "cpu"),
        ("eval.compare",),
        ("recipes.tools.params", "toy"),
        ("pytest", *quiet, "tests/recipes/test_contract.py", "tests/test_architecture.py", "-k", CHOSEN),
    )
    said = done.stdout
    assert done.returncode == 0, f"{said[-2000:]}\n{done.stderr[-2000:]}"
    assert json.loads((copy / ".runs" / "toy-tiny-s0" / "recipe.json").read_text())["page"] == "toy"
    cells = json.loads(next((copy / ".runs" / "toy-tiny-s0" / "eval").glob("*/eval.json")).read_text())["cells"]
    assert any(cell["variant"] == "model" and cell["value"] is not None for cell in cells)
    assert "toy" in (copy / ".runs" / "compare" / "report.html").read_text()
    assert "toy" in said.split("variant")[1].split("passed")[0]  # the table of parameters
    assert " passed" in said
    assert "skipped" not in said
