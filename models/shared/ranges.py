"""The values that the fields of a model's configuration can have. A field's name means the same in every configuration."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from data.fields import check_types, require

ANY = {"bias", "mean"}
ABOVE_ZERO = {"temperature", "max_scale", "std", "mlp_ratio", "norm_eps", "rotary_base"}
SHARES = {"dropout", "patch_dropout", "query_dropout", "mask_share", "random_share", "rate", "top_p", "decay", "dead"}
SHARES |= {"mirror", "texts", "whole"}
DEPTHS = {"depth", "multimodal_depth", "decoder_depth", "blocks"}
WIDTHS = {"width", "heads", "queries"}  # 0 where a configuration has no transformer
SIZES = {"context", "hidden", "embed_dim", "vocab_size", "image_size", "patch_size", "positions", "codes", "latent"}
LEAST, MOST = 5e-324, 1e30  # the smallest number above 0; float32 ends at 3e38
LARGEST_SIZE, LARGEST_DEPTH = 1 << 20, 1000


def check_ranges(config: Any, where: str = "--model") -> None:
    """Hold a configuration, and those in it, against the types that it declares and against the ranges above; what is not named there is 0
    or more. Raises FieldError."""
    check_types(type(config), vars(config), f"{where}.")
    for field in fields(config):
        value = getattr(config, field.name)
        name = f"{where}.{field.name.replace('_', '-')}"
        if is_dataclass(value):
            check_ranges(value, name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                least, most, expected = _range(field.name)
                require(least <= number <= most, name, value, expected)
    width, heads = getattr(config, "width", None), getattr(config, "heads", None)
    if isinstance(width, int) and isinstance(heads, int):
        require(width % heads == 0 if heads else width == 0, f"{where}.heads", heads, f"a divisor of the width, {width}")


def _range(name: str) -> tuple[float, float, str]:
    """The smallest and the largest value, and what to say of them."""
    if name in ANY:
        return -MOST, MOST, f"a number from {-MOST:g} to {MOST:g}"
    if name in SHARES:
        return 0, 1, "a share from 0 to 1"
    if name == "random_crop":
        return LEAST, 1, "a share above 0, up to 1"
    if name in DEPTHS:
        return 0, LARGEST_DEPTH, f"0 to {LARGEST_DEPTH:,} layers"
    if name in SIZES or name in WIDTHS:
        least = 0 if name in WIDTHS else 2 if name == "context" else 1  # a text has a start and an end
        return least, LARGEST_SIZE, f"{least} to {LARGEST_SIZE:,}"
    return (LEAST, MOST, f"a number above 0, up to {MOST:g}") if name in ABOVE_ZERO else (0, MOST, f"0 to {MOST:g}")
