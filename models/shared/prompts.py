"""Prompts that the suite's language models are trained on: the question prompt, as used by BLIP-2 and Frozen to evaluate VQA, and requests
of a conversation. Models put them after an image, and few-shot tasks build their prompts from the former.
"""

from __future__ import annotations

DESCRIBE = (
    "describe this picture.",
    "what do you see?",
    "take a look at this picture and describe it.",
    "tell me what is in this picture.",
)
COUNT = ("how many objects are there? answer in one word.", "count the objects.")


def ask(question: str) -> str:
    """The prompt up to the beginning of the answer."""
    return f"question: {question} answer:"


def question_of(prompt: str) -> str:
    """The question in a prompt made by `ask`; any other text is returned unchanged."""
    return prompt.strip("\n").removeprefix("question: ").removesuffix(" answer:")


def answered(question: str, answer: str) -> str:
    return f"{ask(question)} {answer}"
