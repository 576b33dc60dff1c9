"""Values of dataclasses that come from people and from files: of the declared type, finite, and in their range; or an error that names the
field, the value, and what was expected."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints


class FieldError(ValueError):
    """A field has a value that it cannot have."""


def require(true: bool, name: str, value: Any, expected: str) -> None:
    """Raises FieldError unless `true`. Write comparisons so that NaN fails them: `0 <= value < inf`."""
    if not true:
        raise FieldError(f"{name} is {value!r}, expected {expected}")


def whole_numbers(text: str, name: str, least: int = 0) -> list[int]:
    """Numbers that are separated by commas: "0,1,2". Raises FieldError."""
    parts = [part.strip() for part in text.split(",")]
    require(all(part.isdecimal() and int(part) >= least for part in parts), name, text, f"whole numbers from {least} up, such as 0,1,2")
    numbers = [int(part) for part in parts]
    require(len(set(numbers)) == len(numbers), name, text, "every number once")
    return numbers


def check_types(cls: type, values: Mapping[str, Any], where: str = "") -> None:
    """Hold values against the types that the dataclass declares. Raises FieldError for the first that does not fit, unknown and missing
    names aside."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        if field.name in values:
            value, hint = values[field.name], hints[field.name]
            require(_fits(value, hint), f"{where}{field.name}", value, _spoken(hint))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type. A list counts as a tuple, because JSON has no tuples; types that cannot be checked pass."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        each = [inner[0]] * len(value) if len(inner) == 2 and inner[1] is Ellipsis else list(inner)
        return len(each) == len(value) and all(map(_fits, value, each))
    if is_dataclass(hint):
        return isinstance(value, dict) or is_dataclass(value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    kind = origin or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _spoken(hint: Any) -> str:
    if hint is float:
        return "a finite number"
    return "a whole number" if hint is int else getattr(hint, "__name__", "") if not get_args(hint) else str(hint).replace("typing.", "")
