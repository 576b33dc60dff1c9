"""Trainings on frozen backbones, through the real entry: where these come from, that they stay as they are, and what they have read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import OPTConfig, T5Config

import models
import recipes.train.loop
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS as WORLDS
from data.shards import find, write_index, write_shard
from data.texts import texts
from models.blip2 import BLIP2, BLIP2Config
from models.frozen import Frozen, FrozenConfig
from models.lm import LMConfig
from models.shared.backbones import LanguageConfig, language_model
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from recipes import blip2, frozen, lm
from recipes.train.loop import train
from recipes.train.recipe import AnyRecipe, Log, Optim, Stage
from tests.data.kit import encode, picture
from tests.hub import connect, disconnect
from tests.recipes.kit import shortened
from tests.recipes.test_train import events, steps

VISION = VisionConfig(width=32, depth=1, heads=2, activation="relu", image_size=64, patch_size=16, stem="conv", pool="avg")
QFORMER = TransformerConfig(width=32, depth=2, heads=2)
OPT = OPTConfig(
    hidden_size=32,
    word_embed_proj_dim=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    ffn_dim=48,
    vocab_size=310,
    max_position_embeddings=99,
)
HUB = {"someone/opt": OPT, "someone/t5": T5Config(d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, vocab_size=310)}
SMALL = LanguageConfig(width=32, depth=2, heads=2, hidden=64)


def short(recipe: AnyRecipe, scenes: Path, **changes: Any) -> AnyRecipe:
    where: dict[str, Any] = {"data": str(scenes), "device": "cpu", "precision": "fp32", "log": Log(every=1, validate=0)}
    return shortened(recipe, prerequisites=(), **where, **changes)


def frozen_recipe(scenes: Path) -> AnyRecipe:
    model = replace(FrozenConfig.tiny(), vision=VISION, language=LanguageConfig(source="someone/opt"))
    return short(frozen.PRESETS["tiny"], scenes, model=model, tokenizer="someone/opt", budget=48, batch=16)


def blip2_recipe(scenes: Path, source: str) -> AnyRecipe:
    model = replace(
        BLIP2Config.tiny(), timm_name="test_vit.r160_in1k", vision=replace(VISION, image_size=160), qformer=QFORMER, queries=4, embed_dim=16
    )
    stages = (Stage("represent", Optim(lr=1e-3), budget=16, batch=8), Stage("generate", Optim(lr=1e-3), budget=16, batch=8))
    return short(
        blip2.PRESETS["tiny"], scenes, model=replace(model, language=LanguageConfig(source=source)), tokenizer=source, stages=stages
    )


@pytest.fixture
def asked(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return connect(monkeypatch, tmp_path, HUB, BPETokenizer.train(texts(find(str(scenes), "train"), limit=200, questions=True), 300))


@pytest.mark.parametrize("name", ["frozen", "blip2 with a decoder", "blip2 with an encoder-decoder"])
def test_backbones_of_the_hub_are_fetched_once_and_stay_as_they_are(
    name: str, asked: list[str], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "someone/t5" if "encoder" in name else "someone/opt"
    recipe = frozen_recipe(scenes) if name == "frozen" else blip2_recipe(scenes, source)
    assert train(recipe, tmp_path / "run") == 0
    assert asked.count(f"weights {source}") == 1
    begun = events(tmp_path / "run", "stage")
    for event in begun:
        rows = {line.split()[0]: line.split() for line in event["message"].splitlines()[1:]}
        assert rows["language"][1:3] == [source, "frozen"]
        assert int(rows["language"][3].replace(",", "")) == sum(
            p.numel() for p in language_model(LanguageConfig(source=source)).parameters()
        )
        if name != "frozen":
            assert rows["visual"][1:3] == ["test_vit.r160_in1k", "frozen"]
        else:
            assert rows["visual"][1:4] == ["from", "scratch", "trained"]
    trained: Any = models.load(tmp_path / "run")
    torch.manual_seed(len(source))
    fetched = type(trained.language)(trained.language.config).state_dict()
    assert all(torch.equal(value, fetched[key]) for key, value in trained.language.state_dict().items())
    assert all(0 < step["grad_norm"] < float("inf") for step in steps(tmp_path / "run"))

    disconnect(monkeypatch)  # what was trained needs no hub: neither to be used nor to be resumed
    picture = np.zeros((20, 30, 3), np.uint8)
    assert len(models.load(tmp_path / "run").caption([picture])) == 1  # type: ignore[operator]
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    (tmp_path / "run" / "cost.json").write_text(json.dumps(cost | {"finished": False}))
    assert train(recipe, tmp_path / "run") == 0


def test_what_is_out_of_reach_is_said_before_anything_is_trained(
    asked: list[str], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disconnect(monkeypatch)
    with pytest.raises(ConnectionError, match=r"someone/opt.*copy the folder here"):
        train(frozen_recipe(scenes), tmp_path / "run")
    assert not (tmp_path / "run" / "model.json").exists()


def test_another_language_models_tokenizer_is_refused(asked: list[str], scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="add --tokenizer someone/opt"):
        train(replace(frozen_recipe(scenes), tokenizer="train"), tmp_path / "run")


def test_the_language_model_reads_the_training_split_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every split says a word of its own; validation is measured on val, and nothing is learned from it."""
    said = {"train": "quince", "val": "vulture", "test": "tamarind"}
    for split, word in said.items():
        samples = [Sample(f"{n:06d}", picture(n), captions=(f"a {word} dot", f"some {word}")) for n in range(24)]
        shard = write_shard(tmp_path / "data" / split / "00000.tar", ((sample, "png", encode(sample.image)) for sample in samples))
        write_index(tmp_path / "data" / split, name="words", split=split, shards=[shard])
    read: list[str] = []

    def backward(model: Any, batch: dict[str, torch.Tensor], **options: Any) -> Any:
        read.extend(model.tokenizer.decode(row) for row in batch["ids"].tolist())
        return real(model, batch, **options)

    real = recipes.train.loop.backward
    monkeypatch.setattr(recipes.train.loop, "backward", backward)
    recipe = short(lm.PRESETS["tiny"], tmp_path / "data", model=LMConfig(language=SMALL, context=32), budget=32, batch=8)
    assert train(replace(recipe, log=Log(every=1, validate=8)), tmp_path / "run") == 0
    assert events(tmp_path / "run", "validate")
    assert len(read) == 32
    assert all(said["train"] in text for text in read if text)
    tokenizer: Any = models.load(tmp_path / "run").tokenizer
    assert len(tokenizer.encode(said["train"])) == 1
    assert min(len(tokenizer.encode(said[split])) for split in ("val", "test")) > 3
    assert not any(said[split] in text for text in read for split in ("val", "test"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_16_pairs_are_learned_by_heart() -> None:
    """The frozen language model knows the 16 captions, and not which of them it is to say: only the image can tell."""
    samples = [make_sample(WORLDS["tiny"], "train", index) for index in range(16)]
    samples = [replace(sample, captions=sample.captions[:1], questions=()) for sample in samples]
    words = BPETokenizer.train([sample.captions[0] for sample in samples], 400)
    torch.manual_seed(0)
    language = LanguageConfig(width=64, depth=2, heads=2, hidden=128)
    config = replace(FrozenConfig.tiny(), vision=VISION, language=language, prefix=8, questions=0.0, vocab_size=words.vocab_size)
    reader = Frozen(replace(config, tune_language=True, blind=True), words)
    blindly = fit(reader, samples, lr=3e-3, most=150)
    lengths = [len(words.encode(sample.captions[0])) + 1 for sample in samples]
    uncertain = math.log(16) / np.mean(lengths)  # nats per token of a caption that is one of 16
    assert blindly == pytest.approx(uncertain, abs=0.05)

    model = Frozen(config, words)
    model.adopt({"language_model": reader})
    assert fit(model, samples, lr=4e-3, until=uncertain / 5) < uncertain / 5
    written = model.eval().caption([sample.image for sample in samples])
    assert sum(text == sample.captions[0] for text, sample in zip(written, samples, strict=True)) >= 12

    sizes: dict[str, Any] = {"vision": VISION, "qformer": QFORMER, "queries": 4, "embed_dim": 32, "language": language}
    asker = BLIP2(replace(BLIP2Config.tiny(), **sizes, vocab_size=words.vocab_size), words)
    asker.adopt({"vision": model, "language_model": reader})
    asker.enter_stage("represent")
    fit(asker, samples, lr=3e-3, most=240)
    terms = asker(asker.collate(samples)).terms
    floors = {"itc": smoothed(16), "itm": 0.0, "itg": smoothed(words.vocab_size + 1)}
    for name, floor in floors.items():
        assert floor - 1e-3 < terms[name].item() < floor + 0.15, name
    asker.enter_stage("generate")
    assert fit(asker, samples, lr=3e-3, until=uncertain / 5) < uncertain / 5


def smoothed(classes: int) -> float:
    """The least that a cross-entropy can be whose labels are smoothed by 0.1."""
    right, wrong = 0.9 + 0.1 / classes, 0.1 / classes
    return -right * math.log(right) - (classes - 1) * wrong * math.log(wrong)


def fit(model: Any, samples: list[Sample], *, lr: float, most: int = 800, until: float = 0.0) -> float:
    """The last loss of `most` steps on one batch, fewer where it falls below `until`. What is frozen is unchanged and without a
    gradient, everything else has one."""
    before = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    batch = model.collate(samples)
    for _ in range(most):
        loss = model(batch).total
        if loss.item() < until:
            break
        loss.backward()
        assert all((p.grad is None) == (name in before) for name, p in model.named_parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in before.items())
    return loss.item()
