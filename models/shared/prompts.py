"""The question prompt for language models, as used by BLIP-2 and Frozen to evaluate VQA.

The suite's language models are trained on it, models put it after an image, and few-shot tasks build their prompts from it.
"""

from __future__ import annotations


def ask(question: str) -> str:
    """The prompt up to the beginning of the answer."""
    return f"question: {question} answer:"


def question_of(prompt: str) -> str:
    """The question in a prompt made by `ask`; any other text is returned unchanged."""
    return prompt.strip("\n").removeprefix("question: ").removesuffix(" answer:")


def answered(question: str, answer: str) -> str:
    return f"{ask(question)} {answer}"
