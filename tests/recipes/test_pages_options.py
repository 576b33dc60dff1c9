"""Options of a page that name another tower, language model or whole weights: what the preset builds on in their place is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.clip import CLIP, CLIPConfig
from models.shared.text import BPETokenizer
from recipes.train.pages import preset, with_options
from recipes.train.progress import Progress
from recipes.train.stages import Needed, adopt

WORDS = BPETokenizer.train(["a small red star"], 300)


@pytest.mark.parametrize(
    ("page", "options", "left", "tokenizer"),
    [
        ("llava", [], ["vision", "language_model"], "language_model"),
        ("llava", ["--model.vision.tower", "X"], ["language_model"], "language_model"),
        ("llava", ["--model.timm-name", "X"], ["language_model"], "language_model"),
        ("llava", ["--model.language.source", "gpt2"], ["vision"], "gpt2"),
        ("llava", ["--weights", "hf:llava"], [], "language_model"),
        ("flamingo", ["--model.language.source", "gpt2", "--model.vision.tower", "X"], [], "gpt2"),
        ("frozen", ["--model.language.source", "small:lm", "--tokenizer", "open_clip"], [], "open_clip"),
        ("lit", ["--model.vision.tower", "X"], [], "train"),
        ("flava", ["--model.vision.tower", "X"], ["image_tokenizer"], "train+questions"),
        ("flava", ["--weights", "hf:flava"], ["image_tokenizer"], "train+questions"),
        ("magic", ["--model.clip-source", "X"], ["language_model"], "language_model"),
        ("clipcap", ["--model.clip-source", "X"], ["language_model"], "language_model"),
        ("minigpt4", ["--model.vision.tower", "X"], ["vision", "language_model"], "language_model"),  # BLIP-2 gives more than a tower
    ],
)
def test_what_is_named_replaces_what_a_preset_builds_on(page: str, options: list[str], left: list[str], tokenizer: str) -> None:
    found = with_options(page, "tiny", options, "test")
    assert ([each.role for each in found.prerequisites], found.tokenizer) == (left, tokenizer)


def test_what_a_preset_names_itself_stays() -> None:
    assert with_options("magic", "real", [], "test").prerequisites == preset("magic", "real").prerequisites


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    tiny = replace(CLIPConfig.tiny(), vocab_size=WORDS.vocab_size)
    model, other = CLIP(tiny, WORDS), CLIP(replace(tiny, vision=replace(tiny.vision, width=80)), WORDS)
    needed = Needed("image_tower", "classifier", preset("lit", "tiny"), "tiny", tmp_path / "classifier-tiny-s0")
    with pytest.raises(
        ValueError, match=r"CLIP with these values of --model.* cannot take over what .*classifier-tiny-s0 .*learned: .*size"
    ):
        adopt(model, [needed], {"image_tower": other}, Progress())
