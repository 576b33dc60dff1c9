"""Values that cannot be are refused with the field, the value, and what was expected."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

import models
from data.fields import FieldError
from data.shards import DataError
from models.frozen import Frozen, FrozenConfig
from models.shared.backbones import LanguageConfig, known_positions
from models.shared.device import resolve_device
from models.shared.ranges import ABOVE_ZERO, ANY, CAN_BE_0, DEPTHS, LAYERS, SHARES, SIZES
from models.shared.text import BPETokenizer
from recipes.train.__main__ import main
from recipes.train.loop import train
from recipes.train.pages import names, page
from recipes.train.progress import Progress
from recipes.train.recipe import AnyRecipe, Log, Optim, Recipe, Stage
from recipes.train.stages import Needed, adopt, constructed
from tests.recipes.conftest import VISION
from tests.recipes.kit import shortened

NUMBERS = ("lr", "weight_decay", "clip_norm", "eps")
BAD_OPTIM: list[tuple[str, Any]] = [(name, value) for name in NUMBERS for value in (-1.0, nan, inf, -inf, 1e300)]
BAD_OPTIM += [("warmup", -1), ("warmup", 1.5), ("clip_norm", 0.0), ("eps", 0.0), ("lr", "fast"), ("muon", 1)]
BAD_OPTIM += [("betas", (0.9, 1.0)), ("betas", (-0.1, 0.9)), ("betas", (nan, 0.9)), ("betas", (0.9,))]
BAD_LOG: list[tuple[str, Any]] = [("every", 0), ("every", -5), ("validate", -1), ("measure", -1), ("wandb", "maybe"), ("every", True)]
BAD_RECIPE: list[tuple[str, Any]] = [("vocab_size", -1), ("vocab_size", 0), ("vocab_size", 258), ("vocab_size", 10**9), ("seed", -1)]
BAD_RECIPE += [("seed", 2**32), ("seed", 0.5), ("workers", -1), ("workers", 10**6), ("memory_gb", -1.0), ("memory_gb", nan)]
BAD_RECIPE += [("save_minutes", nan), ("save_minutes", -1.0), ("shards", -1), ("micro_batch", 0), ("micro_batch", -2), ("micro_batch", 17)]
BAD_RECIPE += [("lora_rank", -1), ("lora_rank", 10**6)]
BAD_RECIPE += [("budget", 0), ("budget", -1), ("batch", 0), ("batch", -16), ("precision", "fp8"), ("data", 3), ("compile", "yes")]


@pytest.mark.parametrize(("name", "value"), BAD_OPTIM)
def test_the_optimisers_fields(name: str, value: Any) -> None:
    changed: Any = {"lr": 0.1, name: value}
    with pytest.raises(FieldError, match=rf"{name} is .*, expected "):
        Optim(**changed)


@pytest.mark.parametrize(("name", "value"), BAD_LOG)
def test_the_logs_fields(name: str, value: Any) -> None:
    changed: Any = {name: value}
    with pytest.raises(FieldError, match=rf"{name} is {value!r}, expected "):
        Log(**changed)


@pytest.mark.parametrize(("name", "value"), BAD_RECIPE)
def test_the_recipes_fields(name: str, value: Any, recipe: AnyRecipe) -> None:
    with pytest.raises(FieldError, match=rf"{name}.* is .*, expected "):
        replace(recipe, **{name: value})


def test_every_number_of_a_recipe_has_a_range() -> None:
    """Or a new field would be forgotten."""
    tried = {name for name, _ in (*BAD_OPTIM, *BAD_LOG, *BAD_RECIPE)}
    for kind in (Recipe, Optim, Log, Stage):
        assert {each.name for each in fields(kind) if str(each.type).split()[0] in ("int", "float")} <= tried, kind


def test_a_warm_up_fits_into_its_stage() -> None:
    assert Stage("train", Optim(lr=0.1, warmup=64), budget=64, batch=8).optim.warmup == 64
    expected = r"expected at most the stage's budget of 64 samples; a smaller budget needs a shorter warm-up"
    with pytest.raises(FieldError, match=rf"optim\.warmup of stage 'train' is 65, {expected}"):
        Stage("train", Optim(lr=0.1, warmup=65), budget=64, batch=8)


def test_a_batch_fits_into_the_data(recipe: AnyRecipe, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=r"batch of stage 'train' is 201, expected at most the 200 samples of scenes-\w+/train"):
        train(shortened(recipe, batch=201, budget=402), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fields", [{"embed_dim": 0}, {"embed_dim": -3}, {"embed_dim": 10**12}])
def test_a_model_that_cannot_be_built(fields: dict[str, int], recipe: AnyRecipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--model"):
        train(replace(recipe, model=replace(recipe.model, **fields)), tmp_path / "run")


def _numbers(config: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(place, value) of every number of a configuration, and of every tuple of numbers."""
    for each in fields(config):
        value, place = getattr(config, each.name), (*where, each.name)
        if is_dataclass(value):
            yield from _numbers(value, place)
        elif type(value) in (int, float) or (isinstance(value, tuple) and value and type(value[0]) in (int, float)):
            yield place, value


def _with(config: Any, place: tuple[str, ...], value: Any) -> Any:
    name, *rest = place
    return replace(config, **{name: _with(getattr(config, name), tuple(rest), value) if rest else value})


@pytest.mark.parametrize("name", [name for name in names() if "tiny" in page(name).PRESETS])
def test_every_number_of_a_model_has_a_range(name: str) -> None:
    recipe = page(name).PRESETS["tiny"]
    for place, value in _numbers(recipe.model):
        number = value[0] if isinstance(value, tuple) else value
        bad = [nan, inf, 1e300, 10**40, *([] if place[-1] in ANY else [-1 if type(number) is int else -0.5])]
        bad += [0] if place[-1] in (*ABOVE_ZERO, "mlp_ratio", "random_crop", *((*SIZES, *LAYERS) if type(number) is int else ())) else []
        bad += [1_000_000_000] if type(number) is int and place[-1] in (*SIZES, *CAN_BE_0, *DEPTHS, *LAYERS, "rank") else []
        bad += [1.5] if place[-1] in (*SHARES, "patch_dropout", "random_crop") else []
        for other in bad:
            changed = (other, *value[1:]) if isinstance(value, tuple) else other
            try:
                model = _with(recipe.model, place, changed)
            except ValueError:  # refused by the configuration itself
                continue
            with pytest.raises(FieldError, match=rf"--model\.{'.'.join(place)}".replace("_", "[-_]") + " is .*, expected "):
                replace(recipe, model=model)


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_divide_the_width(heads: int, recipe: AnyRecipe) -> None:
    with pytest.raises(FieldError, match=rf"--model\.text\.heads is {heads}, expected a divisor of the width, \d+"):
        replace(recipe, model=_with(recipe.model, ("text", "heads"), heads))


@pytest.mark.parametrize("name", ["nonsense", "", "meta", "cuda:x", "cpu cpu", "mps" if sys.platform != "darwin" else "xla", "cuda:63"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"device '?{name}'?: "):
        resolve_device(name)


def test_the_command_says_it_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes.train", "clip", "tiny", "--out", str(tmp_path / "run"), "--log.every", "0"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code
    assert "log.every is 0, expected 1 or more steps" in "".join(capsys.readouterr())


def test_wandb_without_a_key(recipe: AnyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match=r"log\.wandb is 'online', and wandb says: No API key configured.*--log\.wandb offline"):
        train(replace(recipe, log=Log(every=1, validate=0, wandb="online")), tmp_path / "run")


def test_data_without_any_place(recipe: AnyRecipe, tmp_path: Path) -> None:
    with pytest.raises((DataError, FileNotFoundError, ValueError)):
        train(replace(recipe, data=""), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "place", "value", "said"),
    [
        ("flamingo", ("heads",), 7, r"--model\.heads is 7, expected a divisor of the language model's width, 192"),
        ("visualgpt", ("heads",), 7, r"--model\.heads is 7, expected a divisor of the language model's width, 192"),
        ("vcgpt", ("heads",), 7, r"--model\.heads is 7, expected a divisor of the language model's width, 192"),
        ("clipcap", ("heads",), 7, r"--model\.heads is 7, expected a divisor of the language model's width, 192"),
        ("llip", ("heads",), 7, r"--model\.heads is 7, expected a divisor of embed-dim, 128"),
        ("coca", ("pooler_heads",), 7, r"--model\.pooler-heads is 7, expected a divisor of text\.width"),
        ("flamingo", ("every",), 5, r"--model\.every is 5, expected at most the language model's 4 layers"),
        ("frozen", ("language", "heads"), 64, r"--model\.language\.heads is 64, expected an even width of each"),
        ("frozen", ("language", "architecture"), "gpt2", r"architecture is 'gpt2', expected transformers' configuration in JSON"),
        ("frozen", ("vision", "tower"), "{}", r"vision\.tower is '\{\}', expected the name of a tower"),
        ("clip", ("vision", "pool"), "none", r"--model\.vision\.pool is 'none', expected token, avg or map"),
        ("llip", ("vision", "pool"), "avg", r"--model\.vision\.pool is 'avg', expected none"),
        ("clip", ("vision", "width"), 10, r"--model\.vision\.width is 10, expected a multiple of 4"),
        ("clip", ("vision", "image_size"), 8, r"--model\.vision\.image-size is 8, expected a patch of 16 or more"),
        ("align", ("text", "activation"), "squared_relu", r"--model\.text\.activation is 'squared_relu', expected one of BERT's"),
        ("align", ("efficientnet", "width_coefficient"), 1.0, r"--model\.efficientnet\.depth-coefficient is 0\.0, expected 0\.1 to 100"),
    ],
)
def test_values_that_do_not_go_together(name: str, place: tuple[str, ...], value: Any, said: str) -> None:
    model = page(name).PRESETS["tiny"].model
    if place == ("vision", "width"):
        model = _with(model, ("vision", "heads"), 2)
    config = _with(model, place, value)
    with pytest.raises(ValueError, match=said):
        constructed(models.model_of(config), config, BPETokenizer.train(["a red star"], 300))


@pytest.mark.parametrize(
    ("architecture", "limit"),
    [
        ({"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 40}, 40),
        ({"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 1,
          "num_attention_heads": 2, "max_position_embeddings": 40}, 40),
        ({"model_type": "mpt", "d_model": 32, "n_layers": 1, "n_heads": 2, "max_seq_len": 40}, 40),
        ({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
          "max_position_embeddings": 40}, None),
    ],
)  # fmt: skip
def test_texts_fit_into_learned_positions(architecture: dict[str, Any], limit: int | None) -> None:
    tokenizer = BPETokenizer.train(["a red star"], 300)
    language = LanguageConfig(architecture=json.dumps(architecture | {"vocab_size": tokenizer.vocab_size}))

    def build(context: int) -> Any:
        config = FrozenConfig(vision=VISION, language=language, prefix=2, context=context, vocab_size=tokenizer.vocab_size)
        return constructed(Frozen, config, tokenizer)

    assert known_positions(build(38).language) == limit
    if limit is None:
        build(39)
    else:
        with pytest.raises(ValueError, match=r"--model\.context is 39, expected at most the 40 positions of \w+, less 2 for an image"):
            build(39)


def test_a_model_of_other_sizes_than_what_it_builds_on(tmp_path: Path) -> None:
    tokenizer = BPETokenizer.train(["a red star"], 300)
    small = {"width": 32, "depth": 1, "heads": 2, "hidden": 48}
    one, other = (
        FrozenConfig(vision=VISION, language=LanguageConfig(**(small | {"depth": depth})), vocab_size=tokenizer.vocab_size)
        for depth in (1, 2)
    )
    theirs, model = Frozen(one, tokenizer), Frozen(other, tokenizer)
    needed = [Needed("language_model", "lm", page("lm").PRESETS["tiny"], "tiny", tmp_path / "lm-tiny-s0")]
    with pytest.raises(ValueError, match=r"the frozen has other parts than .*lm-tiny-s0 \(language_model\)"):
        adopt(model, needed, {"language_model": theirs}, Progress())
