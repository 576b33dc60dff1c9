from __future__ import annotations

import numpy as np
import pytest
import torch

from models.contract import IGNORE_INDEX
from models.shared.masking import TokenMasking, block_mask, random_mask
from models.shared.text import BPETokenizer, layout

TEXTS = ["a large solid red star above a small hollow blue moon", "a circle", "", "unbelievable zebras", "a striped heart and a cross " * 9]


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train([*TEXTS[:2], TEXTS[4]], 400)


@pytest.mark.parametrize("make", [random_mask, block_mask])
@pytest.mark.parametrize(("side", "count"), [(14, 75), (8, 26), (8, 0), (8, 64), (2, 3), (1, 1), (1, 0)])
def test_exactly_as_many_patches_as_asked(make: object, side: int, count: int) -> None:
    """Ratio 0 and ratio 1 included, and grids smaller than a block."""
    rng = np.random.default_rng(0)
    masks = [make(side, count, rng) for _ in range(20)]  # type: ignore[operator]
    assert all(mask.shape == (side, side) and mask.sum() == count for mask in masks)
    if 0 < count < side * side:
        assert len({mask.tobytes() for mask in masks}) > 1
    assert np.array_equal(make(side, count, np.random.default_rng(7)), make(side, count, np.random.default_rng(7)))  # type: ignore[operator]


@pytest.mark.parametrize("count", [-1, 65])
def test_more_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="of 8 x 8 patches"):
        block_mask(8, count, np.random.default_rng(0))


def test_blocks_are_blocks() -> None:
    """Masked patches have far more masked neighbours than scattered ones have."""

    def neighbours(mask: np.ndarray) -> int:
        return int((mask[1:] & mask[:-1]).sum() + (mask[:, 1:] & mask[:, :-1]).sum())

    rng = np.random.default_rng(0)
    blocks = np.mean([neighbours(block_mask(14, 75, rng)) for _ in range(50)])
    scattered = np.mean([neighbours(random_mask(14, 75, rng)) for _ in range(50)])
    assert blocks > 1.6 * scattered


def test_texts_stay_themselves_and_labels_are_what_was_hidden(tokenizer: BPETokenizer) -> None:
    mask = tokenizer.vocab_size
    for whole_words in (False, True):
        ids, seen, labels = TokenMasking(0.3, whole_words)(tokenizer, TEXTS, 32, mask=mask, rng=np.random.default_rng(0))
        assert torch.equal(ids, layout(tokenizer, TEXTS, 32))
        asked = labels != IGNORE_INDEX
        assert torch.equal(labels[asked], ids[asked])
        assert torch.equal(seen[~asked], ids[~asked])
        special = (ids == tokenizer.pad) | (ids == tokenizer.start) | (ids == tokenizer.end)
        assert not (asked & special).any()
        assert asked.any(dim=1).tolist() == [True, True, False, True, True]


def test_words_are_hidden_whole(tokenizer: BPETokenizer) -> None:
    mask = tokenizer.vocab_size
    masking = TokenMasking(0.1, whole_words=True, mask_share=1.0, random_share=0.0)
    tokens = [tokenizer.encode(word) for word in TEXTS[3].split()]
    assert len(tokens[0]) > 3
    rng, found = np.random.default_rng(0), set()
    for _ in range(20):
        _, seen, _ = masking(tokenizer, TEXTS[3:4], 64, mask=mask, rng=rng)
        first = (seen[0, 1 : 1 + len(tokens[0])] == mask).tolist()
        assert all(first) or not any(first)
        found.add(first[0])
    assert found == {True, False}


def test_shares_are_berts(tokenizer: BPETokenizer) -> None:
    mask, rng = tokenizer.vocab_size, np.random.default_rng(0)
    ids, seen, labels = TokenMasking()(tokenizer, [TEXTS[0]] * 4000, 32, mask=mask, rng=rng)
    asked = labels != IGNORE_INDEX
    length = len(tokenizer.encode(TEXTS[0]))
    assert asked.sum() == 4000 * round(0.15 * length)
    assert (seen[asked] == mask).float().mean() == pytest.approx(0.8, abs=0.02)
    assert ((seen[asked] != mask) & (seen[asked] != ids[asked])).float().mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_at_the_ends(tokenizer: BPETokenizer, rate: float) -> None:
    mask = tokenizer.vocab_size
    masking = TokenMasking(rate, mask_share=1.0, random_share=0.0)
    _, seen, labels = masking(tokenizer, TEXTS[:2], 32, mask=mask, rng=np.random.default_rng(0))
    expected = sum(len(tokenizer.encode(text)) for text in TEXTS[:2]) if rate else 0
    assert (labels != IGNORE_INDEX).sum() == (seen == mask).sum() == expected


def test_impossible_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="expected two shares with a sum of at most 1"):
        TokenMasking(mask_share=0.8, random_share=0.3)
