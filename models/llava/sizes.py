"""Configurations that `make params` counts, with the published figures."""

from __future__ import annotations

from dataclasses import replace

from models.contract import Size
from models.llava.model import LLaVAConfig
from models.llava.qwenvl import QwenVLConfig
from models.shared.backbones import LanguageConfig

LLAVA = tuple(
    Size(
        f"{version}, trained first, Vicuna-{size}",
        replace(
            LLaVAConfig.paper(), timm_name="", bridge=layers, language=LanguageConfig(width=width, depth=1, heads=width // 128, hidden=64)
        ),
        source=f"arithmetic: {'two linear layers' if layers == 2 else 'one linear layer'} from CLIP's 1,024 to Vicuna's {width:,}",
        counted=("to_language",),
        derived=trained,
    )
    for version, layers, size, width, trained in (
        ("1.5", 2, "7B", 4096, 20_979_712),
        ("1.5", 2, "13B", 5120, 31_467_520),
        ("1", 1, "7B", 4096, 4_198_400),
        ("1", 1, "13B", 5120, 5_248_000),
    )
)
QWEN_7B = (  # sizes of Qwen-7B, in the layout of its next version, which needs no code of its own
    '{"model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, '
    '"num_key_value_heads": 32, "vocab_size": 151936, "tie_word_embeddings": false}'
)
SIZES = (
    *LLAVA,
    Size(
        "paper, ViT-bigG, Qwen-7B",
        replace(QwenVLConfig.paper(), timm_name="", language=LanguageConfig(architecture=QWEN_7B)),
        published=9_600_000_000,
        source="table 1: 1.9 G, .08 G and 7.7 G",
        rounded=0.01,
    ),
    Size(
        "paper, adapter and output matrix",
        replace(QwenVLConfig.paper(), timm_name="", language=LanguageConfig(width=4096, depth=1, heads=32, hidden=64)),
        source="arithmetic: 256 queries, 1,664 to 4,096, four layers of 4,096, two norms; a norm and 4,096 x 4,096 after it",
        counted=("adapter",),
        derived=75_005_952 + 8_192 + 16_777_216,
    ),
)
