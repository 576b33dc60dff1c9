"""Frozen has no reference implementation: its loss is transformers' own on the same embeddings, and its invariants are the paper's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.contract import IGNORE_INDEX
from models.frozen import Frozen, FrozenConfig
from models.lm import LM, LMConfig
from models.lm.corpus import documents
from models.shared.backbones import LanguageConfig
from models.shared.prefix import PADDING, SOFT, embed, left_padded, right_padded
from models.shared.text import BPETokenizer
from tests.models.kit import assert_close, tokenizer

LANGUAGE = LanguageConfig(width=32, depth=2, heads=2, hidden=48)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(16)]


@pytest.fixture(scope="module")
def words(samples: list[Sample]) -> BPETokenizer:
    return BPETokenizer.train([text for sample in samples for text in documents([sample], np.random.default_rng(0))], 500)


def build(words: BPETokenizer, **changes: object) -> Frozen:
    torch.manual_seed(0)
    model = Frozen(replace(FrozenConfig.tiny(), vocab_size=words.vocab_size, language=LANGUAGE, **changes), words)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def test_the_loss_is_transformers_on_prefix_and_text(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    batch = model.collate(samples, np.random.default_rng(0))
    losses = model(batch)
    reference = model.language(
        inputs_embeds=embed(model.language, batch["ids"], model._see(batch["pixels"])),
        attention_mask=(batch["ids"] != PADDING).long(),
        labels=batch["labels"],
    )
    assert_close(losses.total, reference.loss, "loss")


def test_captions_and_answers_are_said_and_nothing_else(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    batch = model.collate(samples, np.random.default_rng(0))
    kinds = set()
    for sample, ids, labels in zip(samples, batch["ids"].tolist(), batch["labels"].tolist(), strict=True):
        assert ids[:2] == [SOFT, SOFT]
        said = words.decode([token for token in labels if token not in (IGNORE_INDEX, words.end)])
        read = words.decode([token for token, label in zip(ids, labels, strict=True) if label == IGNORE_INDEX and token >= 0])
        assert labels[len([token for token in ids if token != PADDING]) - 1] == words.end
        if read:
            assert (read, said) in {(f"question: {each.question} answer:", each.answer) for each in sample.questions}
        else:
            assert said in sample.captions
        kinds.add(bool(read))
    assert kinds == {True, False}


def test_only_the_image_side_learns_and_the_language_model_stays_bitwise(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    before = {name: value.clone() for name, value in model.language.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    for step in range(3):
        model(model.collate(samples, np.random.default_rng(step))).total.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("language."), name
    assert all(torch.equal(before[name], value) for name, value in model.language.state_dict().items())


def test_a_tuned_language_model_learns(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words, tune_language=True)
    model(model.collate(samples, np.random.default_rng(0))).total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_it_takes_over_a_trained_language_model(words: BPETokenizer) -> None:
    source = LM(LMConfig(language=LANGUAGE, vocab_size=words.vocab_size), words)
    model = build(words)
    model.adopt({"language_model": source})
    assert all(torch.equal(value, model.language.state_dict()[name]) for name, value in source.language.state_dict().items())


def test_blind_models_see_one_picture(words: BPETokenizer, samples: list[Sample]) -> None:
    seeing, blind = build(words), build(words, blind=True)
    pixels = blind.collate.transform([sample.image for sample in samples[:2]])
    assert torch.equal(*blind._see(pixels).unbind())
    assert not torch.allclose(*seeing._see(pixels).unbind(), atol=1e-3)


def test_writing_is_greedy_and_the_same_in_any_batch(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    images = [sample.image for sample in samples[:4]]
    captions = model.caption(images)
    assert captions == [text for image in images for text in model.caption([image])]
    soft = model.look(images[:1])
    ids: list[int] = []
    for _ in range(model.config.context):
        with torch.no_grad():
            row = torch.tensor([[SOFT, SOFT, *ids]])
            logits = model.language(inputs_embeds=embed(model.language, row, soft)).logits[0, -1]
        logits[[words.pad, words.start]] = float("-inf")
        if int(logits.argmax()) == words.end:
            break
        ids.append(int(logits.argmax()))
    assert captions[0] == words.decode(ids)


def test_images_may_stand_anywhere_in_a_prompt(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    a, b = samples[0].image, samples[1].image
    prompts = [["this is a dax. ", a, "this is a wug. ", b, "what is this?"], [a], ["no picture at all"], []]
    together = model.complete(prompts)
    assert together == [text for prompt in prompts for text in model.complete([prompt])]
    exchanged = model.look([a, b]), model.look([b, a])
    assert not torch.allclose(*exchanged)
    assert model.answer([a], ["what?"]) == model._write([[a, "\nquestion: what? answer:"]])


def test_likelihoods_add_up_token_by_token(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    image, question, answer = samples[0].image, "how many objects are there?", "two"
    read, said = model.collate.question(question), [*words.encode(answer), words.end]
    soft, expected, row = model.look([image]), 0.0, [SOFT, SOFT, *read]
    for token in said:
        with torch.no_grad():
            logits = model.language(inputs_embeds=embed(model.language, torch.tensor([row]), soft)).logits[0, -1]
        expected += float(logits.log_softmax(-1)[token])
        row.append(token)
    found = model.answer_likelihood([image, samples[1].image], [question] * 2, [answer, "a very long answer indeed"])
    assert float(found[0]) == pytest.approx(expected, abs=1e-4)
    assert model.score([image], [samples[0].captions[0]])[0] < 0


def test_paper_trains_40_million_parameters() -> None:
    with torch.device("meta"):
        model = Frozen(FrozenConfig.paper(), tokenizer(pad=0, end=2))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == pytest.approx(40.3e6, rel=0.01)
    assert sum(parameter.numel() for parameter in model.language.parameters()) == pytest.approx(6.6e9, rel=0.05)


def test_vectors_and_places_have_to_agree() -> None:
    from models.shared.backbones import language_model

    language = language_model(replace(LANGUAGE, vocab_size=20))
    with pytest.raises(ValueError, match="3 vectors for 2 places"):
        embed(language, torch.tensor([[SOFT, 3, SOFT]]), torch.randn(3, 32))
    assert right_padded([[1], [1, 2]]).tolist() == [[1, PADDING], [1, 2]]
    assert left_padded([[1], [1, 2]]).tolist() == [[PADDING, 1], [1, 2]]
    assert right_padded([]).shape == (0, 0)
