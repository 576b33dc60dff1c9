"""LoRA against the merged weight, equation 3 of arXiv 2106.09685."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from models.shared.lora import LoRA, low_rank_updates

IDS = torch.randint(60, (2, 7), generator=torch.Generator().manual_seed(0))
LAYERS = ("q_proj", "v_proj")


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=60, **sizes)).eval()


def moved(updates: nn.Module) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(updates.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(number))


def test_the_output_is_that_of_the_merged_weight() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), torch.randn(2, 4, 5)
    update = LoRA(5, 3, rank=2, scale=1.5)
    moved(update)
    plain = layer(x)
    update.beside(layer)
    expected = plain + 1.5 * torch.einsum("or,ri,bti->bto", update.B.weight, update.A.weight, x)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert torch.allclose(layer(x), F.linear(x, layer.weight + update.update(), layer.bias), atol=1e-5)


def test_a_language_model_with_updates_is_the_one_with_merged_weights() -> None:
    model, merged = llama(), llama()
    updates = low_rank_updates(model, LAYERS, rank=3, scale=2.0)
    moved(updates)
    assert len(updates) == 4
    with torch.no_grad():
        for name, update in updates.items():
            merged.get_submodule(name.replace("/", ".")).weight += update.update()
        found, expected = model(input_ids=IDS).logits, merged(input_ids=IDS).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, llama()(input_ids=IDS).logits, atol=1e-2)


def test_at_the_start_nothing_changes_and_only_b_has_a_gradient() -> None:
    model = llama().requires_grad_(False)
    with torch.no_grad():
        before = model(input_ids=IDS).logits
    updates = low_rank_updates(model, LAYERS, rank=3, scale=2.0)
    logits = model(input_ids=IDS).logits
    assert torch.equal(logits, before)
    logits.square().sum().backward()
    for update in updates.values():
        assert update.A.weight.grad.abs().max() == 0
        assert update.B.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_keeps_its_names_and_weights() -> None:
    model = llama()
    updates = low_rank_updates(model, LAYERS, rank=3, scale=2.0)
    assert model.state_dict().keys() == llama().state_dict().keys()
    assert all("." not in name for name in updates)
    assert sum(parameter.numel() for parameter in updates.parameters()) == 2 * 3 * ((24 + 24) + (24 + 12))


def test_a_copy_has_updates_of_its_own() -> None:
    whole = nn.ModuleDict({"language": llama()})
    whole["lora"] = low_rank_updates(whole["language"], LAYERS, rank=3, scale=2.0)
    other = copy.deepcopy(whole)
    moved(other["lora"])
    with torch.no_grad():
        assert torch.equal(whole["language"](input_ids=IDS).logits, llama()(input_ids=IDS).logits)
        assert not torch.equal(other["language"](input_ids=IDS).logits, llama()(input_ids=IDS).logits)


def test_layers_that_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match="a LlamaForCausalLM has no linear layer named c_attn or w for a low-rank update"):
        low_rank_updates(llama(), ("w", "c_attn"), rank=3, scale=2.0)
