"""The tokenizer's weights from and to transformers' `ChameleonVQVAE`, which has an encoder and a codebook but no decoder.

State dicts in, state dicts out. What the other side does not have is left out: load the result with `strict=False`.
"""

from __future__ import annotations

from typing import Any

from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from models.shared.convert import Row, State, to_ours, to_theirs
from models.vq.model import VQConfig
from models.vq.network import NetworkConfig

TRANSFORMERS_TYPE = "chameleon_vqgan"
LACKING: dict[str, tuple[str, ...]] = {
    "decoder.*": ("paint", "reconstruct", "grid"),
    "quantiser.sums": (),  # what only training counts
    "quantiser.usage": (),
    "steps": (),
    "seen": (),
}
_PARTS = ("norm1", "conv1", "norm2", "conv2")


def _table(blocks: int) -> list[Row]:
    return [
        Row("encoder.conv_in.*", "encoder.conv_in.*"),
        Row(f"encoder.down.*.{blocks}.conv.*", "encoder.down.*.downsample.conv.*"),
        *(Row(f"encoder.down.*.*.{part}.*", f"encoder.down.*.block.*.{part}.*") for part in _PARTS),
        Row("encoder.down.*.*.shortcut.*", "encoder.down.*.block.*.nin_shortcut.*"),
        *(Row(f"encoder.middle.0.{part}.*", f"encoder.mid.block_1.{part}.*") for part in _PARTS),
        *(Row(f"encoder.middle.1.{part}.*", f"encoder.mid.attn_1.{part}.*") for part in ("norm", "q", "k", "v")),
        Row("encoder.middle.1.proj.*", "encoder.mid.attn_1.proj_out.*"),
        *(Row(f"encoder.middle.2.{part}.*", f"encoder.mid.block_2.{part}.*") for part in _PARTS),
        Row("encoder.norm_out.*", "encoder.norm_out.*"),
        Row("encoder.conv_out.*", "encoder.conv_out.*"),
        Row("quant_conv.*", "quant_conv.*"),
        Row("post_quant_conv.*", "post_quant_conv.*"),
        Row("quantiser.vectors", "quantize.embedding.weight"),
    ]


def from_transformers(state: State, blocks: int | None = None) -> State:
    """`blocks` is the number of residual blocks a level, `num_res_blocks` there; by default as many as the state has."""
    first = {name.split(".")[4] for name in state if name.startswith("encoder.down.0.block.")}
    return to_ours(state, _table(blocks or len(first)))


def to_transformers(state: State, blocks: int = 2) -> State:
    ours = ("encoder.", "quant_conv.", "post_quant_conv.", "quantiser.vectors")
    return to_theirs({name: tensor for name, tensor in state.items() if name.startswith(ours)}, _table(blocks))


def their_class(_: Any) -> type[ChameleonVQVAE]:
    return ChameleonVQVAE


def tokenizer(_: str | None) -> None:
    """It reads no text."""


def config_from_transformers(config: Any) -> VQConfig:
    """From a `transformers.ChameleonVQVAEConfig`. Raises ValueError for options that are not built here."""
    if config.double_latent or config.attn_resolutions or config.attn_type != "vanilla" or config.dropout or config.in_channels != 3:
        raise ValueError("only tokenizers with attention in the middle block only, three input channels and no dropout are supported")
    network = NetworkConfig(
        image_size=config.resolution,
        width=config.base_channels,
        multiplier=tuple(config.channel_multiplier),
        blocks=config.num_res_blocks,
        latent=config.latent_channels,
    )
    return VQConfig(network=network, codes=config.num_embeddings, embed_dim=config.embed_dim, codebook=getattr(config, "beta", 0.25))
