"""A console for text from untrusted files: rich's markup and emoji names in it are printed as they are."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """As `rich.console.Console`; styles are given as `style=` or in a `Text`."""
    return Console(markup=False, emoji=False, highlight=False, **options)
