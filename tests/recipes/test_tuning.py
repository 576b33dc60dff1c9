"""`--freeze` and `--lora-rank`: what is frozen stays as it is to the bit, what is beside it learns, and merged it is the same model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from data.files import FileError
from models.shared.lora import in_a_block, merge
from models.shared.text import BPETokenizer
from recipes.train.loop import train
from recipes.train.pages import page
from recipes.train.progress import Progress
from recipes.train.recipe import AnyRecipe
from recipes.train.stages import adapt_stages, enter
from tests.recipes.test_contract import runs, short, some_samples, trained  # noqa: F401  # `runs` is a fixture


def started(recipe: AnyRecipe, folder: Path) -> models.Model:
    """The model before its first step: the same seed, trained at a rate of 0."""
    still = replace(recipe, optim=replace(recipe.optim, lr=0.0)) if not recipe.stages else recipe
    assert train(still, folder / "start", "tiny") == 0
    return models.load(folder / "start")


def test_frozen_modules_stay_to_the_bit(few: Path, tmp_path: Path) -> None:
    recipe = replace(short(page("clip").PRESETS["tiny"], str(few)), freeze="visual, text.tokens")
    before, folder = started(recipe, tmp_path).state_dict(), tmp_path / "run"
    assert train(recipe, folder, "tiny") == 0
    after = models.load(folder).state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith(("visual.", "text.tokens."))]
    assert {"visual_projection.weight", "text.positions"} <= moved
    cost = json.loads((folder / "cost.json").read_text())
    assert cost["trainable_parameters"] == sum(
        after[name].numel() for name in after if not name.startswith(("visual.", "text.tokens.")) and after[name].is_floating_point()
    )


@pytest.mark.parametrize(("freeze", "words"), [("vision", "no module 'vision'; it has .*visual"), ("visual,text,logit_scale,", "nothing")])
def test_names_that_are_none_and_nothing_left_to_train(few: Path, tmp_path: Path, freeze: str, words: str) -> None:
    recipe = replace(short(page("clip").PRESETS["tiny"], str(few)), freeze=freeze + "visual_projection,text_projection" * ("," in freeze))
    with pytest.raises(ValueError, match=words):
        train(recipe, tmp_path / "run", "tiny")


def test_low_rank_updates_learn_beside_frozen_blocks_and_are_merged(few: Path, tmp_path: Path) -> None:
    recipe = replace(short(page("clip").PRESETS["tiny"], str(few), steps=3), lora_rank=2)
    before, folder = started(recipe, tmp_path).state_dict(), tmp_path / "run"
    assert train(recipe, folder, "tiny") == 0
    model = models.load(folder)
    after = model.state_dict()
    blocks = [name for name in after if in_a_block(name) and not name.startswith("adapters.")]
    assert blocks
    assert all(torch.equal(before[name], after[name]) for name in blocks)
    ups = [name for name in after if name.startswith("adapters.") and name.endswith(".B.weight")]
    assert len(ups) == 4 * len({name.rsplit(".", 3)[0] for name in blocks if name.endswith("attn.qkv.weight")})
    assert all(after[name].any() for name in ups)  # every one of them was asked, and has learned
    samples = some_samples(few, 4)
    batch = model.collate(samples)
    with torch.no_grad():
        adapted = model.encode(batch)
        merge(model)
        merged = model.encode(batch)
    for name, feature in adapted.items():
        torch.testing.assert_close(merged[name], feature, atol=1e-5, rtol=1e-5)
    assert not [name for name in model.state_dict() if name.startswith("adapters.")]
    models.save(model, tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(models.load(tmp_path / "merged").encode(batch)["image"], adapted["image"], atol=1e-5, rtol=1e-5)


def test_a_stage_does_not_thaw_what_has_updates(runs: Path, few: Path, tmp_path: Path) -> None:  # noqa: F811
    trained("blip2", runs)
    recipe = replace(page("blip2").PRESETS["tiny"], lora_rank=2)
    assert train(recipe, tmp_path / "run", "tiny", runs, page="blip2") == 0
    state, plain = models.load(tmp_path / "run").state_dict(), models.load(runs / "blip2-tiny-s0").state_dict()
    names = [name for name in state if name.startswith("qformer.layers.") and name.endswith("qkv.weight")]
    assert names
    model = models.load(tmp_path / "run", weights=False)
    assert not [name for name in state if name.startswith(("adapters.visual", "adapters.language"))]  # which the model keeps frozen
    assert all(state[f"adapters.{name.removesuffix('.weight').replace('.', '/')}.B.weight"].any() for name in names)
    assert plain.keys() == {name for name in state if not name.startswith("adapters.")}
    assert (model.adapted["rank"], model.adapted["scale"]) == (2, 2.0)


def built(name: str, **changes: Any) -> tuple[Any, AnyRecipe]:
    """A page's tiny model with updates as its training gives it them, without what it builds on."""
    recipe = replace(page(name).PRESETS["tiny"], lora_rank=2, **changes)
    words = BPETokenizer.train(["a small red star", "two blue circles"], 300)
    config = replace(recipe.model, vocab_size=words.vocab_size)
    model = models.model_of(config)(config, words)
    adapt_stages(model, recipe)
    return model, recipe


def trains(model: models.Model) -> set[str]:
    """The modules with updates that are trained now."""
    updates = {name: each for name, each in model.named_parameters() if name.startswith("adapters.")}
    return {name.split(".")[1].split("/")[0] for name, each in updates.items() if each.requires_grad}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("llava", [set(), {"language"}]),
        ("qwenvl", [{"visual"}, {"visual", "language"}, {"language"}]),
        ("blip2", [{"qformer"}, {"qformer"}]),
    ],
)
def test_updates_are_of_what_any_stage_trains_and_learn_in_that_stage(name: str, stages: list[set[str]], tmp_path: Path) -> None:
    model, recipe = built(name)
    progress = Progress()
    for number, parts in enumerate(stages):
        enter(model, recipe, number, progress)
        assert trains(model) == parts
        assert not [name for name, each in model.named_parameters() if each.requires_grad and in_a_block(name) and "adapters." not in name]
        models.save(model, tmp_path / str(number))
        again = models.load(tmp_path / str(number))  # a run that was interrupted here goes on with it
        assert again.state_dict().keys() == model.state_dict().keys()
        resumed = Progress(stage=number, frozen=list(progress.frozen))
        enter(again, recipe, number, resumed)
        assert trains(again) == parts


def test_frozen_modules_get_no_updates() -> None:
    model, recipe = built("clip", freeze="visual")
    enter(model, recipe, 0, Progress())
    assert trains(model) == {"text"}
    assert not [name for name in model.adapters if name.startswith("visual/")]
    with pytest.raises(ValueError, match="no repeated blocks of linear layers that are trained"):
        built("clip", freeze="visual,text")


@pytest.mark.parametrize(
    "adapted",
    [
        *({"rank": rank, "scale": 2.0, "layers": ["a"]} for rank in (0, 10**9, "2", True)),
        *({"rank": 2, "scale": 2.0, "layers": layers} for layers in ("a", [1], None)),
        *([1], "x", {"rank": 2, "scale": 2.0}, {"rank": 2, "scale": 2.0, "layers": [], "more": 1}),
    ],
)
def test_what_a_run_folder_says_of_updates_is_checked(few: Path, tmp_path: Path, adapted: object) -> None:
    recipe = short(page("clip").PRESETS["tiny"], str(few), steps=1)
    assert train(recipe, tmp_path / "run", "tiny") == 0
    path = tmp_path / "run" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"adapted": adapted}))
    with pytest.raises(FileError, match="adapted is"):
        models.load(tmp_path / "run")


def test_it_is_pefts_update(few: Path) -> None:
    """The same layer, the same A and B, in peft: the same output."""
    peft = pytest.importorskip("peft")
    from models.shared.lora import LoRA

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    torch.manual_seed(0)
    ours, x = Two(), torch.randn(3, 6)
    theirs = peft.inject_adapter_in_model(peft.LoraConfig(r=2, lora_alpha=4, target_modules=["layer"]), Two())
    update = LoRA(6, 5, rank=2, scale=2.0)
    update.B.weight.data.normal_()
    theirs.layer.base_layer.load_state_dict(ours.layer.state_dict())
    theirs.layer.lora_A["default"].load_state_dict(update.A.state_dict())
    theirs.layer.lora_B["default"].load_state_dict(update.B.state_dict())
    update.beside(ours.layer)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-6)
