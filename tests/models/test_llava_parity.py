"""Our LLaVA computes what transformers' `LlavaForConditionalGeneration` computes: states, loss, logits, gradients, and what is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from models.llava import LLaVA
from models.llava.convert import config_from_transformers, from_transformers, to_transformers
from models.shared.chat import Row, Turn, laid_out, packed
from models.shared.images import OPENAI_MEAN, OPENAI_STD, normalise
from models.shared.prefix import PADDING, SOFT, embed, left_padded
from models.shared.text import BPETokenizer
from tests.models.kit import assert_close, pictures, randomise

CONVERSATIONS = (
    [Turn("what do you see?", "a small red star"), Turn("how many objects are there?", "1")],
    [Turn("describe this picture.", "two large blue circles above a green moon, and nothing else")],
    [Turn("is there a star?", ""), Turn("and a moon?", "no"), Turn("so what is there?", "a circle")],
)


@pytest.fixture(scope="module")
def words() -> BPETokenizer:
    return BPETokenizer.train([text for turns in CONVERSATIONS for turn in turns for text in turn], 300)


def reference(words: BPETokenizer, layer: int) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        hidden_act="quick_gelu",
    )
    text = LlamaConfig(
        vocab_size=words.vocab_size + 1,  # one more stands for the image
        hidden_size=40,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=False,
        pad_token_id=words.pad,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=words.vocab_size, vision_feature_layer=layer)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    randomise(model, 0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name)
    return model


def build(words: BPETokenizer, theirs: LlavaForConditionalGeneration) -> LLaVA:
    config = replace(config_from_transformers(theirs.config), context=20)
    model = LLaVA(config, words)
    model.load_state_dict(from_transformers(theirs.state_dict(), config))
    model.enter_stage("tune")
    return model.eval()


@pytest.fixture(scope="module", params=[-2, -1])
def theirs(request: pytest.FixtureRequest, words: BPETokenizer) -> LlavaForConditionalGeneration:
    return reference(words, request.param)


@pytest.fixture
def ours(words: BPETokenizer, theirs: LlavaForConditionalGeneration) -> LLaVA:
    return build(words, theirs)


def rows(model: LLaVA, kind: str) -> list[Row]:
    if kind == "captions":
        return [model.template.caption(turns[0].reply) for turns in CONVERSATIONS]
    return [model.template.conversation(turns) for turns in CONVERSATIONS]


def asked(model: LLaVA, ids: Tensor, images: Tensor) -> dict[str, Tensor]:
    """The same sequences and pictures as transformers takes them."""
    places = ids.masked_fill(ids == SOFT, model.tokenizer.vocab_size).masked_fill(ids == PADDING, model.tokenizer.pad)
    return {
        "pixel_values": normalise(images, OPENAI_MEAN, OPENAI_STD),
        "input_ids": places,
        "attention_mask": (ids != PADDING).long(),
    }


@pytest.mark.parametrize("kind", ["captions", "conversations"])
def test_loss_logits_and_gradients_are_transformers(kind: str, ours: LLaVA, theirs: LlavaForConditionalGeneration) -> None:
    batch, images = laid_out(rows(ours, kind)), pictures(3, 28)
    ids = batch["ids"]
    assert (ids == PADDING).any()
    losses = ours({"pixels": images, **{name: values[:, None] for name, values in batch.items()}})
    theirs.zero_grad()
    out = theirs(**asked(ours, ids, images), labels=batch["labels"])
    assert_close(losses.total, out.loss, "loss")
    soft, real = ours._see(images), ids != PADDING
    logits = ours.language(inputs_embeds=embed(ours.language, ids, soft), attention_mask=real.long()).logits
    assert_close(logits[real], out.logits[real], "logits")
    _same_gradients(ours, theirs, losses.total, out.loss)


def test_several_conversations_about_an_image_are_as_many_sequences_of_transformers(
    ours: LLaVA, theirs: LlavaForConditionalGeneration
) -> None:
    """Packed, they share what they begin with; transformers sees the image again for each. One image has two of them, the other one."""
    texts, images = rows(ours, "conversations"), pictures(2, 28)
    losses = ours({"pixels": images, **packed([texts[:2], texts[2:]])})
    batch = laid_out(texts)
    theirs.zero_grad()
    out = theirs(**asked(ours, batch["ids"], images[[0, 0, 1]]), labels=batch["labels"])
    assert_close(losses.total, out.loss, "loss")
    _same_gradients(ours, theirs, losses.total, out.loss)


def _same_gradients(ours: LLaVA, theirs: LlavaForConditionalGeneration, loss: Tensor, reference_loss: Tensor) -> None:
    ours.zero_grad()
    loss.backward()
    reference_loss.backward()
    found = {name: each.grad for name, each in theirs.named_parameters() if each.grad is not None}
    expected = from_transformers(found, ours.config)
    learned = {name: each.grad for name, each in ours.named_parameters() if each.grad is not None}
    assert learned.keys() == expected.keys()
    assert {name.split(".")[0] for name in learned} == {"to_language", "language"}
    for name, gradient in learned.items():
        assert gradient.abs().max() > 1e-6, name
        assert_close(gradient, expected[name], f"gradient of {name}")


def test_states_are_those_of_the_layer_without_the_class_token(ours: LLaVA, theirs: LlavaForConditionalGeneration) -> None:
    images = pictures(3, 28)
    tower: Any = theirs.model.vision_tower
    hidden = tower(normalise(images, OPENAI_MEAN, OPENAI_STD), output_hidden_states=True).hidden_states
    layer = theirs.config.vision_feature_layer
    assert_close(ours._states(images), hidden[layer][:, 1:], "states")
    assert not torch.allclose(hidden[-1], hidden[-2], atol=1e-2)
    assert len(ours.visual.blocks) == 4 + layer


def test_weights_go_both_ways(words: BPETokenizer, ours: LLaVA, theirs: LlavaForConditionalGeneration) -> None:
    state = ours.state_dict()
    there = to_transformers(state)
    again = from_transformers(there, ours.config)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())
    missing, unexpected = theirs.load_state_dict(there, strict=False)
    unused = ("post_layernorm.", "encoder.layers.2.") if ours.config.states == "penultimate" else ("post_layernorm.",)
    assert not unexpected
    assert missing
    assert all(any(name.startswith(f"model.vision_tower.{part}") for part in unused) for name in missing)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in there.items())


def test_replies_are_those_of_transformers(ours: LLaVA, theirs: LlavaForConditionalGeneration) -> None:
    """Greedy, after prompts of several lengths, until the end token."""
    prompts = [ours.template.before_reply(turns[:-1], turns[-1].request) for turns in CONVERSATIONS]
    images, words = pictures(3, 28), ours.tokenizer
    replies = ours.go_on(prompts, ours._see(images))
    limit = ours.config.context
    written = theirs.generate(
        **asked(ours, left_padded(prompts), images),
        max_new_tokens=limit,
        do_sample=False,
        suppress_tokens=[words.pad, words.start],
        eos_token_id=words.end,
        pad_token_id=words.end,
    )
    new = [row[left_padded(prompts).shape[1] :] for row in written.tolist()]
    expected = [row[: row.index(words.end)] if words.end in row else row for row in new]
    assert [reply.text for reply in replies] == [words.decode(row) for row in expected]
    assert len({reply.text for reply in replies}) == 3


def test_other_configurations_of_transformers_are_refused(words: BPETokenizer) -> None:
    config = reference(words, -2).config
    for name, value in (("vision_feature_layer", -3), ("vision_feature_select_strategy", "full"), ("projector_hidden_act", "relu")):
        other = LlavaConfig(vision_config=config.vision_config, text_config=config.text_config, **{name: value})
        with pytest.raises(ValueError, match="expected -1 or -2"):
            config_from_transformers(other)
