"""The oracle: a model that knows the truth about scenes, with every capability that follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import numpy as np

from data.objects import Box, referring
from data.sample import Sample
from data.scenes.compose import compose
from data.scenes.draw import draw
from data.scenes.language import agreement, parse
from data.scenes.language import answer as true_answer
from data.scenes.pages import infer, views_of
from data.scenes.world import PRESETS, Preset
from eval.adapters.naming import ASKED
from eval.base.capabilities import Images, Prompt, Said, Texts
from models.shared.instructions import reasoning
from models.shared.instructions import requests as asked
from models.shared.prompts import question_of


class Oracle:
    """The oracle.

    It recognises a picture by its array, so it needs the same arrays as in `samples`. Where it is not perfect, a text is true of
    several pictures, or the metric rewards more than the truth: it is the ceiling.
    """

    score_kind = "truth"

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._known = {id(sample.image): sample for sample in samples}
        pages = [sample for sample in samples if "pictures" in sample.extra]
        self._views = {id(image): view for page in pages for image, view in zip(page.images, views_of(page), strict=True)}

    def score(self, images: Images, texts: Texts) -> list[float]:
        """The share of a text's claims that hold for the picture."""
        return [agreement(text, self._known[id(image)]) for image, text in zip(images, texts, strict=True)]

    def caption(self, images: Images) -> list[str]:
        """The most detailed reference: the canonical caption, or one with as many attributes and a relation."""
        return [max(self._known[id(image)].captions, key=_claims) for image in images]

    def answer(self, images: Images, questions: Texts) -> list[str]:
        """ "" for a question outside of the scenes' grammar."""
        known = [self._known[id(image)] for image in images]
        return [true_answer(q, sample.objects, sample.extra["relations"]) or "" for q, sample in zip(questions, known, strict=True)]

    def answer_likelihood(self, images: Images, questions: Texts, answers: Texts) -> list[float]:
        return [0.0 if said == true else -100.0 for said, true in zip(answers, self.answer(images, questions), strict=True)]

    def locate(self, images: Images, phrases: Texts) -> list[Box | None]:
        """The box of the object with that name; None if none or several have it."""
        found: list[Box | None] = []
        for image, phrase in zip(images, phrases, strict=True):
            found.append({name: thing.box for name, thing in referring(self._known[id(image)])}.get(phrase))
        return found

    def reply(self, images: Images, requests: Texts) -> list[Said]:
        """ "" to a request that the picture does not allow."""
        found = []
        for image, text in zip(images, requests, strict=True):
            sample = self._known[id(image)]
            found.append(Said({each.text: each.reply for each in [*asked(sample), *reasoning(sample)]}.get(text, ""), True))
        return found

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answer to a prompt's last question, about its last picture; or the word to be learned; or the text to be inferred."""
        by_ending = {"\n": self._inferred, ASKED: self._word}
        return [by_ending.get(str(prompt[-1]), self._answer_in)(prompt) for prompt in prompts]

    def _inferred(self, prompt: Prompt) -> str:
        """What the rule of a page says of its last picture, as far as the pairs before it show."""
        views = [self._views[id(part)] for part in prompt if isinstance(part, np.ndarray)]
        return infer(views, [str(part).strip() for part in prompt[:-1] if isinstance(part, str)]) or ""

    def _answer_in(self, prompt: Prompt) -> str:
        image = [part for part in prompt if isinstance(part, np.ndarray)][-1]
        return self.answer([image], [question_of(str(prompt[-1]))])[0]

    def _word(self, prompt: Prompt) -> str:
        """The text of the pictures that have most in common with the last one."""
        shown = [self._known[id(part)].objects[0] for part in prompt if isinstance(part, np.ndarray)]
        alike: Counter[str] = Counter()
        for thing, text in zip(shown[:-1], [str(part) for part in prompt[1:-1] if isinstance(part, str)], strict=True):
            alike[text] += (thing.name == shown[-1].name) + (thing.attributes["colour"] == shown[-1].attributes["colour"])
        return alike.most_common(1)[0][0]

    def draw(self, texts: Texts, *, seed: int = 0) -> list[np.ndarray]:
        """A picture that the text is true of, in the style of the data set."""
        preset = preset_of(next(iter(self._known.values())).image)
        return [draw(compose(text, preset, Random(f"{seed}/{text}"))) for text in texts]


def _claims(caption: str) -> int:
    said = parse(caption)
    return sum(map(len, said.objects)) + len(said.relations)


def preset_of(image: np.ndarray) -> Preset:
    """The preset of `data.scenes` that a picture was drawn with, known by its size; "tiny" for any other size."""
    return next((preset for preset in PRESETS.values() if preset.pixels == len(image)), PRESETS["tiny"])


def has_truth(samples: Sequence[Sample]) -> bool:
    """Whether the truth about every picture is known in the terms of `data.scenes`."""
    return all(sample.objects and "relations" in sample.extra and "texture" in sample.extra for sample in samples)
