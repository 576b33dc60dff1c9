"""Backbones by name: the architecture is looked up once, the weights when a training begins, and nothing when a run is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig, T5Config, T5ForConditionalGeneration

import models
from models.blip2 import BLIP2Config
from models.clip import CLIP, CLIPConfig
from models.frozen import Frozen, FrozenConfig
from models.lm import LM, LMConfig
from models.shared import backbones
from models.shared.backbones import (
    ROOM,
    Continuation,
    LanguageConfig,
    fetch_language,
    freeze,
    image_tower,
    known,
    language_backbone,
    language_model,
    looked_at,
    named_tower,
)
from models.shared.text import BPETokenizer, HubTokenizer, load_tokenizer, named_tokenizer, save_tokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from tests.hub import connect, disconnect

WORDS = BPETokenizer.train(["a red circle", "how many blue squares are there?"], 300)
TINY = OPTConfig(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    ffn_dim=48,
    vocab_size=320,
    word_embed_proj_dim=32,
    max_position_embeddings=64,
)
NAMED = {
    "gpt2": GPT2Config(),
    "facebook/opt-125m": OPTConfig(),
    "EleutherAI/pythia-410m": GPTNeoXConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=50304
    ),
    "someone/tiny": TINY,
    "google/tiny-t5": T5Config(d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, vocab_size=320),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    return connect(monkeypatch, tmp_path, NAMED, WORDS)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """.runs with a language model and a CLIP that were trained."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    language = LanguageConfig(width=32, depth=2, heads=2, hidden=48, context=64)
    models.save(LM(LMConfig(language=language, vocab_size=WORDS.vocab_size), WORDS), ".runs/lm-tiny-s0")
    small = TransformerConfig(width=32, depth=1, heads=2)
    vision = VisionConfig(width=32, depth=1, heads=2, image_size=32, patch_size=16)
    models.save(CLIP(CLIPConfig(vision=vision, text=small, embed_dim=16, vocab_size=WORDS.vocab_size), WORDS), ".runs/clip-tiny-s0")
    return tmp_path / ".runs"


@pytest.mark.parametrize(
    ("name", "count"), [("gpt2", 124_439_808), ("facebook/opt-125m", 125_239_296), ("EleutherAI/pythia-410m", 405_334_016)]
)
def test_named_language_models_have_their_shapes_without_their_weights(name: str, count: int, asked: list[str]) -> None:
    config = known(LanguageConfig(source=name))
    with torch.device("meta"):
        module = language_model(config)
        assert sum(parameter.numel() for parameter in module.parameters()) == count
    assert asked == [f"config {name}"]
    again = LanguageConfig(**json.loads(json.dumps(asdict(config))))
    assert (again, known(again)) == (config, config)
    assert asked == [f"config {name}"]


def test_weights_are_fetched_frozen_and_only_as_safetensors(asked: list[str]) -> None:
    module, tokenizer = language_backbone("someone/tiny")
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert (tokenizer.start, tokenizer.end) == (2, 2)
    mine = language_model(LanguageConfig(source="someone/tiny"))
    fetch_language(mine, "someone/tiny", tokenizer)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in mine.state_dict().items())
    assert isinstance(language_model(LanguageConfig(source="google/tiny-t5")), T5ForConditionalGeneration)


def test_a_language_model_is_read_with_its_own_tokenizer(asked: list[str]) -> None:
    other = BPETokenizer.train(["question answer shapes"], 320)
    with pytest.raises(ValueError, match="add --tokenizer someone/tiny"):
        fetch_language(language_model(LanguageConfig(source="someone/tiny")), "someone/tiny", other)


@pytest.mark.parametrize("source", ["tiny:lm", ".runs/lm-tiny-s0"])
def test_a_run_of_the_suite_is_a_backbone(source: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disconnect(monkeypatch)
    module, tokenizer = language_backbone(source)
    trained: Any = models.load(runs / "lm-tiny-s0")
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in trained.language.state_dict().items())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert tokenizer.encode("a red circle") == WORDS.encode("a red circle")
    vision = VisionConfig(width=32, depth=1, heads=2, image_size=32, patch_size=16, pool="avg")
    model = Frozen(
        FrozenConfig(vision=vision, language=LanguageConfig(source=source), vocab_size=WORDS.vocab_size), named_tokenizer(source)
    )
    assert model.fetch() == {"language": source}
    models.save(model, "frozen")
    (runs / "lm-tiny-s0" / "model.json").unlink()
    loaded: Any = models.load("frozen")  # stands alone
    assert all(torch.equal(value, loaded.language.state_dict()[name]) for name, value in trained.language.state_dict().items())


def test_runs_that_are_missing_or_no_language_models_are_named(runs: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"small:lm: .runs/lm-small-s0 has no model.json; `make train-lm PRESET=small`"):
        language_backbone("small:lm")
    with pytest.raises(ValueError, match="clip-tiny-s0 contains CLIP, which has no language model"):
        language_backbone("tiny:clip")


def test_out_of_reach_says_what_to_do_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    disconnect(monkeypatch)
    for ask in (lambda: known(LanguageConfig(source="gpt2")), lambda: language_backbone("gpt2")):
        with pytest.raises(ConnectionError, match=r"language model 'gpt2' .* \(no route to host\).*copy the folder here.*make train-lm"):
            ask()
    with pytest.raises(ConnectionError, match="tokenizer 'gpt2' is not in the cache"):
        named_tokenizer("gpt2")
    with pytest.raises(ConnectionError, match=r"image tower 'vit_base_patch16_clip_224.openai' is not in the cache"):
        image_tower("vit_base_patch16_clip_224.openai", weights=True)


def test_what_was_trained_on_a_hub_model_loads_without_the_hub(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = VisionConfig(width=32, depth=1, heads=2, image_size=32, patch_size=16, pool="avg")
    tokenizer = HubTokenizer("someone/tiny")
    config = FrozenConfig(vision=vision, language=LanguageConfig(source="someone/tiny"), vocab_size=tokenizer.vocab_size)
    model = Frozen(config, tokenizer)
    model.fetch()
    models.save(model, tmp_path / "run")
    disconnect(monkeypatch)
    loaded: Any = models.load(tmp_path / "run")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.tokenizer.encode("a blue circle") == tokenizer.encode("a blue circle")


def test_a_hub_tokenizer_is_saved_whole(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = HubTokenizer("google/tiny-t5")
    save_tokenizer(tokenizer, tmp_path)
    disconnect(monkeypatch)
    loaded = load_tokenizer(tmp_path)
    for name in ("name", "vocab_size", "pad", "start", "end"):
        assert getattr(loaded, name) == getattr(tokenizer, name), name
    for text in ("a red circle", "unseen: ß 图", ""):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode([*loaded.encode(text), loaded.end]) == tokenizer.decode(tokenizer.encode(text))


def test_an_image_tower_sees_what_the_last_block_would_read(asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = timm.create_model("test_vit", num_classes=0).eval().to(memory_format=torch.channels_last)
    mine = image_tower("test_vit").eval()
    left = {name: value for name, value in whole.state_dict().items() if name in mine.state_dict()}
    mine.load_state_dict(left)
    pixels = torch.randn(2, 3, 160, 160)
    expected: list[torch.Tensor] = []
    whole.blocks[-1].register_forward_pre_hook(lambda _, args: expected.append(args[0]))
    whole(pixels)
    assert torch.equal(mine.forward_features(pixels), expected[0])
    fetched = image_tower("test_vit.r160_in1k", weights=True)
    torch.manual_seed(1)
    reference = timm.create_model("test_vit", num_classes=0).state_dict()
    assert asked == ["weights timm/test_vit.r160_in1k"]
    assert all(torch.equal(value, reference[name]) for name, value in fetched.state_dict().items())


def test_names_that_are_no_towers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no model 'vit_base_patch16_clip_224.nobody'; it has .*vit_base_patch16_clip_224.laion2b"):
        image_tower("vit_base_patch16_clip_224.nobody")
    with pytest.raises(ValueError, match="'resnet18' is not a vision transformer"):
        image_tower("resnet18")


def test_small_and_paper_name_towers_of_their_shapes() -> None:
    with torch.device("meta"):
        small = image_tower(BLIP2Config.small().timm_name)
        paper = image_tower(BLIP2Config.paper().timm_name)
    assert (small.num_features, len(small.blocks), count(small)) == (768, 11, 85_799_424 - 7_087_872 - 1_536)
    assert (paper.num_features, len(paper.blocks)) == (1408, 39)
    assert count(paper) == pytest.approx(986e6, rel=0.01)


def test_frozen_refuses_an_encoder_decoder(asked: list[str]) -> None:
    with pytest.raises(ValueError, match="google/tiny-t5 is an encoder-decoder"):
        Frozen(replace(FrozenConfig.tiny(), language=LanguageConfig(source="google/tiny-t5")), WORDS)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_tower_looks_in_parts_and_sees_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tower, pixels = freeze(named_tower("test_efficientnet")), torch.randn(5, 3, 64, 64)
    whole = tower(pixels)
    sizes: list[int] = []
    tower.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    monkeypatch.setattr(backbones, "PIXELS", 2 * 64 * 64)
    torch.testing.assert_close(looked_at(tower, pixels), whole, rtol=1e-5, atol=1e-5)
    assert sizes == [2, 2, 1]
    assert looked_at(tower, pixels[:0]).shape == (0, whole.shape[1])


@pytest.mark.parametrize("kind", ["gpt2", "facebook/opt-125m", "EleutherAI/pythia-410m", "llama"])
def test_a_continuation_reads_each_token_once_and_gives_the_logits_of_the_whole(kind: str) -> None:
    """More tokens than there is room for at first; rows that end, and rows that are there twice, as of a beam search."""
    small = {
        "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=128),
        "facebook/opt-125m": replace_in(TINY, vocab_size=50, max_position_embeddings=128),
        "EleutherAI/pythia-410m": GPTNeoXConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=50, max_position_embeddings=128
        ),
        "llama": LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48, vocab_size=50
        ),
    }[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small, attn_implementation="eager", trust_remote_code=False).eval()
    words = model.get_input_embeddings()
    ids = torch.randint(1, 50, (3, 7))
    real = torch.ones(3, 7, dtype=torch.bool)
    real[1, :4] = False
    decoder, logits = Continuation.begin(model, words(ids), real)
    for step in range(ROOM + 9):
        whole = model(input_ids=ids, attention_mask=real.long(), position_ids=(real.cumsum(1) - 1).clamp(min=0)).logits[:, -1]
        torch.testing.assert_close(logits, whole, atol=1e-5, rtol=1e-4)
        if step in (5, ROOM + 2):
            rows = torch.tensor([1, 0, 0])
            decoder.select(rows)
            ids, real = ids[rows], real[rows]
        tokens = torch.randint(1, 50, (3,))
        ids, real = torch.cat([ids, tokens[:, None]], dim=1), torch.cat([real, real.new_ones(3, 1)], dim=1)
        logits = decoder.step(tokens)


def replace_in(config: OPTConfig, **fields: Any) -> OPTConfig:
    return OPTConfig(**{**config.to_dict(), **fields})
