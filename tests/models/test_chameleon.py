"""Chameleon from a folder that transformers writes: likelihoods, answers, and image tokens in any order of the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import models
from data.sample import Sample
from models.cm3leon.convert import config_from_transformers
from models.published import published
from models.shared.images import HALF, normalise
from tests.models.kit import randomise
from tests.stand_ins import llama

TEXTS = ["a red circle", "Describe this image in one short sentence.", "what is it?"]
WORDS = llama(TEXTS)
CODES = 16
BEGIN, FINISH, TURN, IMAGE = (len(WORDS) + number for number in range(4))
FIRST = BEGIN + 4
PICTURES = [np.random.default_rng(seed).integers(256, size=(32, 32, 3), dtype=np.uint8) for seed in range(2)]


def chameleon() -> Any:
    order = np.random.default_rng(0).permutation(CODES)  # theirs are not in the order of the codes
    names = {"IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z": FIRST + int(order[code]) for code in range(CODES)}
    marks = {"<racm3:break>": BEGIN, "<eoss>": FINISH, "<reserved08706>": TURN, "<image>": IMAGE}
    network = {"resolution": 32, "base_channels": 32, "channel_multiplier": [1, 2, 2, 2], "num_res_blocks": 1, "latent_channels": 32}
    config = transformers.ChameleonConfig(
        vocab_size=FIRST + CODES,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=WORDS.bos_token_id,
        eos_token_id=WORDS.eos_token_id,
        vocabulary_map=names | marks,
        vq_config=network | {"embed_dim": 16, "num_embeddings": CODES},
    )
    theirs = transformers.ChameleonForConditionalGeneration(config)
    randomise(theirs, 0)
    return theirs.eval()


def saved(theirs: Any, folder: Path) -> str:
    theirs.save_pretrained(folder)
    WORDS.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.ChameleonImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)  # with its rounded 2 / 255
    return f"hf:{folder}"


def log_p(theirs: Any, picture: np.ndarray, question: str, answer: str) -> float:
    """Written out: <s> <begin> picture <finish> question <turn> answer </s>."""
    pixels = normalise(torch.from_numpy(picture).permute(2, 0, 1)[None], HALF, HALF)
    asked = [WORDS.bos_token_id, BEGIN, *[IMAGE] * 16, FINISH, *WORDS.encode(question, add_special_tokens=False), TURN]
    told = [*WORDS.encode(answer, add_special_tokens=False), WORDS.eos_token_id]
    ids = torch.tensor([[*asked, *told]])
    with torch.no_grad():
        states = theirs.model(input_ids=ids, pixel_values=pixels).last_hidden_state
        scores: Tensor = theirs.lm_head(states)[0].log_softmax(dim=-1)  # its own forward masks image tokens
    return float(sum(scores[len(asked) - 1 + place, token] for place, token in enumerate(told)))


def test_chameleon(tmp_path: Path) -> None:
    theirs = chameleon()
    ours: Any = published(saved(theirs, tmp_path / "hub"))
    assert ours.without == ()
    images, questions = [PICTURES[0], PICTURES[1], PICTURES[0]], ["what is it?"] * 3
    found = ours.answer_likelihood(images, questions, ["a circle", "a red", "a red circle"])
    expected = [log_p(theirs, *each) for each in zip(images, questions, ["a circle", "a red", "a red circle"], strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    assert float(ours.score(PICTURES[:1], ["a red"])[0]) == pytest.approx(log_p(theirs, PICTURES[0], TEXTS[1], "a red"), abs=1e-3)
    models.save(ours, tmp_path / "run")
    again: Any = models.load(tmp_path / "run")
    assert again.answer(PICTURES, questions[:2]) == ours.answer(PICTURES, questions[:2])
    assert len(again.caption(PICTURES)) == 2


def test_its_loss_is_the_likelihood_of_the_caption(tmp_path: Path) -> None:
    theirs = chameleon()
    ours: Any = published(saved(theirs, tmp_path))
    losses = ours(ours.collate([Sample("a", PICTURES[0], captions=["a red circle"])]))
    tokens = len(WORDS.encode("a red circle", add_special_tokens=False)) + 1
    assert float(losses.total.detach()) == pytest.approx(-log_p(theirs, PICTURES[0], TEXTS[1], "a red circle") / tokens, abs=1e-3)
    losses.total.backward()
    assert not [name for name, each in ours.named_parameters() if each.grad is not None and name.startswith("image_tokenizer.")]


def test_a_vocabulary_without_its_image_tokens_is_refused() -> None:
    config = chameleon().config
    del config.vocabulary_map["<eoss>"]
    with pytest.raises(ValueError, match="no <eoss>"):
        config_from_transformers(config)
    config.vocabulary_map = {name: token for name, token in config.vocabulary_map.items() if not name.startswith("IMGIMGB")}
    with pytest.raises(ValueError, match="expected one for each of the 16 codes"):
        config_from_transformers(config)
