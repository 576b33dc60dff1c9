"""Tokenizers, and how they lay out a batch of texts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import tokenize
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers

import models.shared.text as shared_text
from models.shared.text import (
    BPETokenizer,
    HubTokenizer,
    OpenCLIPTokenizer,
    Tokenizer,
    layout,
    load_tokenizer,
    named_tokenizer,
    place_of_end,
    save_tokenizer,
    until_end,
)
from tests.stand_ins import KINDS

CAPTIONS = ["a red circle", "two blue squares left of a green star", "a small yellow triangle on a black background"]
BPE = BPETokenizer.train(CAPTIONS, 400)
OPEN_CLIP = OpenCLIPTokenizer()
BOTH = pytest.mark.parametrize("tokenizer", [BPE, OPEN_CLIP], ids=["bpe", "open_clip"])


@BOTH
@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_has_ids_and_no_special_ones(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= index < tokenizer.vocab_size for index in ids)
    assert not {tokenizer.start, tokenizer.end} & set(ids)
    assert tokenizer.encode(text) == ids


def test_unseen_characters_are_written_back() -> None:
    text = "zürich 图 🎉 naïve"
    assert BPE.decode(BPE.encode(text)) == text


def test_special_tokens_in_a_caption_are_plain_text(tmp_path: Path) -> None:
    text = "<end> <pad> <start>"
    save_tokenizer(BPE, tmp_path)
    for tokenizer in (BPE, load_tokenizer(tmp_path), pickle.loads(pickle.dumps(BPE))):  # noqa: S301
        assert not {tokenizer.pad, tokenizer.start, tokenizer.end} & set(tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text


@BOTH
def test_layout_keeps_start_and_end(tokenizer: Tokenizer) -> None:
    texts = ["", "a red circle", "a red circle " * 30, "x" * 100_000]
    ids = layout(tokenizer, texts, 12)
    assert ids.shape == (4, 12)
    assert ids.dtype == torch.int64
    assert ids[:, 0].tolist() == [tokenizer.start] * 4
    assert ids[0].tolist() == [tokenizer.start, tokenizer.end] + [tokenizer.pad] * 10
    for row, text in zip(ids.tolist(), texts, strict=True):
        tokens = tokenizer.encode(text)[:10]
        assert row == [tokenizer.start, *tokens, tokenizer.end] + [tokenizer.pad] * (10 - len(tokens))


@BOTH
def test_layout_is_as_long_as_the_longest_text_or_the_context(tokenizer: Tokenizer) -> None:
    texts = ["a circle", "a red circle"]
    trimmed, full = layout(tokenizer, texts, 12), layout(tokenizer, texts, 12, fixed=True)
    assert trimmed.shape[1] == 2 + max(len(tokenizer.encode(text)) for text in texts) < 12
    assert full.shape == (2, 12)
    assert torch.equal(full[:, : trimmed.shape[1]], trimmed)
    assert (full[:, trimmed.shape[1] :] == tokenizer.pad).all()
    assert layout(tokenizer, [], 12).shape[0] == 0


def test_open_clip_layout_is_open_clips() -> None:
    texts = ["", "Two dogs, running!", "a photo of a cat " * 40]
    assert torch.equal(layout(OPEN_CLIP, texts, 77, fixed=True), tokenize(texts))


def test_a_long_text_without_blanks_does_not_take_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its beginning is read: all of it would take minutes."""
    assert shared_text.LONGEST <= 10_000
    monkeypatch.setattr(shared_text, "LONGEST", 1000)
    generator = torch.Generator().manual_seed(0)
    text = "".join(chr(97 + index) for index in torch.randint(26, (100_000,), generator=generator).tolist())
    ids = layout(OPEN_CLIP, [text], 77)
    assert ids.shape == (1, 77)
    assert ids[0, -1] == OPEN_CLIP.end


def test_training_is_deterministic_and_bounded() -> None:
    again = BPETokenizer.train(iter(CAPTIONS), 400)
    assert again.fast.to_str() == BPE.fast.to_str()
    assert BPE.vocab_size <= 400
    assert BPE.encode("A RED circle") == BPE.encode("a red circle")
    assert len(BPE.encode("a red circle")) < len("a red circle")
    with pytest.raises(ValueError, match="no captions"):
        BPETokenizer.train([], 400)


@BOTH
def test_save_and_load(tokenizer: Any, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    _assert_equal(load_tokenizer(tmp_path), tokenizer)


@BOTH
def test_pickling(tokenizer: Any) -> None:
    _assert_equal(pickle.loads(pickle.dumps(tokenizer)), tokenizer)  # noqa: S301 - what a loader's workers do


def test_hub_tokenizer_from_a_folder(tmp_path: Path) -> None:
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "circle": 5}
    fast = FastTokenizer(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "theirs"
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    wrapped.save_pretrained(folder)
    tokenizer = HubTokenizer(str(folder))
    assert (tokenizer.start, tokenizer.end, tokenizer.pad) == (None, 1, 1)
    assert layout(tokenizer, ["a red circle", "a blue"], 6, fixed=True).tolist() == [[3, 4, 5, 1, 1, 1], [3, 2, 1, 1, 1, 1]]  # as SigLIP's
    save_tokenizer(tokenizer, tmp_path)
    _assert_equal(named_tokenizer(str(folder)), tokenizer)
    folder.rename(tmp_path / "gone")
    _assert_equal(load_tokenizer(tmp_path), tokenizer)


STAND_INS = {kind: make(CAPTIONS) for kind, make in KINDS.items()}
ROLES = {  # start, end, padding, mask
    "gpt2": ("<|endoftext|>", "<|endoftext|>", "<|endoftext|>", None),
    "opt": ("</s>", "</s>", "<pad>", None),
    "roberta": ("<s>", "</s>", "<pad>", "<mask>"),
    "bert": ("[CLS]", "[SEP]", "[PAD]", "[MASK]"),
    "mpnet": ("<s>", "</s>", "<pad>", "<mask>"),
    "llama": ("<s>", "</s>", "</s>", None),
    "siglip": (None, "</s>", "</s>", None),
    "qwen": (None, "<|endoftext|>", "<|endoftext|>", None),
}


def stand_in(kind: str, folder: Path) -> HubTokenizer:
    STAND_INS[kind].save_pretrained(folder / kind)
    return HubTokenizer(str(folder / kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_hub_tokenizer_has_its_roles(kind: str, tmp_path: Path) -> None:
    tokenizer = stand_in(kind, tmp_path)
    roles = (tokenizer.start, tokenizer.end, tokenizer.pad, tokenizer.mask)
    assert tuple(None if role is None else tokenizer.inner.convert_ids_to_tokens(role) for role in roles) == ROLES[kind]
    save_tokenizer(tokenizer, tmp_path)
    again: Any = load_tokenizer(tmp_path)
    assert (again.start, again.end, again.pad, again.mask) == roles
    _assert_equal(again, tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_reaches_from_its_start_to_its_end(kind: str, tmp_path: Path) -> None:
    """Also where both are the same token, and where the padding is, too."""
    tokenizer = stand_in(kind, tmp_path)
    said = [*CAPTIONS, "", "a red circle " * 30]
    ids = layout(tokenizer, said, 20)
    real, places = until_end(ids, tokenizer), place_of_end(ids, tokenizer)
    for row, seen, place, text in zip(ids.tolist(), real.tolist(), places.tolist(), said, strict=True):
        whole = [token for token in (tokenizer.start,) if token is not None] + tokenizer.encode(text)
        expected = [*whole[:19], tokenizer.end]
        assert row[: len(expected)] == expected
        assert seen == [True] * len(expected) + [False] * (len(row) - len(expected))
        assert place == len(expected) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_a_text_are_plain_text_for_hub_tokenizers_too(kind: str, tmp_path: Path) -> None:
    tokenizer = stand_in(kind, tmp_path)
    special = {token for token in (tokenizer.start, tokenizer.end, tokenizer.pad, tokenizer.mask) if token is not None}
    said = "a red " + " ".join(word for word in ROLES[kind] if word)
    for each in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):  # noqa: S301
        assert not special & set(each.encode(said))
    save_tokenizer(tokenizer, tmp_path)
    assert not special & set(load_tokenizer(tmp_path).encode(said))


def test_a_tokenizer_without_any_end_is_refused(tmp_path: Path) -> None:
    fast = FastTokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>").save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="neither an end"):
        HubTokenizer(str(tmp_path / "theirs"))


def _assert_equal(found: Any, expected: Any) -> None:
    assert (found.name, found.vocab_size) == (expected.name, expected.vocab_size)
    assert (found.pad, found.start, found.end) == (expected.pad, expected.start, expected.end)
    for text in [*CAPTIONS, "", "unseen: ß 图"]:
        assert found.encode(text) == expected.encode(text)
        assert found.decode(found.encode(text)) == expected.decode(expected.encode(text))
