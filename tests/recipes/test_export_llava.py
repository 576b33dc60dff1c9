"""An exported LLaVA: checked by transformers, and what comes back from the folder is the model again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from transformers import AutoProcessor, LlavaForConditionalGeneration

import models
from models.llava import LLaVA, LLaVAConfig, QwenVL, QwenVLConfig
from models.llava.model import SYSTEM
from models.published import published
from models.shared.backbones import LanguageConfig
from models.shared.chat import Turn
from models.shared.lora import adapt
from models.shared.prefix import SOFT
from models.shared.text import BPETokenizer, HubTokenizer
from models.shared.vision import VisionConfig
from recipes.tools.export import export
from tests.models.kit import assert_close, randomise
from tests.recipes.test_export import saved
from tests.stand_ins import byte_level, gpt2

TEXTS = ["a small red star", "two people walk along the beach", f"{SYSTEM}USER: \nWhat is it? Describe this. ASSISTANT: one word</s>"]
WORDS = BPETokenizer.train(TEXTS, 300)
VISION = VisionConfig(width=32, depth=3, heads=2, image_size=32, patch_size=16, pre_norm=True, activation="quick_gelu")
LANGUAGE = LanguageConfig(width=32, depth=2, heads=2, hidden=64, context=512)
PICTURES = [np.random.default_rng(seed).integers(256, size=(32, 32, 3), dtype=np.uint8) for seed in range(2)]


def llava(tokenizer: Any = WORDS, **changes: Any) -> LLaVA:
    config = LLaVAConfig(vision=VISION, language=LANGUAGE, context=100, vocab_size=tokenizer.vocab_size)
    return LLaVA(replace(config, **changes), tokenizer)


@pytest.mark.parametrize("states", ["penultimate", "last"])
def test_there_and_back(tmp_path: Path, states: Any) -> None:
    run = saved(llava(states=states), tmp_path / "run")
    assert [check.what for check in export(run, "transformers", tmp_path / "out")] == ["logits of a reply"]
    ours: Any = models.load(run)
    again: Any = published(f"hf:{tmp_path / 'out'}")
    assert (again.config.states, again.config.vision.depth) == (states, 3)
    assert_close(again.look(PICTURES), ours.look(PICTURES), "vectors of images")
    assert_close(again.score(PICTURES, TEXTS[:2]), ours.score(PICTURES, TEXTS[:2]), "scores")


def test_its_processor_writes_conversations_as_ours(tmp_path: Path) -> None:
    """And what it generates then is what ours replies, cut at the same length."""
    run = saved(llava(), tmp_path / "run")
    export(run, "transformers", tmp_path / "out")
    ours: Any = models.load(run)
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", trust_remote_code=False).eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out", trust_remote_code=False)
    first = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    later = [{"role": "assistant", "content": "a star"}, {"role": "user", "content": "Describe this."}]
    for messages, turns in (([first], []), ([first, *later], [Turn("What is it?", "a star")])):
        request = messages[-1]["content"] if turns else "What is it?"
        text = processor.apply_chat_template(messages)
        asked = processor(images=[PICTURES[0]], text=[text], return_tensors="pt")
        row = ours.template.before_reply(turns, request)
        assert asked.input_ids[0].tolist() == [theirs.config.image_token_id if token == SOFT else token for token in row]
        written = theirs.generate(**asked, do_sample=False, max_new_tokens=100)[0, len(row) :]
        expected = ours.reply([PICTURES[0]], [request], before=[turns])[0].text
        assert WORDS.decode([token for token in written.tolist() if token != WORDS.end]) == expected


def test_a_vocabulary_without_padding_of_its_own_takes_another_token_that_no_text_has(tmp_path: Path) -> None:
    roles = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    words = byte_level(TEXTS, "<|endoftext|>", "<|im_start|>", "<|im_end|>", **roles)
    words.save_pretrained(tmp_path / "words")
    run = saved(llava(HubTokenizer(str(tmp_path / "words"))), tmp_path / "run")
    export(run, "transformers", tmp_path / "out")
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", trust_remote_code=False)
    assert theirs.config.image_token_id == words.unk_token_id
    ours, again = models.load(run), published(f"hf:{tmp_path / 'out'}")
    assert_close(again.score(PICTURES, TEXTS[:2]), ours.score(PICTURES, TEXTS[:2]), "scores")  # type: ignore[attr-defined]


def test_a_tower_of_timm_as_presets_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP's, but small: timm builds it, and the configuration does not say its sizes."""
    name = "vit_base_patch16_clip_quickgelu_224"
    options = {"img_size": 32, "depth": 3, "embed_dim": 32, "num_heads": 2}
    build = timm.create_model
    monkeypatch.setattr("models.shared.backbones.timm.create_model", lambda name, **how: build(name, **(how | options)))
    run = saved(llava(timm_name=name), tmp_path / "run")
    export(run, "transformers", tmp_path / "out")
    again: Any = published(f"hf:{tmp_path / 'out'}")
    assert again.config.vision.activation == "quick_gelu"
    assert_close(again.look(PICTURES), models.load(run).look(PICTURES), "vectors of images")  # type: ignore[attr-defined]


@pytest.mark.parametrize("own", [True, False], ids=["--model.rank", "--lora-rank"])
def test_updates_are_merged(tmp_path: Path, own: bool) -> None:
    model = llava(rank=2 if own else 0)
    if not own:
        model.enter_stage("tune")
        adapt(model, rank=2)
    run = saved(model, tmp_path / "run")
    export(run, "transformers", tmp_path / "out")
    assert not [name for name in published(f"hf:{tmp_path / 'out'}").state_dict() if "lora" in name or "adapters" in name]


def test_what_transformers_cannot_hold_is_said(tmp_path: Path) -> None:
    gpt = gpt2(TEXTS)
    gpt.save_pretrained(tmp_path / "gpt2")
    hub = HubTokenizer(str(tmp_path / "gpt2"))
    written = '{"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 256}'
    words = BPETokenizer.train(TEXTS, 300)
    small = {"language": LANGUAGE, "context": 12, "vocab_size": words.vocab_size, "heads": 4}
    cases: list[tuple[Any, str]] = [
        (llava(vision=replace(VISION, stem="conv")), "begins with convolutions"),
        (llava(vision=replace(VISION, pool="avg")), "a class token and a norm before its blocks"),
        (llava(vision=replace(VISION, pre_norm=False)), "a class token and a norm before its blocks"),
        (llava(vision=replace(VISION, activation="squared_relu")), "no activation SquaredReLU"),
        (llava(bridge=1), "two linear layers .* this one 1"),
        (llava(hub), "a token of its own, and the tokenizer .* has none"),
        (llava(hub, language=LanguageConfig(architecture=written)), "a Llama's layout, and this one a GPT2LMHeadModel"),
        (QwenVL(replace(QwenVLConfig.tiny(), **small), words), "no QwenVL of this kind"),
    ]
    for number, (model, message) in enumerate(cases):
        randomise(model, 0)
        with pytest.raises(ValueError, match=f"cannot be written for transformers: .*{message}"):
            export(saved(model, tmp_path / str(number)), "transformers", tmp_path / "out")
        assert not (tmp_path / "out").exists()
