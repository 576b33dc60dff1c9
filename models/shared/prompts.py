"""The prompt for questions to a language model: BLIP-2's and Frozen's in their evaluations of VQA.

The language models that the suite trains read it in their texts, models put it after an image, and the few-shot tasks build theirs of it.
"""

from __future__ import annotations


def ask(question: str) -> str:
    """Up to where the answer begins."""
    return f"question: {question} answer:"


def question_of(prompt: str) -> str:
    """The question of a prompt that `ask` made, on a line of its own or not; any other text is itself the question."""
    return prompt.strip("\n").removeprefix("question: ").removesuffix(" answer:")


def answered(question: str, answer: str) -> str:
    return f"{ask(question)} {answer}"
