"""The terminal, for text that comes from people's files and folders: nothing in it is read as rich's markup or as an emoji's name."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
    """As `rich.console.Console`; styles are given as `style=` or in a `Text`."""
    return Console(markup=False, emoji=False, highlight=False, **options)
