"""Sequences read as trees against each read by itself."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from models.contract import IGNORE_INDEX
from models.shared import prefix, tree
from models.shared.backbones import LanguageConfig, language_model
from models.shared.prefix import PADDING, SOFT, right_padded


def test_a_tree_holds_each_beginning_once() -> None:
    (forest,) = tree.forests(["abc", "abd", "ab", "xb"], [0, 0, 0, 0])
    assert "".join(map(str, forest.tokens[0])) == "abcdxb"
    assert forest.depths.tolist() == [[0, 1, 2, 2, 0, 1]]
    assert forest.nodes == [[0, 1, 2], [0, 1, 3], [0, 1], [4, 5]]
    assert [row.nonzero()[:, 0].tolist() for row in forest.sees[0]] == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [4], [4, 5]]


def test_groups_share_nothing_and_come_together_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "PLACES", 6)
    first, second = tree.forests(["ab", "abcd", "abd", "z"], [7, 5, 7, 9])
    assert (first.groups, first.sequences) == ([5], [1])
    assert (second.groups, second.sequences) == ([7, 9], [0, 2, 3])
    assert second.nodes == [[0, 1], [0, 1, 2], [3]]  # the second tree begins after three places
    assert second.sees[1].tolist() == torch.eye(3, dtype=torch.bool).tolist()  # padding looks at itself


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_likelihoods_of_trees_are_those_of_sequences(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "PLACES", 40)  # several forests
    torch.manual_seed(0)
    if architecture == "llama":
        language = language_model(LanguageConfig(width=24, depth=2, heads=2, hidden=32, context=64, vocab_size=5)).eval()
    else:
        language = GPT2LMHeadModel(GPT2Config(vocab_size=5, n_positions=64, n_embd=24, n_layer=2, n_head=2)).eval()
    torch.nn.init.normal_(language.get_input_embeddings().weight)  # far from uniform
    soft, pictures = torch.randn(3, 2, 24), [0, 1, 1, 0, 2, 1, 1, 0]
    rows, labels = [], []
    for number in range(len(pictures)):
        begin = [4, SOFT, SOFT] if number % 3 else [SOFT, 3, SOFT]  # the same picture in other places
        before, said = [number % 2], torch.randint(5, (1 + number % 4,)).tolist()
        rows.append([*begin, *before, *said])
        labels.append([*[IGNORE_INDEX] * (len(begin) + len(before)), *said])
    ids, wanted = right_padded(rows, PADDING), right_padded(labels, IGNORE_INDEX)
    with torch.no_grad():
        expected = -prefix.nll(language, ids, wanted, soft[pictures])[0]
    found = prefix.log_likelihood(language, ids, wanted, soft, pictures)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
