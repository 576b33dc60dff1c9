"""Captions that need no captioner: the controls of a captioning table of real pictures.

A caption of a real photo is like many others, so a metric of word overlap is far above 0 for a sentence that no picture was looked at
for, and higher for what people wrote about similar pictures (Devlin et al. 2015, arXiv 1505.04467). A captioner must beat both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from eval.base.capabilities import Images
from eval.judges.clipscore import NamedCLIP

NEAREST = 30


class TrainingCaptions:
    """What people wrote about the training pictures, and how alike these texts are: by the cosine of their n-grams up to four words,
    weighted by tf-idf as in CIDEr."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.captions = [caption for caption in dict.fromkeys(captions) if caption.strip()]
        self.vectors = TfidfVectorizer(ngram_range=(1, 4), token_pattern=r"\w+").fit_transform(self.captions)

    def constant(self) -> str:
        """The caption most like all others."""
        return self.captions[self._most_like_the_rest(range(len(self.captions)))]

    def nearest(self, clip: NamedCLIP, images: Images) -> list[str]:
        """For each picture the caption that fits it best, by a dual encoder."""
        return [self.captions[rows[0]] for rows in self._neighbours(clip, images)]

    def consensus(self, clip: NamedCLIP, images: Images) -> list[str]:
        """Of the `NEAREST` captions that fit a picture best, the one most like the others."""
        return [self.captions[rows[self._most_like_the_rest(rows)]] for rows in self._neighbours(clip, images)]

    def _neighbours(self, clip: NamedCLIP, images: Images) -> np.ndarray:
        """Rows of the captions that fit each picture best `[N, NEAREST]`, the best first."""
        scores = clip.scorer.matrix(images, clip.prompts(self.captions))
        return np.argsort(-scores, axis=1, kind="stable")[:, :NEAREST]

    def _most_like_the_rest(self, rows: Sequence[int] | np.ndarray) -> int:
        vectors = self.vectors[np.asarray(rows)]
        return int(np.argmax(vectors @ np.asarray(vectors.sum(axis=0)).ravel()))
