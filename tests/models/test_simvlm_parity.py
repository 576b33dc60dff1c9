"""SimVLM's transformer computes what transformers' T5 does, given the same embeddings, masks and relative positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from models.contract import IGNORE_INDEX
from models.shared.prefix import PADDING, label_nll
from models.simvlm.convert import RELATIVE, from_t5, to_t5
from models.simvlm.transformer import EncoderDecoder, EncoderDecoderConfig
from tests.models.kit import assert_close, assert_round_trip, randomise

CONFIG = EncoderDecoderConfig(width=64, depth=2, decoder_depth=3, heads=4)
SIDE, VOCABULARY, CONTEXT, ROWS, START = 3, 100, 12, 4, 1
EXTRAS = ("positions", "image_positions", "relative.relative_position_bias_table")


@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "texts alone"])
def test_equals_t5(pictures: bool) -> None:
    """States, logits, loss and all gradients, those of positions included. Prefixes differ in length, and one picture is not shown."""
    theirs = _t5()
    ours = EncoderDecoder(CONFIG, side=SIDE, vocab_size=VOCABULARY, context=CONTEXT)
    randomise(ours, 1)
    ours.load_state_dict(from_t5(theirs.state_dict(), CONFIG), strict=False)
    prefix, labels, image, shown = _batch()

    read = ours.read(image if pictures else None, prefix, shown if pictures else None)
    ids = F.pad(labels[:, :-1].clamp(min=0), (1, 0), value=START)
    places = (prefix != PADDING).sum(dim=1)[:, None] + torch.arange(ids.shape[1])
    logits = ours.predict(ids, places, ours.remember(read), read.seen)
    nll, count = label_nll(logits, labels)
    loss = nll.sum() / count.sum()
    loss.backward()

    extras = {name: parameter.detach().clone().requires_grad_() for name, parameter in ours.named_parameters() if name in EXTRAS}
    embeddings, mask, seen = _inputs(theirs, extras, prefix, image if pictures else None, shown)
    encoded = theirs.encoder(inputs_embeds=embeddings, attention_mask=mask)
    out = theirs(
        encoder_outputs=encoded, attention_mask=seen.long(), decoder_inputs_embeds=_embedded(theirs, extras, ids, places), labels=labels
    )
    out.loss.backward()

    assert_close(read.states[seen], encoded.last_hidden_state[seen], "states of the encoder")
    assert_close(logits[labels != IGNORE_INDEX], out.logits[labels != IGNORE_INDEX], "logits")
    assert_close(loss, out.loss, "loss")
    found = {name: parameter.grad for name, parameter in theirs.named_parameters() if name not in RELATIVE}
    expected = from_t5({name: value for name, value in found.items() if value is not None}, CONFIG, gradients=True)
    expected |= {name: value.grad for name, value in extras.items() if value.grad is not None}
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}
    assert gradients.keys() == expected.keys() == {name for name, _ in ours.named_parameters()} - (set() if pictures else set(EXTRAS[1:]))
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 1e-6, f"{name}: no gradient to compare"
        assert_close(gradient, expected[name], f"gradient of {name}")


def test_converts_there_and_back_to_the_bit() -> None:
    theirs = _t5()
    assert_round_trip(theirs.state_dict(), lambda state: from_t5(state, CONFIG), lambda state: to_t5(state, CONFIG))


def test_relative_positions_of_t5_are_refused() -> None:
    theirs = _t5()
    with torch.no_grad():
        theirs.get_parameter(RELATIVE[1])[3, 1] = 0.5
    with pytest.raises(ValueError, match="relative positions of its own"):
        from_t5(theirs.state_dict(), CONFIG)


def _t5() -> Any:
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=CONFIG.width,
        d_kv=CONFIG.width // CONFIG.heads,
        d_ff=int(CONFIG.width * CONFIG.mlp_ratio),
        num_layers=CONFIG.depth,
        num_decoder_layers=CONFIG.decoder_depth,
        num_heads=CONFIG.heads,
        dropout_rate=0.0,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    theirs = T5ForConditionalGeneration(config)
    randomise(theirs, 2)
    with torch.no_grad():
        for name in RELATIVE:
            theirs.get_parameter(name).zero_()
    return theirs


def _batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prefixes of 1 to 4 tokens and texts of 2 to 5, patch tokens, and which pictures are shown."""
    generator = torch.Generator().manual_seed(3)
    prefix, labels = (torch.randint(3, VOCABULARY, (ROWS, length), generator=generator) for length in (4, 5))
    for row in range(ROWS):
        prefix[row, 1 + row :] = PADDING
        labels[row, 5 - row :] = IGNORE_INDEX
    return prefix, labels, torch.randn(ROWS, SIDE**2, CONFIG.width, generator=generator), torch.tensor([True, False, True, True])


def _inputs(theirs: Any, extras: dict[str, Tensor], prefix: Tensor, image: Tensor | None, shown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """T5's embeddings `[B, S, D]`, its additive mask `[B, H, S, S]`, and what is seen `[B, S]`."""
    text = _embedded(theirs, extras, prefix.clamp(min=0), torch.arange(1, prefix.shape[1] + 1).expand_as(prefix))
    if image is None:
        seen = prefix != PADDING
        return text, _additive(seen, torch.zeros(1, CONFIG.heads, seen.shape[1], seen.shape[1])), seen
    seen = torch.cat([shown[:, None].expand(-1, SIDE**2), prefix != PADDING], dim=1)
    bias = torch.zeros(CONFIG.heads, seen.shape[1], seen.shape[1])
    table = extras["relative.relative_position_bias_table"]  # a row for each offset (down, right), from the most negative one
    for i in range(SIDE**2):
        for j in range(SIDE**2):
            down, right = i // SIDE - j // SIDE, i % SIDE - j % SIDE
            bias = bias.index_put(
                (torch.arange(CONFIG.heads), torch.tensor(i), torch.tensor(j)), table[(down + SIDE - 1) * (2 * SIDE - 1) + right + SIDE - 1]
            )
    return torch.cat([image + extras["image_positions"], text], dim=1), _additive(seen, bias[None]), seen


def _additive(seen: Tensor, bias: Tensor) -> Tensor:
    return bias.masked_fill(~seen[:, None, None], torch.finfo(torch.float32).min)


def _embedded(theirs: Any, extras: dict[str, Tensor], ids: Tensor, places: Tensor) -> Tensor:
    return theirs.shared(ids) + CONFIG.width**0.5 * extras["positions"][places]
