"""English that captions, questions and prompts are made of."""

from __future__ import annotations


def with_article(words: str) -> str:
    """By the first letter: "an orange star", "a blue moon"."""
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"
