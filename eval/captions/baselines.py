"""Captions that need no captioner: the controls of a captioning table of real pictures.

A caption of a real photo is like many others, so a metric of word overlap is far above 0 for a sentence that no picture was looked at
for, and higher for what people wrote about similar pictures (Devlin et al. 2015, arXiv 1505.04467). A captioner must beat both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from eval.base.capabilities import Images
from eval.judges.clipscore import NamedCLIP

NEAREST = 30
WORD = r"\w+"
SIGMA = 6.0  # CIDEr-D's, in words


class TrainingCaptions:
    """What people wrote about the training pictures, and how alike these texts are: by CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726,
    equations 2 and 5) without its clipping of repeated words, so that all pairs are compared at once.

    `vectors` `[N, all n-grams up to four words]`: the product of two rows is the mean over n of the cosines of their tf-idf vectors.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        self.captions = [caption for caption in dict.fromkeys(captions) if caption.strip()]
        self.lengths = np.array([len(re.findall(WORD, caption)) for caption in self.captions], dtype=int)
        parts = [csr_matrix((len(self.captions), 1), dtype=np.float32)]
        for n in range(1, 1 + min(4, self.lengths.max(initial=0))):
            counted = CountVectorizer(ngram_range=(n, n), token_pattern=WORD, dtype=np.float32).fit_transform(self.captions)
            rarity = np.log(len(self.captions) / np.asarray((counted > 0).sum(axis=0)).ravel()).astype(np.float32)
            parts.append(normalize(counted.multiply(rarity).tocsr()) / 2)
        self.vectors = hstack(parts, format="csr")

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
        vectors, lengths = self.vectors[np.asarray(rows)], self.lengths[np.asarray(rows)]
        alike = -np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel()  # a caption is most like itself
        for length in np.unique(lengths):
            total = np.asarray(vectors[lengths == length].sum(axis=0)).ravel()
            alike += (vectors @ total) * np.exp(-((lengths - length) ** 2) / (2 * SIGMA**2))
        return int(np.argmax(alike))
