"""The values that the fields of a model's configuration can have. A field's name means the same in every configuration."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from data.fields import check_types, require

ANY = {"bias", "mean"}
ABOVE_ZERO = {"temperature", "scale", "max_scale", "std", "norm_eps", "rotary_base"}
ABOVE_ZERO |= {"min_temperature", "mixing_temperature", "ssl_temperature", "strong_temperature"}
SHARES = {"dropout", "query_dropout", "mask_share", "random_share", "rate", "top_p", "decay", "dead"}
SHARES |= {"mirror", "texts", "whole", "questions", "pages", "text_share", "smoothing", "drop", "drop_connect_rate", "noise", "foils"}
SHARES |= {"retrieval_foils", "skip_above", "spans", "alone", "first_caption", "easier_captions"}
DEPTHS = {"depth", "multimodal_depth", "decoder_depth", "blocks"}
LAYERS = {"layers", "levels", "bridge", "fusion_depth"}  # depths of what cannot be left out
CAN_BE_0 = {"heads", "queries"}  # heads are held against their width, and some models do without queries
SIZES = {
    "context",
    "width",
    "hidden",
    "embed_dim",
    "vocab_size",
    "image_size",
    "patch_size",
    "positions",
    "codes",
    "latent",
    "prefix",
    "latents",
}
SIZES |= {"clip_length", "encoder_hidden", "narrow", "ssl_dim", "tokens", "pooler_heads", "every", "pictures", "captions", "beams"}
SIZES |= {"conversations", "requests", "sequences", "bank"}
LEAST, MOST = 5e-324, 1e30  # the smallest number above 0; float32 ends at 3e38
LARGEST_SIZE, LARGEST_DEPTH, LARGEST_COUNT = 1 << 20, 1000, 1 << 40
OTHERS = {
    "random_crop": (LEAST, 1, "a share above 0, up to 1"),
    "patch_dropout": (0, 1 - 2**-24, "a share from 0 to below 1"),
    "mlp_ratio": (LEAST, 1000, "a number above 0, up to 1,000"),
    "rank": (0, 4096, "0 to 4,096"),
}


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
                least, most, expected = _range(field.name, whole="int" in str(field.type))
                require(least <= number <= most, name, value, expected)
    width, heads = getattr(config, "width", None), getattr(config, "heads", None)
    if isinstance(width, int) and isinstance(heads, int):
        require(heads >= 1 and width % heads == 0, f"{where}.heads", heads, f"a divisor of the width, {width}")


def check_heads(heads: int, width: int, of: str, name: str = "heads") -> None:
    """For heads of a width that another part of the model decides: `of` says which. Raises FieldError."""
    require(heads >= 1 and width % heads == 0, f"--model.{name}", heads, f"a divisor of {of}, {width}")


def _range(name: str, *, whole: bool) -> tuple[float, float, str]:
    """The smallest and the largest value, and what to say of them."""
    if name in ANY:
        return -MOST, MOST, f"a number from {-MOST:g} to {MOST:g}"
    if name in SHARES:
        return 0, 1, "a share from 0 to 1"
    if name in OTHERS:
        return OTHERS[name]
    if name in DEPTHS or name in LAYERS:
        least = int(name in LAYERS)
        return least, LARGEST_DEPTH, f"{least} to {LARGEST_DEPTH:,} layers"
    if whole and (name in SIZES or name in CAN_BE_0):
        least = 0 if name in CAN_BE_0 else 2 if name == "context" else 1  # a text has a start and an end
        return least, LARGEST_SIZE, f"{least} to {LARGEST_SIZE:,}"
    if name in ABOVE_ZERO:
        return LEAST, MOST, f"a number above 0, up to {MOST:g}"
    most = LARGEST_COUNT if whole else MOST
    return 0, most, f"0 to {most:,}" if whole else f"0 to {most:g}"
