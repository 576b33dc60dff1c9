"""The prompt for questions to a language model: BLIP-2's and Frozen's in their evaluations of VQA.

The suite's language models are trained on it, models put it after an image, and few-shot tasks build their prompts from it.
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
