"""The training corpus of the tiny language model: texts about images, without the images.

Every document is made of a batch's samples by a seeded generator. Four kinds teach the skills expected of frozen language
models: the words (captions), reading an answer from a description (questions), the turns of a conversation (instructions), and
following a pattern set by examples (in context). Documents begin with a description of the picture; models that see put the
picture in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from data.sample import Sample
from models.shared.prompts import COUNT, DESCRIBE, answered

Item = TypeVar("Item")

HUMAN, ASSISTANT, END_OF_TURN = "###human: ", " ###assistant: ", "###"  # MiniGPT-4's conversation template, section 3.2
NEW_WORDS = ("dax", "blicket", "wug", "toma", "fep", "zav", "modi", "kiki", "bouba", "gorp", "pim", "tulver")


def documents(samples: Sequence[Sample], rng: np.random.Generator) -> list[str]:
    """One document for each sample, of a kind drawn at random; samples without text give an empty one."""
    makers = (_captions, _questions, _questions, _instruction, _in_context, _binding)
    return [makers[int(rng.integers(len(makers)))](samples, i, rng) for i in range(len(samples))]


def captions(samples: Sequence[Sample], rng: np.random.Generator) -> list[str]:
    """One caption of each sample and nothing else: for a model that only describes."""
    return ["".join(_some(sample.captions, 1, rng)) for sample in samples]


def _captions(samples: Sequence[Sample], i: int, rng: np.random.Generator) -> str:
    """Two descriptions of one picture."""
    return "\n".join(_some(samples[i].captions, 2, rng))


def _questions(samples: Sequence[Sample], i: int, rng: np.random.Generator) -> str:
    """A description, and questions that it may or may not answer."""
    asked = [answered(q.question, q.answer) for q in samples[i].questions]
    return "\n".join([*_some(samples[i].captions, 1, rng), *_some(asked, 3, rng)])


def _instruction(samples: Sequence[Sample], i: int, rng: np.random.Generator) -> str:
    """A conversation of one or two turns about a picture that is described at its beginning."""
    sample = samples[i]
    if not sample.captions:
        return ""
    description = _some(sample.captions, 1, rng)[0]
    turns = [(_some(DESCRIBE, 1, rng)[0], sample.captions[0])]
    turns += [(q.question, q.answer) for q in _some(sample.questions, 2, rng)]
    if sample.objects and rng.random() < 0.3:
        turns.append((_some(COUNT, 1, rng)[0], str(len(sample.objects))))
    chosen = _some(turns, 1 + int(rng.integers(2)), rng)
    first, *rest = [f"{HUMAN}{{}}{ask}{ASSISTANT}{reply}{END_OF_TURN}" for ask, reply in chosen]
    return first.replace("{}", f"<img>{description}</img> ", 1) + "".join(turn.replace("{}", "", 1) for turn in rest)


def _in_context(samples: Sequence[Sample], i: int, rng: np.random.Generator) -> str:
    """Described pictures, each with an answered question of the same kind: the last follows the pattern of the others."""
    chosen = [samples[i], *(samples[int(j)] for j in rng.integers(len(samples), size=2))]
    kinds = [{q.kind for q in sample.questions} for sample in chosen]
    shared = sorted(set.intersection(*kinds))
    if not shared:
        return _questions(samples, i, rng)
    kind = shared[int(rng.integers(len(shared)))]
    lines = []
    for sample in chosen:
        question = _some([q for q in sample.questions if q.kind == kind], 1, rng)[0]
        lines += [*_some(sample.captions, 1, rng), answered(question.question, question.answer)]
    return "\n".join(lines)


def _binding(samples: Sequence[Sample], i: int, rng: np.random.Generator) -> str:
    """Two described pictures get new names; then one of them again: which is it?"""
    other = samples[int(rng.integers(len(samples)))]
    if not samples[i].captions or not other.captions or other is samples[i]:
        return _captions(samples, i, rng)
    names = _some(NEW_WORDS, 2, rng)
    pairs = [(samples[i], names[0]), (other, names[1])]
    shown = [pairs[int(j)] for j in rng.permutation(2)] * (1 + int(rng.integers(2)))
    descriptions = {name: sample.captions[int(rng.integers(len(sample.captions)))] for sample, name in pairs}
    asked, name = pairs[int(rng.integers(2))]
    lines = [f"{descriptions[word]}\nthis is a {word}." for _, word in shown]
    again = descriptions[name] if rng.random() < 0.5 else _some(asked.captions, 1, rng)[0]
    return "\n".join([*lines, again, answered("what is this?", f"this is a {name}.")])


def _some(items: Sequence[Item], most: int, rng: np.random.Generator) -> list[Item]:
    return [items[int(j)] for j in rng.permutation(len(items))[:most]]
