"""Format numbers and commands for display. A missing value is a dash, never a zero."""

from __future__ import annotations

import re
import shlex
from typing import Any

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def share(value: float | None) -> str:
    """Three decimals without a leading zero: .712, 1.000, −.034."""
    if value is None:
        return MISSING
    text = f"{abs(value):.3f}"
    return (MINUS if value < 0 and float(text) else "") + text.removeprefix("0")


def quantity(value: float | None, unit: str = "share") -> str:
    """A score in its own unit: shares with three decimals, anything else with three significant digits."""
    if value is None or unit == "share":
        return share(value)
    return f"{value:.3g}".replace("-", MINUS) if abs(value) < 1000 else si(value)


def difference(value: float | None, unit: str = "share") -> str:
    """A score with its sign, unless it rounds to zero: +.034, −.120, .000."""
    text = quantity(value, unit)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text


def si(value: float | None, unit: str = "") -> str:
    """Three significant digits with an SI prefix, joined by no-break spaces: 640 k, 1.25 PFLOP."""
    if value is None:
        return MISSING
    for scale, prefix in PREFIXES:
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:#.3g}".rstrip(".") + f"\u00a0{prefix}{unit}"
    return f"{value:.3g}" + (f"\u00a0{unit}" if unit else "")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"
    if seconds < 3597:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def short(text: str, most: int = 28) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def memory(megabytes: float | None) -> str:
    return MISSING if megabytes is None else f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"


# Control characters, which a terminal would execute, and invisible characters, including those that change the writing direction.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    """Text from an untrusted file, made safe to display: invisible characters become replacement characters."""
    return INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", text)


def make(target: str, **variables: Any) -> str:
    """A make command line with quoted variables; variables without a value are left out."""
    given = [f"{name}={shlex.quote(' '.join(str(value).split()))}" for name, value in variables.items() if value not in (None, "")]
    return plain(" ".join(["make", shlex.quote(target), *given]))
