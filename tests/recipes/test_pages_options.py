"""Options of a page that name another tower, language model or whole weights: what the preset builds on in their place is left out."""

from __future__ import annotations

import pytest

from recipes.train.pages import preset, with_options


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
