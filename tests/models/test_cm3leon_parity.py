"""Our decoder computes what transformers' OPT and Chameleon compute: states, logits, losses, every gradient, and with a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, OPTConfig, OPTForCausalLM
from transformers.generation.logits_process import ClassifierFreeGuidanceLogitsProcessor

from models.cm3leon.convert import (
    config_from_chameleon,
    config_from_opt,
    from_chameleon,
    from_opt,
    to_chameleon,
    to_opt,
)
from models.cm3leon.decoder import TokenDecoder
from models.cm3leon.drawing import guided
from tests.models.kit import assert_close, assert_round_trip, randomise

VOCABULARY = 64


def test_equals_opt() -> None:
    theirs, ours = _opt()
    ids = _ids(3, 20)
    out = theirs(input_ids=ids, labels=ids)
    _assert_same(ours, ids, out.logits, out.loss)
    out.loss.backward()
    gradients = from_opt({name: parameter.grad for name, parameter in theirs.named_parameters()})  # type: ignore[misc]
    gradients["positions"][20:] = 0  # theirs has rows for positions that no token of this batch stands at
    _assert_gradients(ours, gradients)


@pytest.mark.parametrize("norm_after", [False, True], ids=["norm-before", "norm-after"])
def test_equals_chameleon(norm_after: bool) -> None:
    theirs, ours = _chameleon(norm_after)
    ids = _ids(3, 20)
    logits = theirs.lm_head(theirs.model(input_ids=ids).last_hidden_state)  # its own forward masks the logits of image tokens
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    _assert_same(ours, ids, logits, loss)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    _assert_gradients(ours, from_chameleon(gradients))


@pytest.mark.parametrize("kind", ["opt", "chameleon"])
def test_padding_in_front_is_not_seen(kind: str) -> None:
    theirs, ours = _opt() if kind == "opt" else _chameleon(False)
    ids, seen = _ids(3, 12), torch.ones(3, 12, dtype=torch.bool)
    seen[1, :5] = seen[2, :11] = False
    places = (seen.cumsum(dim=1) - 1).clamp(min=0)
    out = theirs.model(input_ids=ids, attention_mask=seen.long(), position_ids=places).last_hidden_state
    mine = ours(ids, places, seen=seen)
    assert_close(mine[seen], out[seen], "states")
    short = ours(ids[1:2, 5:], torch.arange(7)[None])
    assert_close(mine[1:2, 5:], short, "states of the shorter row")


@pytest.mark.parametrize("kind", ["opt", "chameleon"])
def test_a_cache_changes_nothing(kind: str) -> None:
    _, ours = _opt() if kind == "opt" else _chameleon(True)
    ids, seen = _ids(3, 15), torch.ones(3, 15, dtype=torch.bool)
    seen[0, :4] = False
    places = (seen.cumsum(dim=1) - 1).clamp(min=0)
    whole = ours(ids, places, seen=seen)
    assert_close(_in_parts(ours, ids, places, seen)[seen], whole[seen], "states")
    with torch.autocast("cpu", torch.bfloat16):
        for rounded in (ours(ids, places, seen=seen), _in_parts(ours, ids, places, seen)):
            assert (rounded - whole)[seen].abs().max() < 0.1


def _in_parts(ours: TokenDecoder, ids: Tensor, places: Tensor, seen: Tensor) -> Tensor:
    cache = ours.empty_cache(15)
    parts = [ours(ids[:, :6], places[:, :6], seen=seen[:, :6], cache=cache)]
    parts += [ours(ids[:, t : t + 1], places[:, t : t + 1], seen=seen[:, : t + 1], cache=cache) for t in range(6, 15)]
    return torch.cat(parts, dim=1)


def test_no_token_sees_what_follows() -> None:
    for ours in (_opt()[1], _chameleon(False)[1]):
        ids = _ids(2, 10)
        changed = ids.clone()
        changed[:, 6] = (changed[:, 6] + 1) % VOCABULARY
        places = torch.arange(10)[None]
        before, after = ours(ids, places), ours(changed, places)
        assert torch.equal(before[:, :6], after[:, :6])
        assert (before[:, 6:] != after[:, 6:]).any(dim=-1).all()


def test_guidance_is_the_processors_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    conditional, unconditional = torch.randn(2, 5, VOCABULARY, generator=generator)
    processor = ClassifierFreeGuidanceLogitsProcessor(3.0)
    expected = processor(torch.zeros(5, 1, dtype=torch.long), torch.cat([conditional, unconditional]))
    assert_close(guided(conditional, unconditional, 3.0), expected, "guided logits")
    assert_close(guided(conditional, unconditional, 1.0), conditional, "logits without guidance")


def test_converts_there_and_back_to_the_bit() -> None:
    assert_round_trip(_opt()[1].state_dict(), to_opt, from_opt)
    theirs = dict(_opt()[0].state_dict())
    theirs["model.decoder.embed_positions.weight"][:2] = 0  # never looked up
    assert_round_trip(theirs, from_opt, to_opt)
    assert_round_trip(_chameleon(False)[1].state_dict(), to_chameleon, from_chameleon)


def test_other_decoders_are_refused() -> None:
    with pytest.raises(ValueError, match="enable_bias=False"):
        config_from_opt(OPTConfig())
    config = _chameleon(False)[0].config
    config.num_key_value_heads = 1
    with pytest.raises(ValueError, match="keys and values of their own"):
        config_from_chameleon(config)


def _opt() -> tuple[Any, TokenDecoder]:
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
        enable_bias=False,
        layer_norm_elementwise_affine=False,
        dropout=0.0,
        attention_dropout=0.0,
        activation_function="relu",
    )
    theirs = OPTForCausalLM(config)
    randomise(theirs, 0)
    ours = TokenDecoder(config_from_opt(config), VOCABULARY)
    ours.load_state_dict(from_opt(theirs.state_dict()))
    return theirs, ours


def _chameleon(norm_after: bool) -> tuple[Any, TokenDecoder]:
    codes = {"<image>": 4} | {"IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z": 8 + code for code in range(16)}
    config = ChameleonConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=40,
        vocabulary_map=codes,
        swin_norm=norm_after,
        vq_config={
            "embed_dim": 32,
            "num_embeddings": 16,
            "latent_channels": 32,
            "resolution": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 2],
            "num_res_blocks": 1,
        },
    )
    theirs = ChameleonForConditionalGeneration(config)
    randomise(theirs, 1)
    ours = TokenDecoder(config_from_chameleon(config), VOCABULARY)
    ours.load_state_dict(from_chameleon(theirs.state_dict()))
    return theirs, ours


def _ids(rows: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(2))


def _assert_same(ours: TokenDecoder, ids: Tensor, logits: Tensor, loss: Tensor) -> None:
    """Logits and loss; leaves the gradients in `ours`."""
    mine = ours.logits(ours(ids, torch.arange(ids.shape[1])[None]))
    assert_close(mine, logits, "logits")
    own = F.cross_entropy(mine[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert_close(own, loss, "loss")
    own.backward()


def _assert_gradients(ours: TokenDecoder, expected: dict[str, Tensor]) -> None:
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        mine = found[name]
        assert mine is not None, name
        assert gradient.abs().max() > 1e-6, name
        assert_close(mine, gradient, f"gradient of {name}")
