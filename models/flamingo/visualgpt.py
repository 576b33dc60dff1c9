"""VisualGPT: cross-attention inside the layers of a language model, balanced by self-resurrecting gates (Chen et al., 2021,
arXiv 2102.10407).

In each layer, between self-attention and MLP, with states a after self-attention and visual states v that a attends to: a gate
alpha = sigmoid(W [a; v]) for each level of the image encoder, and the sum of alpha a and (1 - alpha) v, where a share of tau or less is
cut to zero (SRAU, the self-resurrecting activation unit). The language model begins with trained weights, and all of it is tuned, on few
pictures.

Deviations: patch states of a frozen image tower instead of a detector's region features; no self-critical training after the likelihood;
no dropout in the new layers; a learned vector stands in the place of the picture, as in this package's Flamingo, whose data and
capabilities it has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data.fields import require
from models.flamingo.gated import PictureAttention
from models.flamingo.model import Flamingo, FlamingoConfig
from models.shared.backbones import LanguageConfig, decoder_layers
from models.shared.ranges import check_heads
from models.shared.text import Tokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import TINY_TOWER

GPT2 = json.dumps({"model_type": "gpt2", "vocab_size": 50_257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024})
NAMES = (("self_attn", "input_layernorm"), ("attn", "ln_1"))  # of a layer's self-attention and the norm before it: Llama's, GPT-2's


@dataclass(frozen=True)
class VisualGPTConfig(FlamingoConfig):
    levels: int = 3  # layers of the image encoder, whose outputs are all read
    encoder_hidden: int = 2048  # of their MLPs
    gate: Literal["srau", "plain", "tanh"] = "srau"  # plain: language and vision are added; tanh: vision is added through Flamingo's gate
    tau: float = 0.2  # a share of this size or less is cut to zero; 0: complementary gates
    tune_language: bool = True
    pages: float = 0.0

    @classmethod
    def tiny(cls) -> VisualGPTConfig:
        return cls(
            vision=TINY_TOWER,
            resampler=TransformerConfig(width=160, depth=1, heads=5),
            levels=1,
            encoder_hidden=512,
            heads=3,
            context=64,
            pairs_weight=1.0,
        )

    @classmethod
    def small(cls) -> VisualGPTConfig:
        """For one GPU: CLIP's `small` tower and GPT-2."""
        language = LanguageConfig(source="gpt2", architecture=GPT2)
        return cls(vision=FlamingoConfig.small().vision, language=language, heads=12, context=64, pairs_weight=1.0, vocab_size=50_257)

    @classmethod
    def paper(cls) -> VisualGPTConfig:
        """GPT-2 with three levels: 70.8 M new parameters in its layers. ResNet-50's grid in the place of region features."""
        language = LanguageConfig(source="gpt2", architecture=GPT2)
        return cls(timm_name="resnet50", language=language, heads=12, context=60, pairs_weight=1.0, vocab_size=50_257)


class VisualGPT(Flamingo):
    Config = VisualGPTConfig
    paradigm = "cross-attention"

    def __init__(self, config: VisualGPTConfig, tokenizer: Tokenizer) -> None:
        expected = "0 to below 0.5; above it some tokens would get neither language nor vision"
        require(0 <= config.tau < 0.5, "--model.tau", config.tau, expected)
        super().__init__(config, tokenizer)
        self.config: VisualGPTConfig
        self.collate = replace(self.collate, questions=config.questions, pages=config.pages)

    def _joined(self, config: Any, language: Any, features: int) -> tuple[nn.Module, list[nn.Module]]:
        encoder = LevelEncoder(features, self.width, heads=config.heads, hidden=config.encoder_hidden, levels=config.levels)
        blocks: list[nn.Module] = []
        for layer in decoder_layers(language):
            block = FusedAttention(self.width, config.heads, levels=config.levels, gate=config.gate, tau=config.tau)
            block.hook(layer)
            blocks.append(block)
        return encoder, blocks

    def _look_at(self, media: Tensor, seen: Tensor) -> None:
        """All levels `[B, P, levels, N, D]`, normalised by each layer's own norm, as the states that attend to them are."""
        for block in self.blocks:
            block.look(media.unbind(dim=2), seen)  # type: ignore[operator]


class LevelEncoder(nn.Module):
    """Post-norm transformer layers over image features; the outputs of all of them are kept."""

    def __init__(self, features: int, width: int, *, heads: int, hidden: int, levels: int) -> None:
        super().__init__()
        check_heads(heads, width, "the language model's width")
        self.enter = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.LayerNorm(width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, activation="relu", batch_first=True) for _ in range(levels)
        )

    def forward(self, features: Tensor) -> Tensor:
        """`[N, S, F]` -> `[N, levels, S, D]`."""
        x, found = self.enter(features), []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return torch.stack(found, dim=1)


class FusedAttention(nn.Module):
    """What a layer of the language model does between its self-attention and its MLP."""

    def __init__(self, width: int, heads: int, *, levels: int, gate: Literal["srau", "plain", "tanh"], tau: float) -> None:
        super().__init__()
        self.gate, self.tau = gate, tau
        self.attention = PictureAttention(width, width, heads, bias=True)
        nn.init.xavier_uniform_(self.attention.q.weight)
        nn.init.xavier_uniform_(self.attention.kv.weight)
        nn.init.normal_(self.attention.proj.weight, std=0.02)
        for linear in (self.attention.q, self.attention.kv, self.attention.proj):
            nn.init.zeros_(linear.bias)
        self.weigh = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(levels)) if gate == "srau" else None
        self.open = nn.Parameter(torch.zeros(levels)) if gate == "tanh" else None
        self.levels = levels
        self._norm: tuple[nn.Module, ...] = ()  # the layer's own, in a tuple so that it is not a parameter of this block, too
        self._before: Tensor | None = None  # the states before self-attention

    def hook(self, layer: nn.Module) -> None:
        """Change what the layer's self-attention adds to its states, so that their sum is what `fuse` makes of it. Raises ValueError for
        other layers than Llama's or GPT-2's kind."""
        names = next((each for each in NAMES if all(hasattr(layer, name) for name in each)), None)
        if names is None:
            raise ValueError(f"{type(layer).__name__}: expected a layer like Llama's or GPT-2's, with {' or '.join(map(str, NAMES))}")
        self._norm = (getattr(layer, names[1]),)
        layer.reads_beside = True  # type: ignore[assignment]  # its norm is read from here, too
        layer.register_forward_pre_hook(self._keep, with_kwargs=True)
        getattr(layer, names[0]).register_forward_hook(self._change)

    def look(self, levels: Sequence[Tensor], seen: Tensor) -> None:
        self.attention.look([self._norm[0](level) for level in levels], seen)

    def fuse(self, a: Tensor) -> Tensor:
        """States after self-attention `[B, T, D]` -> `[B, T, D]`: equations 4 to 6 for each level, and their sum over the root of the
        number of levels."""
        normed, total = self._norm[0](a), torch.zeros_like(a)
        for level in range(self.levels):
            v = self.attention(normed, level)
            if self.weigh is not None:
                alpha = torch.sigmoid(self.weigh[level](torch.cat([a, v], dim=-1)))
                total = total + srau(alpha, self.tau) * a + srau(1 - alpha, self.tau) * v
            elif self.open is not None:
                total = total + a + torch.tanh(self.open[level]) * v
            else:
                total = total + a + v
        return total / (self.levels**0.5 if self.weigh is not None else self.levels)

    def _keep(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._before = args[0] if args else kwargs["hidden_states"]

    def _change(self, attention: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> tuple[Any, ...] | None:
        before, self._before = self._before, None
        if not self.attention.looks:
            return None
        assert before is not None
        return (self.fuse(before + output[0]) - before, *output[1:])  # the layer adds `before` again


def srau(share: Tensor, tau: float) -> Tensor:
    """A share above tau as it is, others 0. No gradient flows through the threshold."""
    return share * (share > tau)
