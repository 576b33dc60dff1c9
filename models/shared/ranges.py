"""The values that the fields of a model's configuration can have. A field's name means the same in every configuration."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from math import inf
from typing import Any

from data.fields import check_types, require

ANY = {"bias", "mean"}
ABOVE_ZERO = {"temperature", "max_scale", "std", "mlp_ratio", "norm_eps", "rotary_base"}
SHARES = {"dropout", "patch_dropout", "query_dropout", "mask_share", "random_share", "rate", "top_p", "decay", "dead"}
SIZES = {"width", "heads", "hidden", "embed_dim", "vocab_size", "image_size", "patch_size", "queries", "positions", "codes", "latent"}


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
        require(width % heads == 0, f"{where}.heads", heads, f"a divisor of the width, {width}")


def _range(name: str) -> tuple[float, float, str]:
    """The smallest and the largest value, and what to say of them."""
    tiny = 5e-324  # the smallest number above 0
    if name in ANY:
        return -inf, inf, "a number"
    if name in SHARES:
        return 0, 1, "a share from 0 to 1"
    if name == "random_crop":
        return tiny, 1, "a share above 0, up to 1"
    if name == "context":
        return 2, inf, "2 or more tokens"
    if name in SIZES:
        return 1, inf, "1 or more"
    return (tiny, inf, "a number above 0") if name in ABOVE_ZERO else (0, inf, "0 or more")
