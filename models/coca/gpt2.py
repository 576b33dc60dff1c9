"""CoCa's text decoder as transformers' GPT-2 with cross-attention: the same function, and its `generate` writes the same captions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from models.coca.decoder import TextDecoder
from models.shared.transformer import Activation, TransformerConfig

ACTIVATIONS: dict[Activation, str] = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "quick_gelu": "quick_gelu"}


def decoder_to_gpt2(text: TextDecoder, config: TransformerConfig, *, start: int, pad: int) -> GPT2LMHeadModel:
    """GPT-2 with copies of the decoder's weights, in eval mode; `config` is the decoder's.

    Its layers do not normalise the image tokens: give it `F.layer_norm(tokens, (width,))` as `encoder_hidden_states`. It looks
    at them in every layer, and in the unimodal ones adds nothing. Raises ValueError for open_clip's layers: GPT-2 has one MLP.
    """
    if any(block.mlp1 is not None for block in text.multimodal):
        raise ValueError("GPT-2's layers have one MLP, and these have two (second_mlp, as in open_clip)")
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=text.tokens.num_embeddings,
            n_positions=len(text.positions) - 1,
            n_embd=config.width,
            n_layer=len(text.unimodal) + len(text.multimodal),
            n_head=config.heads,
            n_inner=int(config.width * config.mlp_ratio),
            activation_function=ACTIVATIONS[config.activation],
            layer_norm_epsilon=config.norm_eps,
            add_cross_attention=True,
            tie_word_embeddings=False,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=start,
            eos_token_id=text.tokenizer.end,
            pad_token_id=pad,
        )
    )
    with torch.no_grad():
        _copy(theirs.transformer.wte, text.tokens.weight)
        _copy(theirs.transformer.wpe, text.positions[:-1])
        _copy(theirs.transformer.ln_f, text.norm.weight, text.norm.bias)
        _copy(theirs.lm_head, text.head.weight)
        for block, layer in zip((*text.unimodal, *text.multimodal), theirs.transformer.h, strict=True):
            _copy_layer(block, layer)
    return theirs.eval()


def _copy_layer(block: nn.Module, theirs: Any) -> None:
    ours = dict(block.named_parameters())
    multimodal = "cross.q.weight" in ours

    def copy(module: Any, name: str, *, transposed: bool = True) -> None:
        weight = ours[f"{name}.weight"]
        _copy(module, weight.T if transposed else weight, ours[f"{name}.bias"])

    copy(theirs.ln_1, "norm1", transposed=False)
    copy(theirs.attn.c_attn, "attn.qkv")
    copy(theirs.attn.c_proj, "attn.proj")
    copy(theirs.ln_2, "mlp2.norm" if multimodal else "norm2", transposed=False)
    copy(theirs.mlp.c_fc, "mlp2.fc1" if multimodal else "fc1")
    copy(theirs.mlp.c_proj, "mlp2.fc2" if multimodal else "fc2")
    if multimodal:
        copy(theirs.ln_cross_attn, "norm2", transposed=False)
        copy(theirs.crossattention.q_attn, "cross.q")
        copy(theirs.crossattention.c_proj, "cross.proj")
        gain, shift = ours["norm_memory.weight"], ours["norm_memory.bias"]
        weight, bias = ours["cross.kv.weight"], ours["cross.kv.bias"]
        _copy(theirs.crossattention.c_attn, (weight * gain).T, bias + weight @ shift)
    else:
        nn.init.zeros_(theirs.crossattention.c_proj.weight)
        nn.init.zeros_(theirs.crossattention.c_proj.bias)


def _copy(module: Any, weight: Tensor, bias: Tensor | None = None) -> None:
    module.weight.copy_(weight)
    if bias is not None:
        module.bias.copy_(bias)
