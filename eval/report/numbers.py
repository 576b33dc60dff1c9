"""Numbers in result files: which of them an evaluation or a training can have written. All functions raise ValueError."""

from __future__ import annotations

import math
import sys
from typing import Any

UNITS = ("share", "score")  # of a measure: between 0 and 1, or on a scale of its own
BETTER = ("higher", "lower", "neither")
ROUNDING = 1e-6


def number(value: Any) -> float | None:
    """A finite float, or None for None, NaN and infinities."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, found {value!r:.80}")
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # json's whole numbers have any length
        raise ValueError(f"expected a number below {sys.float_info.max:.1e}, found a whole number with more digits") from None


def finite(raw: dict[str, Any], name: str) -> float | None:
    """A number of a file, None where it says none. NaN and infinities are errors, too."""
    value = raw.get(name)
    try:
        found = number(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if found is None and value is not None:
        raise ValueError(f"{name}: expected a finite number, found {value}")
    return found


def amount(raw: dict[str, Any], name: str) -> float | None:
    """A number from 0 up, None where the file says none."""
    found = finite(raw, name)
    if found is not None and found < 0:
        raise ValueError(f"{name}: expected a number from 0 up, found {found:g}")
    return found


def refuse_unknown(**named: str) -> None:
    """For the texts of a cell that have a few values only."""
    known = {"unit": UNITS, "better": BETTER, "status": ("", "n/a", "not run")}
    for name, value in named.items():
        if value not in known[name]:
            raise ValueError(f"{name} is {value!r:.40}, expected {' or '.join(filter(None, known[name]))}")


def possible(numbers: dict[str, float | None], unit: str) -> dict[str, float | None]:
    """The numbers of a cell, as they are, if an evaluation can have given them."""
    value, low, high, n = (numbers[name] for name in ("value", "low", "high", "n"))
    if n is not None and not (n >= 0 and n == int(n)):
        raise ValueError(f"n is {n:g}, expected a whole number from 0 up")
    if n == 0 and value is not None:
        raise ValueError(f"value is {value:g}, expected none where n is 0")
    for name, number in (("value", value), ("low", low), ("high", high)):
        if unit == "share" and number is not None and not -ROUNDING <= number <= 1 + ROUNDING:
            raise ValueError(f"{name} is {number:g}, expected a share, from 0 to 1")
    if low is not None and high is not None and low > high + ROUNDING:
        raise ValueError(f"low is {low:g}, expected at most high, {high:g}")
    return numbers
