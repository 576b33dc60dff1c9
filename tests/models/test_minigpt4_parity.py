"""Our MiniGPT-4 computes what transformers' BLIP-2 with a Llama computes: logits, loss, the bridge's gradient, and what is written."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration

from models.blip2.convert import from_conditional_generation
from models.minigpt4 import MiniGPT4, MiniGPT4Config
from models.shared.backbones import LanguageConfig
from models.shared.chat import Row, Turn, laid_out
from models.shared.images import OPENAI_MEAN, OPENAI_STD, normalise
from models.shared.prefix import PADDING, SOFT, continued, embed, left_padded
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from tests.models.kit import assert_close, pictures, randomise

QUERIES = 6
CONVERSATIONS = (
    [Turn("what do you see?", "a small red star"), Turn("how many objects are there?", "1")],
    [Turn("describe this picture.", "two large blue circles above a green moon, and nothing else")],
    [Turn("is there a star?", ""), Turn("and a moon?", "no"), Turn("so what is there?", "a circle")],
)


@pytest.fixture(scope="module")
def words() -> BPETokenizer:
    return BPETokenizer.train([text for turns in CONVERSATIONS for turn in turns for text in turn], 300)


@pytest.fixture(scope="module")
def theirs(words: BPETokenizer) -> Blip2ForConditionalGeneration:
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config={
                "hidden_size": 48,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 28,
                "patch_size": 14,
            },
            qformer_config={
                "vocab_size": 60,
                "hidden_size": 32,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "encoder_hidden_size": 48,
                "cross_attention_frequency": 2,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            text_config={
                "model_type": "llama",
                "vocab_size": words.vocab_size + 1,  # one more stands for the image
                "hidden_size": 40,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "tie_word_embeddings": True,
            },
            num_query_tokens=QUERIES,
            image_token_index=words.vocab_size,
        )
    ).eval()
    randomise(model, 0)  # the queries, too, which begin as zeros
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("language_projection."))
    return model


@pytest.fixture
def ours(words: BPETokenizer, theirs: Blip2ForConditionalGeneration) -> MiniGPT4:
    config = MiniGPT4Config(
        vision=VisionConfig(width=48, depth=2, heads=4, mlp_ratio=2.0, image_size=28, patch_size=14, norm_eps=1e-6),
        qformer=TransformerConfig(width=32, depth=4, heads=4, mlp_ratio=2.0, norm_eps=1e-12),
        queries=QUERIES,
        language=LanguageConfig(width=40, depth=2, heads=4, hidden=64),
        context=20,
        vocab_size=words.vocab_size + 1,
    )
    model = MiniGPT4(config, words)
    missing, unexpected = model.load_state_dict(from_conditional_generation(theirs.state_dict()), strict=False)
    assert not unexpected
    assert set(missing) == {"visual.norm.weight", "visual.norm.bias"}  # the tower's own last norm, before which states are taken
    return model.eval()


def rows(model: MiniGPT4, kind: str) -> list[Row]:
    if kind == "captions":
        return [model.template.caption(turns[0].reply) for turns in CONVERSATIONS]
    return [model.template.conversation(turns) for turns in CONVERSATIONS]


def asked(model: MiniGPT4, ids: Tensor) -> dict[str, Tensor]:
    """The same sequences and pictures as transformers takes them."""
    pixels = normalise(pictures(len(ids), 28), OPENAI_MEAN, OPENAI_STD)
    places = ids.masked_fill(ids == SOFT, model.tokenizer.vocab_size).masked_fill(ids == PADDING, model.tokenizer.pad)
    return {"pixel_values": pixels, "input_ids": places, "attention_mask": (ids != PADDING).long()}


@pytest.mark.parametrize("kind", ["captions", "conversations"])
def test_loss_logits_and_the_bridges_gradient_are_transformers(kind: str, ours: MiniGPT4, theirs: Blip2ForConditionalGeneration) -> None:
    """Images stand at the beginning or between words; rows differ in length, and nothing of the padding counts."""
    batch = laid_out(rows(ours, kind))
    ids = batch["ids"]
    assert (ids == PADDING).any()
    losses = ours({"pixels": pictures(3, 28), **batch})
    theirs.zero_grad()
    out = theirs(**asked(ours, ids), labels=batch["labels"])
    assert_close(losses.total, out.loss, "loss")
    soft = ours._see(pictures(3, 28))
    logits = ours.language(inputs_embeds=embed(ours.language, ids, soft), attention_mask=(ids != PADDING).long()).logits
    real = ids != PADDING
    assert_close(logits[real], out.logits[real], "logits")

    losses.total.backward()
    out.loss.backward()
    for name, parameter in ours.to_language.named_parameters():
        reference = theirs.language_projection.get_parameter(name).grad
        assert parameter.grad is not None
        assert reference.abs().max() > 1e-4
        assert_close(parameter.grad, reference, f"gradient of the bridge's {name}")
    assert [name for name, parameter in ours.named_parameters() if parameter.grad is not None] == ["to_language.weight", "to_language.bias"]


def test_a_row_means_the_same_alone_and_among_longer_ones(ours: MiniGPT4) -> None:
    together = rows(ours, "conversations")
    batch = {"pixels": pictures(3, 28), **laid_out(together)}
    all_of_them = ours.encode(batch)
    for place, row in enumerate(together):
        alone = ours.encode({"pixels": batch["pixels"][place : place + 1], **laid_out([row])})
        assert_close(alone["nll"][0], all_of_them["nll"][place], f"row {place}")
        assert alone["tokens"][0] == all_of_them["tokens"][place]


def test_replies_are_those_of_transformers(ours: MiniGPT4, theirs: Blip2ForConditionalGeneration) -> None:
    """Greedy, after prompts of several lengths, until the sign that ends a turn."""
    prompts: Sequence[list[int]] = [ours.template.before_reply(turns[:-1], turns[-1].request) for turns in CONVERSATIONS]
    end = ours.template.end_of_reply[0]
    mine = continued(ours.language, ours.tokenizer, prompts, ours._see(pictures(3, 28)), limit=20, end=end)
    written = theirs.generate(
        **asked(ours, left_padded(prompts)),
        max_new_tokens=20,
        do_sample=False,
        suppress_tokens=[ours.tokenizer.pad, ours.tokenizer.start],
        eos_token_id=end,
        pad_token_id=end,
    )
    found = [row[-20:] for row in written.tolist()]
    assert mine == [row[: row.index(end)] if end in row else row for row in found]
    assert len({tuple(row) for row in mine}) == 3
