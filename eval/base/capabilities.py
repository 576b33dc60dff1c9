"""Model capabilities, and the interfaces that tasks require.

A model has capabilities by having these methods; it does not import this file. Images are sequences of uint8 arrays
`[height, width, 3]` of any size, texts sequences of strings; a method takes any number of them. Tasks require one of the
protocols of the second half; `eval.adapters.scorers` builds them from capabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from data.objects import Box

Images = Sequence[np.ndarray]
Texts = Sequence[str]
Prompt = Sequence[str | np.ndarray]  # texts and images in the order in which they are read

# ------------------------------------------------------------------------------------------- model capabilities


@runtime_checkable
class EncodesImages(Protocol):
    def encode_image(self, images: Images) -> Tensor:
        """L2-normalised float32 `[N, D]`; or `[N, V, D]`: V vectors per image, and the one most similar to a text counts."""


@runtime_checkable
class EncodesText(Protocol):
    def encode_text(self, texts: Texts) -> Tensor:
        """L2-normalised float32 `[N, D]`."""


@runtime_checkable
class ScoresPairs(Protocol):
    score_kind: str  # the source of the score: "matching head", "likelihood"

    def score(self, images: Images, texts: Texts) -> Tensor:
        """`[N]`: how well the i-th text fits the i-th image, larger is better."""


@runtime_checkable
class ComparesParts(Protocol):
    """For models whose score is more than a similarity of two vectors, but whose costly half an image and a text each need only once."""

    score_kind: str

    def image_parts(self, images: Images) -> Tensor:
        """float32 `[N, ...]`."""

    def text_parts(self, texts: Texts) -> Tensor:
        """float32 `[T, ...]`; the mean over several prompts stands for the class that they describe."""

    def compare(self, images: Tensor, texts: Tensor) -> Tensor:
        """`[N, T]`: how well each text fits each image, larger is better, from their parts. In float64 a score does not depend on what else
        is compared at the same time."""


@runtime_checkable
class Captions(Protocol):
    def caption(self, images: Images) -> list[str]: ...


@runtime_checkable
class Answers(Protocol):
    def answer(self, images: Images, questions: Texts) -> list[str]: ...


@runtime_checkable
class WeighsAnswers(Protocol):
    def answer_likelihood(self, images: Images, questions: Texts, answers: Texts) -> Tensor:
        """`[N]`: log p(answer | image, question) in nats, summed over the answer's tokens, its end included."""


@runtime_checkable
class Draws(Protocol):
    def draw(self, texts: Texts, *, seed: int = 0) -> list[np.ndarray]: ...


@runtime_checkable
class Unmasks(Protocol):
    def unmask(self, images: Images, texts: Texts, *, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each image with parts masked, and as the model reconstructs it given the text ("" for none): both uint8
        `[height, width, 3]`. The seed chooses the masked parts."""


@runtime_checkable
class Completes(Protocol):
    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """The continuation of each prompt of interleaved texts and images."""


@runtime_checkable
class Locates(Protocol):
    def locate(self, images: Images, phrases: Texts) -> Sequence[Box | None]:
        """The box of what the i-th phrase names in the i-th image, in pixels of that image; None if there is none."""


class Said(NamedTuple):
    text: str
    ended: bool  # by itself; otherwise it was cut at a limit


@runtime_checkable
class Replies(Protocol):
    def reply(self, images: Images, requests: Texts) -> Sequence[tuple[str, bool]]:
        """The reply to the i-th request about the i-th image, and whether it ended by itself."""


class Reason(Protocol):
    """A training pair that contributes to a score."""

    @property
    def picture(self) -> np.ndarray: ...
    @property
    def text(self) -> str: ...
    @property
    def share(self) -> float:
        """Its share of the score, from 0 to 1."""


@runtime_checkable
class Explains(Protocol):
    def explain(self, images: Images, texts: Texts, *, most: int) -> Sequence[Sequence[Reason]]:
        """The pairs that the score of the i-th image and the i-th text rests on: at most `most`, largest share first."""


# -------------------------------------------------------------------------------------------- what tasks require


@runtime_checkable
class Features(Protocol):
    """Frozen image features, to train on."""

    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None: ...

    def features(self, images: Images) -> np.ndarray:
        """float32 `[N, D]`."""


@runtime_checkable
class Scorer(Protocol):
    """Images compared with texts. No score is ever NaN."""

    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None:
        """Do the costly work for these images and texts now, in this order: then scores do not depend, not even in their
        last bit, on the order of the questions or on an interruption."""

    def matrix(self, images: Images, texts: Texts) -> np.ndarray:
        """float32 `[N, T]`: every image with every text."""

    def pairs(self, images: Images, texts: Texts) -> np.ndarray:
        """float32 `[N]`: the i-th image with the i-th text."""

    def classes(self, images: Images, prompts: Sequence[Texts]) -> np.ndarray:
        """float32 `[N, C]` logits: softmax over C gives the probability of each class, described by its prompts."""


@runtime_checkable
class Ranker(Protocol):
    """A gallery searched in both directions: only the order within a row counts. No score is ever NaN."""

    adapter: str
    queries: int | None  # how many captions of an image are used as queries; None: all

    def prepare(self, images: Images, texts: Texts) -> None: ...

    def matrix(self, images: Images, texts: Texts) -> np.ndarray:
        """float32 `[N, T]`: every text for each image."""

    def by_text(self, images: Images, texts: Texts) -> np.ndarray:
        """float32 `[T, N]`: every image for each text."""


@runtime_checkable
class Captioner(Protocol):
    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None: ...

    def captions(self, images: Images) -> list[str]:
        """A caption for each image; the same image is described once."""


@runtime_checkable
class Answerer(Protocol):
    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None: ...

    def answers(self, images: Images, questions: Texts, candidates: Sequence[Texts]) -> list[str]:
        """An answer to each question: generated freely, or the best of the question's candidates."""


@runtime_checkable
class AnswerScorer(Protocol):
    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None: ...

    def likelihoods(self, images: Images, questions: Texts, answers: Texts) -> np.ndarray:
        """float64 `[N]`: log p(answer | image, question), up to a constant of the question where it comes from a score."""


class Verdict(NamedTuple):
    """Yes, no or neither (None), the margin of yes over no where the model gives scores, and its words where it gives words."""

    said: bool | None
    margin: float | None
    words: str | None = None


Example = tuple[np.ndarray, str, bool | None]  # an image, a statement about it, and whether it is true (None: not revealed)
Examples = Sequence[Example]


@runtime_checkable
class Decider(Protocol):
    """Yes or no."""

    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None: ...

    def verdicts(self, images: Images, questions: Texts, statements: Texts, examples: Examples) -> list[Verdict]:
        """Whether the answer to each question is yes, that is, its statement is true; models that only score choose their
        threshold on `examples`."""


@runtime_checkable
class Drawer(Protocol):
    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None: ...

    def drawings(self, texts: Texts) -> list[np.ndarray]:
        """uint8 `[height, width, 3]`, one for each text; the same text is drawn once."""


@runtime_checkable
class Completer(Protocol):
    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None: ...

    def completions(self, prompts: Sequence[Prompt]) -> list[str]: ...


@runtime_checkable
class Locator(Protocol):
    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None: ...

    def boxes(self, images: Images, phrases: Texts) -> list[Box | None]: ...


@runtime_checkable
class Replier(Protocol):
    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None: ...

    def replies(self, images: Images, requests: Texts) -> list[Said]: ...


Lesson = Sequence[tuple[np.ndarray, str]]  # pictures and their names


@runtime_checkable
class Namer(Protocol):
    """Learns new words from a few pictures of each."""

    adapter: str

    def prepare(self, images: Images, texts: Texts) -> None: ...

    def names(self, lessons: Sequence[Lesson], images: Images) -> list[str]:
        """A name for the i-th image, learned from the i-th lesson; free text if the model generates."""
