"""LoRA against the merged weight, equation 3 of arXiv 2106.09685."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, LlamaForCausalLM, MptConfig, PretrainedConfig

from models.shared.lora import LoRA, adapt, low_rank_updates, merge

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
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no linear layer named Wqkv or c_attn or .* or w for a low-rank update"):
        low_rank_updates(llama(), ("w",), rank=3, scale=2.0)


@pytest.mark.parametrize(
    ("config", "layer"),
    [
        (GPT2Config(vocab_size=60, n_embd=24, n_layer=1, n_head=2, n_positions=16), "c_attn"),
        (GPTNeoXConfig(vocab_size=60, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32), "query_key_value"),
        (MptConfig(vocab_size=60, d_model=24, n_layers=1, n_heads=2, max_seq_len=16), "Wqkv"),
    ],
)
def test_queries_keys_and_values_may_be_one_layer(config: PretrainedConfig, layer: str) -> None:
    """Of the model's own updates, and of those of any page, which are merged where they are kept."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
    own = copy.deepcopy(model)
    updates = low_rank_updates(own, LAYERS, rank=3, scale=2.0)
    assert [name.rsplit("/")[-1] for name in updates] == [layer]
    moved(updates)
    adapt(model, rank=3, layers=[name.replace("/", ".") for name in updates])
    model.adapters.load_state_dict(updates.state_dict())
    with torch.no_grad():
        expected = own(input_ids=IDS).logits
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
        merge(model)
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
